"""Folders in memory with the secrets of containers."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from gusset.containers.secrets import memory_folder
from gusset.errors import HostError
from tests.serving.conftest import descriptors


@pytest.mark.parametrize("inodes", [1, 2], ids=["none", "one"])
def test_a_folder_for_which_there_is_no_room_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inodes: int
) -> None:
    """With inodes left for none or one of its two folders; nothing of it stays."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes}", "none", str(small)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this account cannot mount a tmpfs")
    monkeypatch.setattr(memory_folder, "_memory", lambda: small)
    try:
        with pytest.raises(HostError, match="No space left on device") as error:
            memory_folder.ContainerFolder.create("run-1", None)
        assert str(small) in error.value.message
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_whose_reaper_cannot_be_started_is_removed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(memory_folder, "_memory", lambda: tmp_path)
    monkeypatch.setattr(os, "fork", fail)
    before = descriptors(os.getpid())
    with pytest.raises(HostError, match="cannot start the process that removes the secrets in the end"):
        memory_folder.SecretsFolder.create()
    assert list(tmp_path.iterdir()) == [] and descriptors(os.getpid()) == before
