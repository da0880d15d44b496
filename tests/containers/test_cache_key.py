"""The key that makes digests of build secrets, of which images may show the result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gusset.containers.build.cache_key import load_key
from gusset.errors import HostError


def test_the_key_is_made_once_for_this_account_alone(tmp_path: Path) -> None:
    """With another one, the commands of a build would run again."""
    cache = tmp_path / "new" / "cache"
    key = load_key(cache)
    assert len(key) == 32
    assert load_key(cache) == key
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / "build.key")] == [0o700, 0o600]


@pytest.mark.parametrize("writable", ["cache", "."])
def test_a_key_that_another_account_could_have_planted_is_not_used(tmp_path: Path, writable: str) -> None:
    """Who knows the key can try out values against the digest that an image shows."""
    shared = tmp_path / "shared"
    (shared / "cache").mkdir(parents=True)
    (shared / "cache" / "build.key").write_bytes(bytes(32))
    (shared / writable).chmod(0o777)
    with pytest.raises(HostError, match="can be written by others") as refused:
        load_key(shared / "cache")
    assert str(shared / writable) in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_key_of_another_account_is_not_used(tmp_path: Path) -> None:
    """It was planted while others could still write to the cache."""
    (tmp_path / "build.key").write_bytes(bytes(32))
    os.chown(tmp_path / "build.key", 12345, 12345)
    with pytest.raises(HostError, match=r"build\.key belongs to another account"):
        load_key(tmp_path)
