"""Folders in memory with secrets as files, for one process or for one container.

The process that creates a `SecretsFolder` has a child that removes it when the
process is killed. For a `ContainerFolder`, `gusset.containers.reaper` does that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from gusset.errors import HostError
from gusset.portable import is_in_memory
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

_PREFIX = "gusset-"  # of the names of the folders
PREVIOUS = "..previous"  # the folder with the values before the current ones; no secret has such a name
_NONE: Mapping[str, SecretValue] = {}


class SecretsFolder:
    """A folder 0700 in memory that contains each secret, to the exact byte, as a file 0400."""

    def __init__(self, path: Path, reaper: int) -> None:
        """`reaper` is the descriptor whose end removes the folder: see `_start_reaper`."""
        self.path = path
        self._reaper = reaper

    @classmethod
    def create(cls) -> SecretsFolder:
        """Create the folder, without files. This forks: call it before this process has threads or values.

        Raises:
            HostError: there is no folder in memory that this account may write to, or no room in it;
                or the system gives no more processes or files.
        """
        path = _make_folder(_PREFIX)
        try:
            return cls(path, _start_reaper(path))
        except OSError as error:
            path.rmdir()
            raise HostError(
                f"cannot start the process that removes the secrets in the end: {error.strerror}",
                hint="see the limits of the account, service or container: processes, open files",
            ) from None

    def replace(self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue] = _NONE) -> None:
        """Make these the only values; each file is replaced atomically.

        `previous` are the values before them, during an overlap: the files of the folder `..previous`.

        Raises:
            HostError: there is no room for them.
        """
        # A secret's name never starts with "..", so the new file has no name of a secret.
        _replace_files(self.path, values, previous, new=self.path / "..next", user=None)

    def close(self) -> None:
        """Remove the folder and its files; the reaper process then ends."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._reaper >= 0:
            os.close(self._reaper)
            self._reaper = -1

    def __enter__(self) -> SecretsFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ContainerFolder:
    """The secrets of one container. `path` is mounted there as /secrets; each is a file 0400 of its user.

    `path` lies in a folder 0700 of this account, so other accounts of this machine cannot
    reach it. Files appear, and are replaced, as a whole. If the process is killed, the
    reaper removes the folder.
    """

    def __init__(self, parent: Path, user: tuple[int, int] | None) -> None:
        """`parent` is the folder 0700. `user` is as in `create`."""
        self._parent = parent
        self.path = parent / "secrets"
        self._user = user

    @classmethod
    def create(cls, run_id: str, user: tuple[int, int] | None) -> ContainerFolder:
        """Create the folder, without files.

        `run_id` goes into its name, for `remove_all`. `user` is the user and group id of
        the files; None means this process's own.

        Raises:
            HostError: there is no folder in memory that this account may write to, or no room in it.
        """
        folder = cls(_make_folder(f"{_PREFIX}{run_id}-"), user)
        try:
            folder.path.mkdir()
            folder.path.chmod(0o755)  # the container's user has to be able to enter it
        except OSError as error:
            folder.close()
            raise _cannot_make(error, folder.path.parent.parent) from None
        return folder

    def replace(self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue] = _NONE) -> None:
        """See `SecretsFolder.replace`."""
        _replace_files(self.path, values, previous, new=self._parent / "next", user=self._user)

    def close(self) -> None:
        """Remove the folder and its files."""
        shutil.rmtree(self._parent, ignore_errors=True)


def _make_folder(prefix: str) -> Path:
    """A new folder 0700 in memory.

    Raises:
        HostError: there is no folder in memory that this account may write to, or no room in it.
    """
    memory = _memory()
    try:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=memory))
    except OSError as error:
        raise _cannot_make(error, memory) from None


def _cannot_make(error: OSError, memory: Path) -> HostError:
    return HostError(
        f"cannot make a folder for secrets in {memory}: {error.strerror}",
        hint="`df` and `df -i` show how full it is",
    )


def _replace_files(
    folder: Path,
    values: Mapping[str, SecretValue],
    previous: Mapping[str, SecretValue],
    *,
    new: Path,
    user: tuple[int, int] | None,
) -> None:
    """Make these values the only files of `folder`. Each is written as `new`, then renamed.

    The previous values come first, so that a replaced value is always in one of the two places.
    """
    kept = folder / PREVIOUS
    try:
        if previous:
            kept.mkdir(exist_ok=True)
            kept.chmod(0o755)
            _replace_in(kept, previous, new, user)
        _replace_in(folder, values, new, user)
        if not previous and kept.exists():
            shutil.rmtree(kept)
    except OSError as error:
        raise HostError(f"cannot write secrets to {folder}: {error.strerror}") from None


def _replace_in(
    folder: Path, values: Mapping[str, SecretValue], new: Path, user: tuple[int, int] | None
) -> None:
    for name, value in values.items():
        check_name(name)
        _write(new, value, user)
        new.rename(folder / name)
    for file in folder.iterdir():
        if file.name not in values and file.name != PREVIOUS:
            file.unlink()


def _write(path: Path, value: SecretValue, user: tuple[int, int] | None) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    with os.fdopen(fd, "wb") as file:
        file.write(value.reveal())
        if user is not None:
            os.fchown(file.fileno(), *user)


def remove_all(matches: Callable[[str], bool]) -> None:
    """Remove the folders of containers whose run id matches."""
    for folder in _memory().glob(f"{_PREFIX}*-*-*-*"):
        run_id = folder.name.removeprefix(_PREFIX).rpartition("-")[0]
        # Other accounts can put links and folders with any name there: nothing of theirs may end this.
        with contextlib.suppress(OSError):
            if matches(run_id) and folder.lstat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _memory() -> Path:
    """A folder in memory that this account may write to: the login session's, else the shared one."""
    runtime = Path(f"/run/user/{os.getuid()}")
    for path in (runtime, Path("/dev/shm")):  # noqa: S108  # checked to be in memory; mkdtemp makes it 0700
        if os.access(path, os.W_OK | os.X_OK) and is_in_memory(path):
            return path
    raise HostError(
        "there is no memory-backed folder to put secrets in",
        hint="mount a tmpfs on /dev/shm; secrets are never written to disk",
    )


def _start_reaper(folder: Path) -> int:
    """Fork a process that removes `folder` when the returned descriptor is closed, for whatever reason.

    Raises:
        OSError: the system gives no more processes or files.
    """
    read, write = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if child:
        os.close(read)
        return write
    try:  # the child: nothing below may return into the caller's code
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(write)
        for stream in (0, 1, 2):  # else readers of the caller's pipes would wait for this process
            os.close(stream)
        os.read(read, 1)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)
