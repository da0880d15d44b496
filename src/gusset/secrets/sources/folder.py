"""Secrets as files in a folder."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from gusset.errors import Denied, GussetError, InvalidName, Unreachable
from gusset.portable import CLOSE_ON_EXEC
from gusset.secrets.name import check_name
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import MAX_BYTES, SecretValue, check_length

_RETRY_AFTER = 0.05  # seconds; long enough for another process to finish replacing a file
_POLL = 0.5  # seconds between looks without inotify; a watch has to end within a second
_RACY = 0.1  # seconds; the times of files are only precise to some milliseconds


class FolderSource:
    """One file per secret in a folder, as Kubernetes, Docker and Truss mount them.

    A file's exact bytes are the value. With `must_exist`, an absent folder is an
    error; without, it is a folder without secrets.
    """

    last_error: str | None = None

    def __init__(self, path: Path, *, must_exist: bool = True) -> None:
        self._path = path
        self._must_exist = must_exist
        self._signatures: dict[str, _Signature] = {}

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that have a file.

        Raises:
            InvalidName: one of `names` is not a valid name; checked before any path is made of it.
            InvalidValue: a file is larger than a secret may be.
            Denied: the folder or a file may not be read.
            Unreachable: the folder or a file cannot be read, or the folder does not exist but must.
        """
        for name in names:
            check_name(name)
        # Taken before the values are read: `watch` notices a change in between.
        self._signatures = {name: _signature(self._path / name) for name in names}
        if not self._exists():
            return {}
        found = self._read_files(names)
        missing = [name for name in names if name not in found]
        if missing:  # a file that is being replaced, but not by a rename, is missing for a moment
            time.sleep(_RETRY_AFTER)
            found |= self._read_files(missing)
        return {name: found[name] for name in names if name in found}

    def names(self) -> list[str]:
        """The names of all files, but for hidden ones such as Kubernetes' `..data`.

        Raises:
            InvalidName: a file's name is not valid for a secret.
            Denied, Unreachable: the folder cannot be read, or does not exist but must.
        """
        if not self._exists():
            return []
        try:
            files = [path for path in self._path.iterdir() if path.is_file()]
        except OSError as error:
            raise _translated(error, self._path) from None
        names = sorted(path.name for path in files if not path.name.startswith("."))
        try:
            return [check_name(name) for name in names]
        except InvalidName as error:
            raise InvalidName(
                f"the name of a file in {self._path} cannot be that of a secret: {error.message}",
                hint=f"rename it, or choose secrets by name\n{error.hint}",
            ) from None

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield after each change since the last `read`.

        inotify reports a change at once; without it the files are looked at every half second.
        """
        from gusset.secrets.sources.inotify import folder_wakeup  # needs Linux, where all that watches runs

        paths = [self._path / check_name(name) for name in names]
        at_read = [self._signatures.get(name) for name in names]
        last = None if any(sign is None or _is_racy(sign) for sign in at_read) else at_read
        with folder_wakeup(self._path) as sleep:
            while not stop.is_set():
                now = [_signature(path) for path in paths]
                if now != last:
                    # A file may change twice within the precision of its time: then yield once more.
                    last = None if any(map(_is_racy, now)) else now
                    yield
                sleep(_POLL, stop)

    def _exists(self) -> bool:
        try:
            self._path.stat()
        except FileNotFoundError:
            if self._must_exist:
                raise Unreachable(
                    f"there is no folder {self._path}", hint="name a folder with one file per secret"
                ) from None
            return False
        except OSError as error:
            raise _translated(error, self._path) from None
        return True

    def _read_files(self, names: Collection[str]) -> dict[str, Delivered]:
        found = {}
        for name in names:
            path = self._path / name
            try:
                value = _read_file(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _translated(error, path) from None
            found[name] = Delivered(SecretValue(value), None, str(path))
        return found


def _read_file(path: Path) -> bytes:
    """The exact bytes of a regular file. Links are followed: Kubernetes mounts secrets as links."""
    descriptor = os.open(
        path, os.O_RDONLY | CLOSE_ON_EXEC | getattr(os, "O_NONBLOCK", 0)
    )  # a pipe must not block
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreachable(f"{path} is not a regular file", hint="put the value in a file of that name")
        data = b""
        while len(data) <= MAX_BYTES and (piece := os.read(descriptor, MAX_BYTES + 1)):
            data += piece
    finally:
        os.close(descriptor)
    return check_length(data, path)


def _translated(error: OSError, path: Path) -> GussetError:
    reason = os.strerror(error.errno or errno.EIO).lower()
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(f"{path} may not be read: {reason}", hint="run as its owner, or change its mode")
    return Unreachable(
        f"{path} could not be read: {reason}", hint="check that its file system is mounted and works"
    )


_Signature = tuple[int, ...] | None


def _signature(path: Path) -> _Signature:
    """Numbers that change whenever the file does; None when the file cannot be looked at."""
    try:
        now = path.stat()
    except OSError:
        return None
    return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def _is_racy(signature: _Signature) -> bool:
    """Whether the file changed so recently that another change might leave its times the same."""
    return signature is not None and abs(time.time() - signature[-1] / 1e9) < _RACY
