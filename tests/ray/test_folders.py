"""The folder of a deployment on a node. Starts no cluster: in place of Ray's control store is one archive."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from gusset.errors import HostError
from gusset.portable import sync_file_system
from tests.ray.conftest import write_folder

MODEL = "class Model:\n    def predict(self, inputs):\n        return inputs\n"


@dataclass
class Node:
    """A node of a cluster whose control store has one folder."""

    digest: str

    def find_folder(self, cache: Path) -> Path:
        from gusset.ray.folders import find_folder
        from gusset.ray.plan import ReplicaPlan, SecretAccess, StoredFolder

        plan = ReplicaPlan(name="m", folder=StoredFolder(digest=self.digest), access=SecretAccess())
        return find_folder(plan, cache)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    from gusset.ray import folders

    archive = folders.pack(write_folder(tmp_path / "source", "model_name: m\n", MODEL))
    monkeypatch.setattr(folders.internal_kv, "_internal_kv_get", lambda *_, **__: archive)
    return Node(hashlib.sha256(archive).hexdigest())


def test_a_folder_is_unpacked_once_where_only_this_account_can_write(node: Node, tmp_path: Path) -> None:
    """The next replica finds it; nothing else is left."""
    cache = tmp_path / "new" / "cache"
    folder = node.find_folder(cache)
    assert (folder / "model" / "model.py").read_text() == MODEL
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / "ray", folder)] == [0o700] * 3
    inode = folder.stat().st_ino
    assert node.find_folder(cache).stat().st_ino == inode
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_is_on_the_disk_before_it_has_its_name(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure must not leave a folder whose files are lost: every later replica would fail."""
    found = []

    def sync(folder: Path) -> None:
        sync_file_system(folder)  # the real one fails for no folder of ours
        found.append([folder.name == node.digest, *sorted(each.name for each in folder.rglob("*"))])

    monkeypatch.setattr("gusset.ray.folders.sync_file_system", sync)
    node.find_folder(tmp_path / "cache")
    assert found == [[False, "config.yaml", "model", "model.py"]]


@pytest.mark.parametrize("shared", ["cache/ray", "cache", "."])
def test_code_that_another_account_could_have_planted_is_not_used(
    node: Node, tmp_path: Path, shared: str
) -> None:
    """In the cache, in its folder for Ray, or in a folder that leads there."""
    planted = tmp_path / "node" / "cache" / "ray" / node.digest / "model"
    planted.mkdir(parents=True)
    (planted / "model.py").write_text("planted")
    writable = tmp_path / "node" / shared
    writable.chmod(0o777)
    with pytest.raises(HostError, match="other accounts can write to the cache folder") as refused:
        node.find_folder(tmp_path / "node" / "cache")
    assert f"chmod go-w {writable}" in (refused.value.hint or "")


def test_a_cache_that_cannot_be_made_is_named(node: Node, tmp_path: Path) -> None:
    """The replica's error says which folder of its node is wrong."""
    (tmp_path / "cache").touch()
    with pytest.raises(HostError, match=f"cannot create the folder {tmp_path / 'cache'}"):
        node.find_folder(tmp_path / "cache")
