"""The cache of environments: made once, never half, removed only when unused."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from gusset.environments.last_pythons import LastPythons
from gusset.environments.store import EnvironmentInfo, EnvironmentStore, days_ago
from gusset.errors import Conflict, GussetError, HostError, NotFound, outcome_of
from gusset.portable import sync_file_system
from tests.serving.conftest import eventually

KEY = "0123abcd"


def make_in(attempt: Path, key: str = KEY) -> EnvironmentInfo:
    """A tiny environment: a Python that is a link to this one."""
    (attempt / "bin").mkdir(parents=True)
    (attempt / "bin" / "python").symlink_to(sys.executable)
    return EnvironmentInfo(
        key=key, name="m", folder="/m", python_version="3.11.7", path=str(attempt), made=time.time()
    )


def never(attempt: Path) -> EnvironmentInfo:
    raise AssertionError("it must not be made again")


@pytest.fixture
def store(tmp_path: Path) -> EnvironmentStore:
    return EnvironmentStore(tmp_path / "cache")


def test_an_environment_is_made_once(store: EnvironmentStore) -> None:
    """The first use makes it, the second finds it complete."""
    assert store.find(KEY) is None
    store.use(KEY, make_in).close()
    lease = store.use(KEY, never)

    assert lease.info.python.resolve() == Path(sys.executable).resolve()
    assert store.find(KEY) == lease.info
    assert (store.folder.stat().st_mode & 0o777) == 0o700
    lease.close()


def test_an_environment_is_on_the_disk_before_it_counts_as_complete(
    store: EnvironmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure must not leave the marker of an environment whose files are lost."""
    found = []

    def sync(folder: Path) -> None:
        sync_file_system(folder)  # the real one fails for no folder of ours
        found.append({each.name for each in folder.rglob("*")})

    monkeypatch.setattr("gusset.environments.store.sync_file_system", sync)
    lease = store.use(KEY, make_in)
    lease.close()

    assert found == [{Path(lease.info.path).name, "bin", "python"}]


def test_a_failed_attempt_leaves_nothing(store: EnvironmentStore) -> None:
    """An error while it is made leaves no environment; the next use makes one."""

    def fail(attempt: Path) -> EnvironmentInfo:
        make_in(attempt)
        raise HostError("the disk is full")

    with pytest.raises(HostError):
        store.use(KEY, fail)
    assert store.find(KEY) is None
    assert not (store.folder / KEY).exists()
    store.use(KEY, make_in).close()


def test_an_environment_without_its_python_is_made_again(store: EnvironmentStore) -> None:
    """An environment whose Python was uninstalled is no longer used."""
    lease = store.use(KEY, make_in)
    lease.info.python.unlink()
    lease.close()

    assert store.find(KEY) is None
    again = store.use(KEY, make_in)
    assert again.info.path != lease.info.path
    assert not Path(lease.info.path).exists()


SLOW = """
import sys, time
from pathlib import Path
from gusset.environments.last_pythons import LastPythons
from gusset.environments.store import EnvironmentStore
from tests.environments.test_store import make_in, KEY
def make(attempt):
    info = make_in(attempt)
    for number in range(400):
        (attempt / str(number)).write_text("x")
        print("writing", flush=True) if number == 3 else None
        time.sleep(0.0005)
    (attempt / "whole").touch()
    return info
EnvironmentStore(Path(sys.argv[1])).use(KEY, make)
print("done", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.3])
def test_a_killed_start_leaves_no_half_environment(store: EnvironmentStore, delay: float) -> None:
    """Killed at any moment, what the next start finds is whole, or nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, str(store.folder.parent)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(delay)  # the kill comes at several moments
        process.send_signal(signal.SIGKILL)
    found = store.find(KEY)
    assert found is None or Path(found.path, "whole").exists()

    with store_lease(store) as path:
        assert [each for each in (store.folder / KEY).iterdir() if each.is_dir()] == [path]


class store_lease:
    """A use of the environment, as a context."""

    def __init__(self, store: EnvironmentStore) -> None:
        self.lease = store.use(KEY, make_in)

    def __enter__(self) -> Path:
        return Path(self.lease.info.path)

    def __exit__(self, *_: object) -> None:
        self.lease.close()


def test_several_starts_wait_for_one(store: EnvironmentStore) -> None:
    """While one makes the environment the others wait, once each with a message, and then use it."""
    made, waited, paths = [], [], []
    started = threading.Event()

    def make(attempt: Path) -> EnvironmentInfo:
        started.set()
        made.append(attempt)
        eventually(lambda: len(waited) >= 5, "the others wait")
        return make_in(attempt)

    def use() -> None:
        lease = EnvironmentStore(store.folder.parent).use(KEY, make, on_wait=lambda: waited.append(1))
        paths.append(lease.info.path)
        lease.close()

    threads = [threading.Thread(target=use) for _ in range(6)]
    threads[0].start()
    started.wait(5)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(made) == 1
    assert set(paths) == {str(made[0])}
    assert len(paths) == 6
    assert 5 <= len(waited) <= 10


def test_an_environment_in_use_is_not_removed(store: EnvironmentStore) -> None:
    """`remove` refuses while a model runs in it, and works afterwards."""
    lease = store.use(KEY, make_in)
    assert [each.in_use for each in store.environments()] == [True]
    with pytest.raises(Conflict, match="in use"):
        store.remove(KEY)
    assert store.prune(unused_since=time.time() + 10) == []
    lease.close()

    store.remove(KEY)
    assert list(store.folder.iterdir()) == []
    with pytest.raises(NotFound):
        store.remove(KEY)


