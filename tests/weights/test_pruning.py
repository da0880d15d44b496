"""Removing downloads that nobody has used for some time."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from gusset.weights.cache import CachedFile, WeightsCache
from gusset.weights.pruning import Pruned, prune
from tests.conftest import Cli

MONTH_AGO = time.time() - 30 * 86_400


def downloaded(cache: WeightsCache, source: str, content: bytes) -> CachedFile:
    cache.partial(source).write_bytes(content)
    return cache.add(source, hashlib.sha256(content).hexdigest(), validator=None)


def make_old(cache: WeightsCache) -> None:
    """Have nothing of the cache used for two months."""
    for path in (each for name in ("index", "folders", "partial") for each in (cache.root / name).iterdir()):
        os.utime(path, (MONTH_AGO - 30 * 86_400,) * 2)


def test_what_was_not_used_is_removed_and_what_was_used_stays(cache: WeightsCache) -> None:
    """By files, folders and incomplete downloads; the used one is still found."""
    old = downloaded(cache, "https://h.test/old", b"12345")
    used = downloaded(cache, "https://h.test/used", b"abc")
    folders = [cache.folder({"x": old}), cache.folder({"x": used})]
    cache.partial("https://h.test/incomplete").write_bytes(b"12")
    make_old(cache)
    assert cache.find("https://h.test/used") == used
    assert cache.folder({"x": used}) == folders[1]

    assert prune(cache.root, unused_since=MONTH_AGO) == Pruned(files=2, bytes=7)
    assert cache.find("https://h.test/old") is None
    assert cache.find("https://h.test/used") == used
    assert [folder.exists() for folder in folders] == [False, True]
    assert list((cache.root / "partial").iterdir()) == []


def test_nothing_is_removed_while_a_server_uses_the_cache(cache: WeightsCache) -> None:
    """A container may have the files mounted for longer than the time that counts as unused."""
    downloaded(cache, "https://h.test/old", b"12345")
    make_old(cache)
    held = cache.hold()
    assert prune(cache.root, unused_since=MONTH_AGO) is None
    os.close(held)
    assert prune(cache.root, unused_since=MONTH_AGO) == Pruned(files=1, bytes=5)


def test_a_file_that_two_sources_have_stays_for_the_one_that_is_used(cache: WeightsCache) -> None:
    """It is in the cache once."""
    downloaded(cache, "https://h.test/old", b"same")
    make_old(cache)
    used = downloaded(cache, "https://h.test/used", b"same")

    assert prune(cache.root, unused_since=MONTH_AGO) == Pruned(files=0, bytes=0)
    assert cache.find("https://h.test/used") == used


def test_the_record_of_external_data_stays(cache: WeightsCache) -> None:
    """Without it a changed file would count as one that gusset did not put there."""
    cache.write_entry(
        "data file /m/x", {"sha256": "a", "size": 1, "modified": 1, "source": "https://h.test/x"}
    )
    make_old(cache)
    prune(cache.root, unused_since=MONTH_AGO)
    assert cache.read_entry("data file /m/x")["source"] == "https://h.test/x"


def test_a_cache_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    """Nothing was ever downloaded."""
    assert prune(tmp_path / "weights", unused_since=MONTH_AGO) == Pruned(files=0, bytes=0)
    assert not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_the_command_removes_downloads_and_says_when_it_may_not(gusset: Cli) -> None:
    """`gusset env prune` counts the files and their bytes."""
    cache = WeightsCache.open(Path(gusset.environ["GUSSET_CACHE"]) / "weights")
    downloaded(cache, "https://h.test/old", b"12345")
    make_old(cache)

    held = cache.hold()
    done = gusset("env", "prune")
    assert b"a model that uses some of them is running" in done.stderr
    os.close(held)
    done = gusset("env", "prune", "--output", "json")
    assert json.loads(done.stdout)["downloads"] == {"files": 1, "bytes": 5}
