"""Memory-backed folders that hold secrets as files, for one process or for one container.

Knows nothing of where values come from. A folder is gone when its owner closes
it, and also when the owner is killed: a reaper process waits on a pipe that
only the owner holds open.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from gusset.errors import HostError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

_MARK = "gusset-"  # what the names of our folders begin with
_IN_MEMORY = {"tmpfs", "ramfs"}


class SecretsFolder:
    """A folder 0700 in memory, each secret a file 0400 in it, exact to the byte.

    Must be opened before its process starts threads, since the reaper is forked.

    Raises:
        HostError: this machine has no memory-backed place that we may write to.
    """

    def __init__(self, values: Mapping[str, SecretValue]) -> None:
        for name in values:
            check_name(name)
        self.path = Path(tempfile.mkdtemp(prefix=_MARK, dir=_memory()))
        self._held_open = _start_reaper(self.path)
        try:
            for name, value in values.items():
                self._write(name, value)
        except OSError as error:
            self.close()
            raise HostError(f"cannot write secrets to {self.path}: {error.strerror}") from error

    def _write(self, name: str, value: SecretValue) -> None:
        fd = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(fd, "wb") as file:
            file.write(value.reveal())

    def close(self) -> None:
        """Remove folder and files; the reaper then has nothing left to do and ends."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held_open >= 0:
            os.close(self._held_open)
            self._held_open = -1

    def __enter__(self) -> SecretsFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ContainerFolder:
    """The secrets of one container: `path` is what it gets as /secrets, each a file 0400 of its user's.

    `path` lies in a folder 0700 of our own, so that on this machine nobody but
    us comes near it. A file appears, and is replaced, whole. Whoever owns this
    sees to its removal, also after having been killed.

    Raises:
        HostError: this machine has no memory-backed place that we may write to.
    """

    def __init__(self, owner: str, user: tuple[int, int] | None) -> None:
        """`owner` goes into the folder's name, for `remove_all`.

        `user` owns the files inside the container; None when that is who we are.
        """
        self.home = Path(tempfile.mkdtemp(prefix=f"{_MARK}{owner}-", dir=_memory()))
        self.path = self.home / "secrets"
        self.path.mkdir()
        self.path.chmod(0o755)  # whoever the container runs as has to come to its files
        self._user = user

    def replace(self, values: Mapping[str, SecretValue]) -> None:
        """Have exactly these values, each file replaced at once."""
        try:
            for name, value in values.items():
                check_name(name)
                self._write(name, value)
            for file in self.path.iterdir():
                if file.name not in values:
                    file.unlink()
        except OSError as error:
            raise HostError(f"cannot write secrets to {self.path}: {error.strerror}") from None

    def _write(self, name: str, value: SecretValue) -> None:
        beside = self.home / "next"
        beside.unlink(missing_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(fd, "wb") as file:
            file.write(value.reveal())
            if self._user is not None:
                os.fchown(file.fileno(), *self._user)
        beside.rename(self.path / name)

    def close(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)


def remove_all(matches: Callable[[str], bool]) -> None:
    """Remove the folders of containers whose owner is meant."""
    for folder in _memory().glob(f"{_MARK}*-*-*-*"):
        owner = folder.name.removeprefix(_MARK).rpartition("-")[0]
        if matches(owner) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _memory() -> Path:
    """A folder in memory that this user may write to: the session's own, else the shared one."""
    runtime = Path(f"/run/user/{os.getuid()}")
    for place in (runtime, Path("/dev/shm")):  # noqa: S108  # checked to be in memory; mkdtemp makes it 0700
        if os.access(place, os.W_OK | os.X_OK) and _file_system(place) in _IN_MEMORY:
            return place
    raise HostError(
        "there is no memory-backed folder to put secrets in",
        hint="mount a tmpfs on /dev/shm; secrets are never written to disk",
    )


def _file_system(place: Path) -> str | None:
    """The type of the file system that `place` is on: that of the longest mount point above it."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
        _, point, kind, *_ = line.split(" ")
        mounts[Path(point)] = kind  # a later mount hides an earlier one
    return next((mounts[above] for above in (place, *place.parents) if above in mounts), None)


def _start_reaper(folder: Path) -> int:
    """Fork a process that removes `folder` when the returned descriptor is closed, however that happens."""
    read, write = os.pipe()
    if os.fork():
        os.close(read)
        return write
    try:  # the child: nothing below may return into the caller's code
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(write)
        for stream in (0, 1, 2):  # so that nobody waits for our copies of the caller's pipes
            os.close(stream)
        os.read(read, 1)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)