@pytest.mark.parametrize("way", ["prune", "remove"])
def test_a_removed_environment_leaves_no_file(store: EnvironmentStore, tmp_path: Path, way: str) -> None:
    """Neither does the record of which environment a model folder used last. Those of others stay."""
    last_pythons = LastPythons(store.folder.parent)
    kept = store.use("fedc", partial(make_in, key="fedc"))
    last_pythons.remember(tmp_path / "other", kept.info.python)
    lease = store.use(KEY, make_in)
    last_pythons.remember(tmp_path / "model", lease.info.python)
    lease.close()

    if way == "prune":
        store.prune(unused_since=time.time() + 10)
    else:
        store.remove(KEY)
    kept.close()
    assert last_pythons.guess(tmp_path / "model") is None
    assert last_pythons.guess(tmp_path / "other") is not None
    assert len(list(store.folder.glob("*.last"))) == 1
    assert not list(store.folder.glob(f"{KEY}*"))


def test_prune_removes_what_was_not_used(store: EnvironmentStore) -> None:
    """Environments used since then stay; what killed starts left goes, whatever its age."""
    store.use(KEY, make_in).close()
    store.use("fedc", lambda attempt: make_in(attempt, "fedc")).close()
    old = days_ago(31)
    os.utime(store.folder / "fedc" / "complete.json", (old, old))
    (store.folder / "dead" / "attempt").mkdir(parents=True)

    assert [each.info.key for each in store.environments()] == [KEY, "fedc"]
    assert [each.key for each in store.prune(unused_since=days_ago(30))] == ["fedc"]
    assert [each.name for each in store.folder.iterdir() if each.is_dir()] == [KEY]


def test_a_use_counts_as_used(store: EnvironmentStore) -> None:
    """The time of the last use moves with each use."""
    store.use(KEY, make_in).close()
    old = days_ago(40)
    os.utime(store.folder / KEY / "complete.json", (old, old))
    store.use(KEY, never).close()

    assert store.environments()[0].used > days_ago(1)


@pytest.mark.parametrize("where", [".", "environments"])
def test_a_cache_that_others_can_write_is_refused(store: EnvironmentStore, where: str) -> None:
    """Code from such a folder could be another account's; the error says how to correct it."""
    store.use(KEY, make_in).close()
    (store.folder.parent / where).chmod(0o777)

    with pytest.raises(HostError, match="can be written by others") as error:
        store.use(KEY, never)
    assert "chmod go-w" in str(error.value.hint)
    assert outcome_of(error.value).exit == 11
    with pytest.raises(HostError):
        store.prune(unused_since=0)


def test_the_private_group_of_the_account_may_write(store: EnvironmentStore) -> None:
    """Where each account has a group of its own, folders are often made so; the inner folder is stricter."""
    group, account = grp.getgrgid(os.getegid()), pwd.getpwuid(os.geteuid())
    if group.gr_name != account.pw_name or group.gr_mem or account.pw_gid != group.gr_gid:
        pytest.skip("this account has no group of its own")
    store.folder.parent.mkdir(mode=0o775)
    store.folder.parent.chmod(0o775)
    store.use(KEY, make_in).close()
    store.folder.chmod(0o770)

    with pytest.raises(HostError, match="can be written by others"):
        store.use(KEY, never)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_cache_of_another_account_is_refused(store: EnvironmentStore) -> None:
    """Its owner could change it at any time."""
    store.use(KEY, make_in).close()
    os.chown(store.folder, 12345, 12345)

    with pytest.raises(HostError, match="belongs to another account"):
        store.use(KEY, never)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("sticky", [False, True])
def test_a_link_to_the_cache_that_another_account_can_replace_is_refused(
    store: EnvironmentStore, tmp_path: Path, sticky: bool
) -> None:
    """Its owner could let it lead to other code once the path of the environment's Python is known."""
    store.use(KEY, make_in).close()
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "cache").symlink_to(store.folder.parent)
    if sticky:
        shared.chmod(0o1777)
        os.chown(shared / "cache", 12345, 12345, follow_symlinks=False)
    else:
        os.chown(shared, 12345, 12345)

    with pytest.raises(HostError, match="belongs to another account"):
        EnvironmentStore(shared / "cache").use(KEY, never)
    assert LastPythons(shared / "cache").guess(tmp_path) is None


def test_only_an_environment_can_be_removed(store: EnvironmentStore, tmp_path: Path) -> None:
    """A key that is a path would remove other folders."""
    store.use(KEY, make_in).close()
    (store.folder.parent / "weights").mkdir()

    for key in ("../weights", str(tmp_path), ".", ".."):
        with pytest.raises(NotFound):
            store.remove(key)
    assert (store.folder.parent / "weights").is_dir()


def test_a_folder_that_cannot_be_written_is_an_error_of_the_machine(tmp_path: Path) -> None:
    """The error names the folder and what to do."""
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(GussetError) as error:
        EnvironmentStore(tmp_path / "cache").use(KEY, make_in)
    assert outcome_of(error.value).exit == 11
    assert "GUSSET_CACHE" in str(error.value.hint)
