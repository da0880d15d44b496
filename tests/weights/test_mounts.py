"""Links at the paths where models expect their weights."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gusset.errors import Conflict, Denied, HostError
from gusset.weights.cache import WeightsCache
from gusset.weights.download import Download, SourceKind
from gusset.weights.mounts import Mounts
from tests.conftest import as_ordinary_process


def download(mount: Path) -> Download:
    location = "config.yaml:3: weights[0].source"
    return Download(kind=SourceKind.HUB, address="a", location=location, mount=str(mount))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path / "first", tmp_path / "second"


def test_a_link_is_made_with_its_folders(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """An empty folder gives way."""
    for path in (tmp_path / "models" / "deep" / "llama", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        mounts = Mounts(cache)
        mounts.check(download(path))
        mounts.mount(download(path), folders[0])
        assert path.readlink() == folders[0]
        mounts.close()


def test_what_gusset_did_not_make_is_not_touched(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """A folder with files, a file, a link of somebody else, also a broken one."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(folders[1])
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "file", "link", "broken"):
        mounts = Mounts(cache)
        before = os.lstat(tmp_path / name)
        for action in (mounts.check, lambda each: mounts.mount(each, folders[0])):  # noqa: B023
            with pytest.raises(Conflict, match="gusset did not make it"):
                action(download(tmp_path / name))
        assert os.lstat(tmp_path / name).st_ino == before.st_ino
        mounts.close()


def test_a_link_of_another_content_is_replaced_only_when_no_server_uses_it(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same content can be used by several."""
    monkeypatch.setattr("gusset.weights.mounts._LINK_TIMEOUT", 0.1)
    first, second = Mounts(cache), Mounts(cache)
    wanted = download(tmp_path / "llama")
    first.mount(wanted, folders[0])
    second.mount(wanted, folders[0])
    with pytest.raises(Conflict, match="another server uses"):
        second.mount(wanted, folders[1])
    assert (tmp_path / "llama").readlink() == folders[0]
    first.close()
    second.mount(wanted, folders[1])
    assert (tmp_path / "llama").readlink() == folders[1]
    second.close()


def test_many_starts_at_once_agree(cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Each has the link, none fails."""
    errors: list[Exception] = []
    all_mounts = [Mounts(cache) for _ in range(8)]

    def mount(mounts: Mounts) -> None:
        try:
            mounts.mount(download(tmp_path / "llama"), folders[0])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=mount, args=(mounts,)) for mounts in all_mounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "llama").readlink() == folders[0]
    for mounts in all_mounts:
        mounts.close()


def test_a_path_that_cannot_be_made_names_the_command(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """One command of an administrator makes the folder once."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "my models" / "llama"
    for action in (Mounts(cache).check, lambda each: Mounts(cache).mount(each, folders[0])):
        with pytest.raises(HostError, match=f"cannot create {path}") as error:
            action(download(path))
        parent = f"'{path.parent}'"
        assert f'sudo mkdir -p {parent} && sudo chown "$USER" {parent}' in (error.value.hint or "")


def test_a_link_whose_record_is_lost_is_not_gussets(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """After the cache was removed, a link to the hub's cache must be removed by hand; one into the cache not."""
    mounts, wanted = Mounts(cache), download(tmp_path / "llama")
    mounts.mount(wanted, folders[0])
    mounts.close()
    cache.mount_record(str(tmp_path / "llama")).unlink()
    with pytest.raises(Conflict):
        Mounts(cache).check(wanted)

    (tmp_path / "llama").unlink()
    (tmp_path / "llama").symlink_to(cache.root / "folders" / "gone")
    Mounts(cache).check(wanted)


_CHANGE = """
import resource, sys
from pathlib import Path
from gusset.errors import HostError
from gusset.weights.cache import WeightsCache
from gusset.weights.mounts import Mounts
from tests.weights.test_mounts import download
cache, path, folder = map(Path, sys.argv[2:])
mounts = Mounts(WeightsCache(cache))
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
if sys.argv[1] == "killed":
    Path.symlink_to = lambda *_: sys.exit(11)
try:
    mounts.mount(download(path), folder)
except HostError as error:
    print(error, end="", file=sys.stderr)
    sys.exit(11)
"""
MESSAGES = {
    "read-only": "config.yaml:3: weights[0].source: this account cannot create {path}",
    "full": "there is no space left in {cache}",
    "killed": "",
}


@pytest.mark.parametrize("reason", MESSAGES)
def test_a_link_that_could_not_be_changed_is_still_gussets(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path], reason: str
) -> None:
    """The next start changes it, once its folder can be written, the disk has room, or nothing kills it."""
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "llama"
    mounts, wanted = Mounts(cache), download(path)
    mounts.mount(wanted, folders[0])
    mounts.close()

    path.parent.chmod(0o555 if reason == "read-only" else 0o755)
    command = [*as_ordinary_process(), sys.executable, "-c", _CHANGE, reason, cache.root, path, folders[1]]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.decode()) == (
        11,
        MESSAGES[reason].format(path=path, cache=cache.root),
    )
    assert path.readlink() == folders[0]

    path.parent.chmod(0o755)
    mounts.check(wanted)
    mounts.mount(wanted, folders[1])
    assert path.readlink() == folders[1]
    mounts.close()


def test_a_link_of_ones_own_to_an_older_content_is_not_gussets(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """Once gusset has changed its link, it knows only the new one."""
    mounts, wanted, path = Mounts(cache), download(tmp_path / "llama"), tmp_path / "llama"
    for folder in folders:
        mounts.mount(wanted, folder)
        mounts.close()
    path.unlink()
    path.symlink_to(folders[0])
    with pytest.raises(Conflict, match="gusset did not make it"):
        mounts.check(wanted)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("planted", ["link", "folder"])
def test_what_another_account_has_put_into_a_shared_folder_is_refused(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path], planted: str
) -> None:
    """Its owner could replace it when the model loads its weights: even a link that leads to the cache."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    path = shared / "llama"
    if planted == "link":
        path.symlink_to(cache.root / "folders")
    else:
        path.mkdir()
        path = path / "weights"
    os.chown(shared / "llama", 12345, 12345, follow_symlinks=False)

    mounts = Mounts(cache)
    with pytest.raises(Denied, match="everybody may write"):
        mounts.check(download(path))
    with pytest.raises(Denied, match="everybody may write"):
        mounts.mount(download(path), cache.root / "folders")


def test_a_folder_in_which_everybody_may_replace_links_is_refused(
    cache: WeightsCache, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """With the sticky bit, as /tmp has it, nobody else can replace the link."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    mounts = Mounts(cache)
    with pytest.raises(Denied, match="everybody may write"):
        mounts.check(download(shared / "llama"))
    shared.chmod(0o1777)
    mounts.mount(download(shared / "llama"), folders[0])
    assert (shared / "llama").readlink() == folders[0]
    mounts.close()
