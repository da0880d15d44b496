"""The folder in memory that `gusset agent` keeps current, in the layout of Kubernetes' volumes.

    /secrets/db_password -> ..data/db_password
    /secrets/..data      -> ..2026_11_28_19_05_33.5be1c0a79d3f4c21
    /secrets/..2026_11_28_19_05_33.5be1c0a79d3f4c21/db_password

A *generation* is a folder with the values of one moment. It is written as a
whole, then one rename of the link `..data` replaces all values at once. If the
agent is killed at any moment, the old generation or the new one is in place;
the next agent removes what is left of the other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from gusset.errors import Conflict, HostError, UsageError
from gusset.portable import is_in_memory
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

_CURRENT = "..data"  # the link to the current generation
_NEXT = "..data_tmp"  # what becomes `..data`
PREVIOUS = "..previous"  # of a generation: the folder with values that a rotation still keeps readable
_GENERATION = re.compile(r"\.\.\d{4}(_\d\d){5}\.[0-9a-f]{16}")

# Seconds for which a replaced generation stays: a reader that has followed `..data` opens its files there.
LINGER = 0.1

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class AgentFolder:
    """A folder in memory with secrets as files 0400 that only its owner can read.

    One agent at a time uses a folder: it holds a lock on the folder itself. All
    that it writes is in the folder.
    """

    def __init__(self, path: Path, descriptor: int, *, linger: float) -> None:
        """`descriptor` is of the folder, locked. Use `open`."""
        self.path = path
        self._linger = linger
        self._fd = descriptor
        status = os.fstat(descriptor)
        # The files are those of the folder's owner, also if root runs the agent for another account.
        self._owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid != 0 else None

    @classmethod
    def open(cls, path: Path, *, linger: float = LINGER) -> AgentFolder:
        """Lock the folder, and remove what a killed agent left of an unfinished change.

        It is created if it does not exist. Its current values stay.

        Raises:
            HostError: it is not in memory, or this account may not use it.
            UsageError: it is not a folder, or has files that are not an agent's.
            Conflict: another agent uses it.
        """
        with _host_errors(f"{path} cannot be used"):
            folder = cls(path, _open_in_memory(path), linger=linger)
            try:
                folder._check_owner()
                folder._claim()
            except BaseException:
                folder.close()
                raise
        return folder

    def _check_owner(self) -> None:
        """Refuse a folder of an account that could exchange the files, or wants to be given them.

        Root may write to the folder of an account, unless everybody could have created it: as in /dev/shm.
        """
        owner = os.fstat(self._fd).st_uid
        if owner in (0, os.geteuid()) or (os.geteuid() == 0 and not _may_be_planted(self.path)):
            return
        raise HostError(
            f"{self.path} belongs to another account",
            hint="remove it, and let the agent create it; root may use another account's folder only "
            "where nobody else could have created it, as below /run",
        )

    def _claim(self) -> None:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._fd):
            raise HostError(f"this account may not write to {self.path}", hint="run the agent as its owner")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another agent uses {self.path}",
                hint="give each agent its own folder, or stop the other one",
            ) from None
        self._check_entries()
        self._remove_others()

    def close(self) -> None:
        """Unlock the folder. Its files stay."""
        os.close(self._fd)

    @property
    def generation(self) -> str | None:
        """The name of the current generation; it changes with each change of values. None without values."""
        return self._readlink(_CURRENT)

    def replace(
        self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue] | None = None
    ) -> None:
        """Make these the only values, all at once. Files with just these values are left as they are.

        `previous` are values that were replaced and that readers may still use. They
        are at `..previous/NAME`.

        Raises:
            InvalidName: a name that cannot be that of a file.
            HostError: there is no room, or the folder cannot be written; the old values stay.
        """
        files = {check_name(name): value.reveal() for name, value in values.items()}
        older = {check_name(name): value.reveal() for name, value in (previous or {}).items()}
        with _host_errors(f"cannot write secrets to {self.path}"):
            if self._holds(files, older):
                return
            has_readers = self.generation is not None
            try:
                self._swap(files, older)
            except OSError:
                self._remove_quietly()
                raise
        if has_readers:
            time.sleep(self._linger)
        self._remove_quietly()

    def empty(self) -> None:
        """Remove all values. Raises HostError."""
        with _host_errors(f"cannot remove secrets from {self.path}"):
            self._unlink(_CURRENT)
            self._remove_others()

    def _swap(self, files: Mapping[str, bytes], older: Mapping[str, bytes]) -> None:
        generation = f"..{datetime.now(UTC):%Y_%m_%d_%H_%M_%S}.{token_hex(8)}"
        self._write_folder(self._fd, generation, files, {PREVIOUS: older} if older else {})
        # Links of new names come before the rename, and lead nowhere until then: all appear at once.
        for name in [*files, PREVIOUS] if older else files:
            if not self._is_link_of_name(name):
                self._link(f"{_CURRENT}/{name}", name)
        self._unlink(_NEXT)
        self._link(generation, _NEXT)
        os.rename(_NEXT, _CURRENT, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _write_folder(
        self, parent: int, name: str, files: Mapping[str, bytes], folders: Mapping[str, Mapping[str, bytes]]
    ) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        folder = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
        try:
            for file, value in files.items():
                self._write_file(folder, file, value)
            for inner, its_files in folders.items():
                self._write_folder(folder, inner, its_files, {})
            os.fchmod(folder, 0o500)
            if self._owner is not None:
                os.fchown(folder, *self._owner)
        finally:
            os.close(folder)

    def _write_file(self, folder: int, name: str, value: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o400, dir_fd=folder)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            os.fchmod(descriptor, 0o400)  # whatever the umask
            view = memoryview(value)
            while view:
                view = view[file.write(view) :]
            if self._owner is not None:
                os.fchown(descriptor, *self._owner)

    def _link(self, target: str, name: str) -> None:
        os.symlink(target, name, dir_fd=self._fd)
        if self._owner is not None:
            os.chown(name, *self._owner, dir_fd=self._fd, follow_symlinks=False)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def _holds(self, files: Mapping[str, bytes], older: Mapping[str, bytes]) -> bool:
        """Whether these are the current values, each with its link."""
        if (generation := self._readlink(_CURRENT)) is None:
            return False
        expected = {*files, PREVIOUS} if older else {*files}
        links = {name for name in _entries(self._fd) if self._is_link_of_name(name)}
        with contextlib.suppress(OSError):  # then it is replaced
            return links == expected and _has(self._fd, generation, files, {PREVIOUS: older} if older else {})
        return False

    def _check_entries(self) -> None:
        """Refuse a folder with files of others: the agent removes what it finds in its folder."""
        foreign = sorted(name for name in _entries(self._fd) if not self._is_own(name))
        if foreign:
            raise UsageError(
                f"{self.path} contains files that no agent created: {', '.join(foreign[:5])}",
                hint="name a folder for the secrets alone: files in it are removed",
            )

    def _is_own(self, name: str) -> bool:
        if _GENERATION.fullmatch(name):
            return stat.S_ISDIR(os.lstat(name, dir_fd=self._fd).st_mode)
        if name in (_CURRENT, _NEXT):
            return _GENERATION.fullmatch(self._readlink(name) or "") is not None
        return self._is_link_of_name(name)

    def _is_link_of_name(self, name: str) -> bool:
        return self._readlink(name) == f"{_CURRENT}/{name}"

    def _remove_others(self) -> None:
        """Remove all generations but the current one, and links that lead nowhere."""
        current = self._readlink(_CURRENT)
        names = self._names_in(current)
        if names is None:
            self._unlink(_CURRENT)
        for name in _entries(self._fd):
            if _GENERATION.fullmatch(name) and name != current:
                _remove_folder(self._fd, name)
            elif name == _NEXT or (self._is_link_of_name(name) and name not in (names or ())):
                self._unlink(name)

    def _remove_quietly(self) -> None:
        """Like `_remove_others`, but what cannot be removed now is left for the next change."""
        with contextlib.suppress(OSError):
            self._remove_others()

    def _names_in(self, generation: str | None) -> list[str] | None:
        """The names of a generation's files; None if it does not exist."""
        if generation is None:
            return None
        with contextlib.suppress(FileNotFoundError), _opened(self._fd, generation) as folder:
            return _entries(folder)
        return None

    def _readlink(self, name: str) -> str | None:
        """Where a link leads; None if there is no such link."""
        try:
            return os.readlink(name, dir_fd=self._fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return None
            raise


def _open_in_memory(path: Path) -> int:
    """A descriptor of the folder, which is created if it does not exist.

    Raises:
        HostError: its file system is not in memory.
        UsageError: it is not a folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise UsageError(f"{path} is not a folder") from None
    except FileNotFoundError:
        os.close(_open_in_memory(path.parent))  # before anything is created
        path.mkdir(0o700)
        return _open_in_memory(path)
    if not is_in_memory(Path(f"/proc/self/fd/{descriptor}")):  # whatever `path` leads to by now
        os.close(descriptor)
        raise HostError(
            f"{path} is not in memory, and secrets are never written to disk",
            hint="name a folder on a tmpfs: below /dev/shm or /run, a `RuntimeDirectory=` of systemd, "
            "a volume of type tmpfs, or an emptyDir with `medium: Memory`",
        )
    return descriptor


def _may_be_planted(path: Path) -> bool:
    """Whether any account could have put `path`, or a part of it, where it is: as in /dev/shm."""
    for each in {path.absolute(), *path.absolute().parents, path.resolve(), *path.resolve().parents}:
        mode = each.parent.stat().st_mode
        is_protected = mode & stat.S_ISVTX and each.lstat().st_uid == 0
        if mode & stat.S_IWOTH and each != each.parent and not is_protected:
            return True
    return False


def _entries(folder: int) -> list[str]:
    return os.listdir(folder)  # of a descriptor: `Path` has no such method


@contextlib.contextmanager
def _opened(parent: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _has(
    parent: int, name: str, files: Mapping[str, bytes], folders: Mapping[str, Mapping[str, bytes]]
) -> bool:
    """Whether a folder has just these files and folders."""
    with _opened(parent, name) as folder:
        return (
            set(_entries(folder)) == {*files, *folders}
            and all(_read(folder, file, len(value) + 1) == value for file, value in files.items())
            and all(_has(folder, inner, its_files, {}) for inner, its_files in folders.items())
        )


def _read(folder: int, name: str, size: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(size)


def _remove_folder(parent: int, name: str) -> None:
    with _opened(parent, name) as folder:
        os.fchmod(folder, 0o700)  # else its files could not be removed
        for inner in _entries(folder):
            if stat.S_ISDIR(os.lstat(inner, dir_fd=folder).st_mode):
                _remove_folder(folder, inner)
            else:
                os.unlink(inner, dir_fd=folder)
    os.rmdir(name, dir_fd=parent)


@contextlib.contextmanager
def _host_errors(what: str) -> Iterator[None]:
    """Raise HostError for an OSError within the context."""
    try:
        yield
    except OSError as error:
        raise HostError(f"{what}: {os.strerror(error.errno or errno.EIO).lower()}") from None
