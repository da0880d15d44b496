"""What other accounts of the machine, and the author of an image, cannot bring about."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gusset.containers.engine.container import Container
from gusset.containers.image_deployment import user_ids
from gusset.containers.secrets import memory_folder
from gusset.containers.secrets.memory_folder import ContainerFolder
from gusset.errors import ModelFailed
from gusset.secrets.value import SecretValue

BIG = b"9" * 5000
RUN = "999999-1-feedfeedfeedfeed"


@pytest.mark.parametrize("target", ["/nowhere", "/etc", None])
def test_what_others_leave_in_the_shared_folder_keeps_no_secrets_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str | None
) -> None:
    """Links, which may lead anywhere or nowhere, and files, by the names of gusset's own folders."""
    monkeypatch.setattr(memory_folder, "_memory", lambda: tmp_path)
    folders = [ContainerFolder.create(RUN, None) for _ in range(3)]
    for folder in folders:
        folder.replace({"token": SecretValue(b"value")})
    for number in range(20):
        planted = tmp_path / f"gusset-{RUN}-{number}"
        planted.symlink_to(target) if target else planted.write_text("")
    memory_folder.remove_all(lambda run_id: run_id == RUN)
    assert not any(folder.path.exists() for folder in folders)
    assert Path("/etc/passwd").exists()


def test_a_folder_of_another_account_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_folder, "_memory", lambda: tmp_path)
    planted = tmp_path / f"gusset-{RUN}-x"
    planted.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: planted.stat().st_uid + 1)
    memory_folder.remove_all(lambda run_id: run_id == RUN)
    assert planted.exists()


class Engine:
    """An engine's client, of which a container has one file."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.sent = 0

    def get_archive(self, id_: str, path: str) -> tuple[Iterator[bytes], dict[str, Any]]:
        return self._archive(), {}

    def _archive(self) -> Iterator[bytes]:
        member = tarfile.TarInfo("passwd")
        member.size = self._size
        head = io.BytesIO()
        with tarfile.open(fileobj=head, mode="w") as archive:
            archive.addfile(member, io.BytesIO(b"x" * self._size) if self._size < 10_000 else None)
        if self._size < 10_000:
            yield head.getvalue()
            return
        yield head.getvalue()[:512]
        for _ in range(0, self._size, 1024 * 1024):
            self.sent += 1024 * 1024
            yield bytes(1024 * 1024)


def test_a_huge_file_of_an_image_is_not_read_into_memory() -> None:
    engine = Engine(200 * 1024 * 1024)
    assert Container(engine, "id").file("/etc/passwd") == b""
    assert engine.sent < 10 * 1024 * 1024


def test_a_small_file_of_an_image_is_read() -> None:
    assert Container(Engine(2000), "id").file("/etc/passwd") == b"x" * 2000


@pytest.mark.parametrize(
    ("passwd", "group"),
    [
        (b"server:x:-1:0::", b""),
        (b"server:x:\xc2\xb2:0::", b""),
        (b"server:x:4294967295:0::", b""),
        (b"server:x:1000:%b::" % BIG, b""),
        (b"server:x:1000:1000::", b"workers:x:-1:"),
        (b"server:x:1000:1000::", b"workers:x:%b:" % BIG),
        (b"server:x", b""),
    ],
)
def test_ids_of_an_image_that_are_none_are_refused(passwd: bytes, group: bytes) -> None:
    with pytest.raises(ModelFailed):
        user_ids("server:workers", passwd, group)


def test_lists_of_an_image_may_contain_any_bytes() -> None:
    passwd, group = b"\xff\nserver:x:1000:1000:\xff::", b"\xff:x:5:\nworkers:x:7:\xff"
    assert user_ids("server:workers", passwd, group) == (1000, 7)
    assert user_ids("1234", b"", b"") == (1234, 0)
    with pytest.raises(ModelFailed):
        user_ids("4294967295", b"", b"")
