"""The folders in which a model finds its downloads: links to the files of the cache, or copies of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gusset.weights.cache import WeightsCache
from gusset.weights.web import WebClient
from tests.weights.test_web import fetch
from tests.weights.web_server import WebServer

BODY = os.urandom(10_000)
DAMAGED = BODY[:-1] + bytes([BODY[-1] ^ 1])


@pytest.fixture
def without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is on a file system such as exFAT."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


def damage(file: Path) -> None:
    """Overwrite a file in place, as a model might that has it mounted; its size stays."""
    file.chmod(0o644)
    changed = file.stat().st_mtime + 1
    file.write_bytes(DAMAGED)
    os.utime(file, (changed, changed))  # the clock of files may not have ticked since the download


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*")}


def test_a_folder_gets_the_file_that_was_downloaded_again(
    client: WebClient, cache: WeightsCache, web: WebServer
) -> None:
    """The folder is the same, so that servers and containers that use it have the new file, too."""
    damaged, intact = web.put("/a.bin", BODY), web.put("/b.bin", b"intact")

    def folder() -> Path:
        return cache.folder({"deep/a.bin": fetch(client, damaged), "b.bin": fetch(client, intact)})

    before = folder()
    found = inodes(before)
    damage(before / "deep" / "a.bin")
    assert folder() == before
    assert (before / "deep" / "a.bin").read_bytes() == BODY
    changed = {name for name, inode in inodes(before).items() if inode != found[name]}
    assert changed == {"deep/a.bin"}
    assert folder() == before and (before / "deep" / "a.bin").stat().st_nlink == 2


@pytest.mark.usefixtures("without_hard_links")
def test_without_hard_links_a_folder_has_copies_that_are_made_once(
    client: WebClient, cache: WeightsCache, web: WebServer
) -> None:
    """A start does not copy the weights again, which may take minutes."""
    url = web.put("/a.bin", BODY)
    folder = cache.folder({"a.bin": fetch(client, url)})
    assert (folder / "a.bin").read_bytes() == BODY
    found = inodes(folder)
    assert cache.folder({"a.bin": fetch(client, url)}) == folder
    assert inodes(folder) == found


@pytest.mark.usefixtures("without_hard_links")
def test_a_copy_of_a_damaged_file_is_replaced(client: WebClient, cache: WeightsCache, web: WebServer) -> None:
    """Once the file has been downloaded again."""
    url = web.put("/a.bin", BODY)
    known = fetch(client, url)
    damage(known.path)
    folder = cache.folder({"a.bin": known})
    assert (folder / "a.bin").read_bytes() == DAMAGED
    assert cache.folder({"a.bin": fetch(client, url)}) == folder
    assert (folder / "a.bin").read_bytes() == BODY


def test_what_somebody_put_in_place_of_a_file_is_replaced(
    client: WebClient, cache: WeightsCache, web: WebServer
) -> None:
    """A folder with its name, or a file with that of its folder."""
    file = fetch(client, web.put("/a.bin", BODY))
    for name, made in (("a.bin", "a.bin/x/y"), ("deep/a.bin", "deep")):
        folder = cache.folder({name: file})
        (folder / name).unlink()
        (folder / "deep").rmdir() if made == "deep" else None
        (folder / made).parent.mkdir(parents=True, exist_ok=True)
        (folder / made).touch()
        assert cache.folder({name: file}) == folder
        assert (folder / name).read_bytes() == BODY


def test_a_folder_without_files_exists(cache: WeightsCache) -> None:
    """The patterns of an entry may choose none; a container mounts it all the same."""
    assert list(cache.folder({}).iterdir()) == []


def test_a_snapshot_of_a_hub_whose_file_was_fetched_again_gets_it(
    cache: WeightsCache, tmp_path: Path
) -> None:
    """A file of the hub's cache has the same name as before."""
    snapshot, blob = tmp_path / "snapshots" / "1", tmp_path / "blobs" / "abc"
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(BODY)
    (snapshot / "a.bin").symlink_to(blob)
    plain = cache.plain_folder(snapshot)
    damage(plain / "a.bin")
    blob.unlink()
    blob.write_bytes(BODY)
    assert cache.plain_folder(snapshot) == plain
    assert (plain / "a.bin").read_bytes() == BODY
