"""External data in the data folder of a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gusset.errors import ConfigInvalid, Conflict
from gusset.portable import sync_folder
from gusset.weights.cache import WeightsCache
from gusset.weights.download import Download, SourceKind
from gusset.weights.external_data import fetch_external_data
from gusset.weights.progress import Progress
from gusset.weights.web import WebClient
from tests.weights.web_server import WebServer

BODY = os.urandom(10_000)


class Data:
    def __init__(self, folder: Path, cache: WeightsCache, client: WebClient) -> None:
        self.folder = folder
        self.cache = cache
        self.client = client

    def fetch(self, url: str, path: str = "weights/x.bin") -> Path:
        location = "config.yaml:3: external_data[0].url"
        download = Download(kind=SourceKind.WEB, address=url, location=location, data_file=path)
        fetch_external_data(download, self.folder, self.cache, self.client, Progress("", bar=False))
        return self.folder / path


@pytest.fixture
def data(tmp_path: Path, cache: WeightsCache, client: WebClient) -> Iterator[Data]:
    yield Data(tmp_path / "data", cache, client)


def test_the_file_is_a_link_to_the_cache_and_nothing_else_is_left(
    data: Data, web: WebServer, cache: WeightsCache
) -> None:
    """No space is used twice."""
    file = data.fetch(web.put("/x", BODY))
    assert file.read_bytes() == BODY
    assert file.stat().st_nlink == 2
    assert [path.name for path in file.parent.iterdir()] == ["x.bin"]


def test_a_changed_source_replaces_what_gusset_put_there(data: Data, web: WebServer) -> None:
    """An unchanged one keeps it."""
    url = web.put("/x", BODY)
    inode = data.fetch(url).stat().st_ino
    assert data.fetch(url).stat().st_ino == inode
    web.put("/x", b"new")
    assert data.fetch(url).read_bytes() == b"new"


def test_a_file_is_in_its_place_on_the_disk_before_gusset_records_it(
    data: Data, web: WebServer, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure must not leave the record with an older file, which would count as the model's own."""
    url = web.put("/x", b"old")
    file = data.fetch(url)
    record = f"data file {file}"
    known, found = cache.read_entry(record), []

    def sync(folder: Path) -> None:
        sync_folder(folder)  # the real one fails for no folder of ours
        found.append((folder, file.read_bytes(), cache.read_entry(record)))

    monkeypatch.setattr("gusset.weights.external_data.sync_folder", sync)
    web.put("/x", BODY)
    data.fetch(url)
    assert found == [(file.parent, BODY, known)]
    assert cache.read_entry(record) != known


def test_a_file_of_the_users_own_is_kept_if_it_has_the_size(data: Data, web: WebServer) -> None:
    """It was downloaded by hand; another file is never overwritten."""
    url = web.put("/x", BODY)
    file = data.folder / "weights" / "x.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(len(BODY)))
    data.fetch(url)
    assert file.read_bytes() == bytes(len(BODY))
    file.write_bytes(b"mine")
    with pytest.raises(Conflict, match="is a different file from"):
        data.fetch(url)
    assert file.read_bytes() == b"mine"


def test_a_file_that_the_model_changed_is_kept(data: Data, web: WebServer, cache: WeightsCache) -> None:
    """The cache does not hand out the changed content, although both are one file on disk."""
    url = web.put("/x", BODY)
    file = data.fetch(url)
    file.chmod(0o644)
    with file.open("ab") as opened:
        opened.write(b"a row more")
    data.fetch(url)
    assert file.read_bytes() == BODY + b"a row more"
    assert data.fetch(url, "weights/y.bin").read_bytes() == BODY


def test_a_file_of_the_users_own_is_used_without_a_network(data: Data) -> None:
    """Nothing says that it is wrong."""
    file = data.folder / "weights" / "x.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    assert data.fetch("http://127.0.0.1:9/x").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["out/x.bin", "x.bin/y", "out/new/x.bin"])
def test_a_symbolic_link_does_not_lead_out_of_the_folder(
    data: Data, web: WebServer, tmp_path: Path, name: str
) -> None:
    """A repository of somebody else may contain one."""
    data.folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (data.folder / name.split("/")[0]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigInvalid, match="leads out of the data folder"):
        data.fetch(web.put("/x", BODY), name)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_broken_link_in_the_files_place_is_replaced(data: Data, web: WebServer, tmp_path: Path) -> None:
    """It is not followed."""
    (data.folder / "weights").mkdir(parents=True)
    (data.folder / "weights" / "x.bin").symlink_to(tmp_path / "nowhere")
    assert data.fetch(web.put("/x", BODY)).read_bytes() == BODY
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_in_the_files_place_is_a_conflict(data: Data, web: WebServer) -> None:
    """It is not removed."""
    (data.folder / "weights" / "x.bin").mkdir(parents=True)
    with pytest.raises(Conflict):
        data.fetch(web.put("/x", BODY))
