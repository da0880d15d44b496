"""Where a runtime's secrets come from: one protocol of two verbs, and the plain sources.

`read` answers for all names at once; a name that it lacks is simply absent
from the answer. *Denied* and *Unreachable* are errors, never absences: only
"missing" may fall through to the next source.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gusset.errors import Denied, GussetError, InvalidValue, Unreachable
from gusset.secrets.name import check_name
from gusset.secrets.value import MAX_BYTES, SecretValue

ENVIRONMENT_PREFIX = "TRUSS_SECRET_"

_RETRY_AFTER = 0.05  # seconds; long enough for whoever replaces a file to finish
_POLL = 0.5  # seconds; keeps the promises of `watch` with room to spare
_STOP_POLL = 0.2
_RACY = 0.1  # seconds; file times are no finer than some milliseconds


@dataclass(frozen=True, slots=True)
class Delivered:
    """One secret as a source delivered it.

    `version` is the store's number, None where a source has none (a folder,
    the environment). `origin` says where it came from, for people:
    "the vault", "/secrets", "TRUSS_SECRET_x".
    """

    value: SecretValue
    version: int | None
    origin: str


class SecretSource(Protocol):
    """What serving and containers know of secrets' whereabouts."""

    @property
    def last_error(self) -> str | None:
        """Why the source cannot follow changes at the moment, or None."""

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that the source has, keyed by the spelling asked for.

        Raises:
            Denied: the source refuses.
            Unreachable: the source did not answer.
        """

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Block, and yield each time some of `names` may now read differently.

        Returns within a second after `stop` is set. Trouble on the way is
        retried inside and shows at the next `read`; it never ends the watch.
        """


class FolderSource:
    """One file per secret in a folder, as Kubernetes, Docker and Truss mount them.

    A file's exact bytes are the value. `named` says that a person named the
    folder: then it has to be there; the default folder may be absent, which
    means that it has no secrets.
    """

    last_error: str | None = None

    def __init__(self, path: Path, *, named: bool = True) -> None:
        self._path = path
        self._named = named
        self._at_read: dict[str, _Signature] = {}

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that have a file.

        Raises:
            InvalidName: one of `names` is no secret's name; checked before any path is made of it.
            InvalidValue: a file is larger than a secret may be.
            Denied: folder or file may not be read.
            Unreachable: folder or file could not be read, or a named folder is absent.
        """
        for name in names:
            check_name(name)
        # Looked at before the values: what changes in between is noticed by `watch`.
        self._at_read = {name: _signature(self._path / name) for name in names}
        if not self._is_there():
            return {}
        found = self._read_all(names)
        missing = [name for name in names if name not in found]
        if missing:  # one more time: a file that is being replaced by other than rename is away for a moment
            time.sleep(_RETRY_AFTER)
            found |= self._read_all(missing)
        return {name: found[name] for name in names if name in found}

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield after each change since the last `read`.

        A change is seen by inotify where there is one, else by a look every half second.
        """
        paths = [self._path / check_name(name) for name in names]
        known = [self._at_read.get(name) for name in names]
        seen = None if any(sign is None or _is_racy(sign) for sign in known) else known
        with _wakeup(self._path) as sleep:
            while not stop.is_set():
                now = [_signature(path) for path in paths]
                if now != seen:
                    # A file that changed this instant may change again without a new time: look twice.
                    seen = None if any(map(_is_racy, now)) else now
                    yield
                sleep(_POLL, stop)

    def _is_there(self) -> bool:
        try:
            self._path.stat()
        except FileNotFoundError:
            if self._named:
                raise Unreachable(
                    f"there is no folder {self._path}", hint="name the folder that holds one file per secret"
                ) from None
            return False
        except OSError as error:
            raise _as_gusset(error, self._path) from None
        return True

    def _read_all(self, names: Collection[str]) -> dict[str, Delivered]:
        found = {}
        for name in names:
            path = self._path / name
            try:
                value = _read_file(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _as_gusset(error, path) from None
            found[name] = Delivered(SecretValue(value), None, str(path))
        return found


class EnvironmentSource:
    """`TRUSS_SECRET_{name}` in an environment, copied when this is made.

    The bytes are exact, also those that are not UTF-8. The caller warns that
    the environment is no good place for secrets; `Delivered.origin` is the
    variable's name.
    """

    last_error: str | None = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._values = {
            key: SecretValue(os.fsencode(text))
            for key, text in environ.items()
            if key.startswith(ENVIRONMENT_PREFIX)
        }

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that have a variable, set and perhaps empty.

        Raises:
            InvalidName: one of `names` is no secret's name.
            InvalidValue: a value is larger than a secret may be.
        """
        found = {}
        for name in names:
            key = ENVIRONMENT_PREFIX + check_name(name)
            if key in self._values:
                _check_size(len(self._values[key]), key)
                found[name] = Delivered(self._values[key], None, key)
        return found

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Never yields: the environment of a running process is taken as fixed."""
        stop.wait()
        yield from ()


class ChainSource:
    """Sources asked in order: each gets the names that those before it lack.

    Only what is missing falls through; an error of any source is the chain's.
    """

    def __init__(self, sources: Sequence[SecretSource]) -> None:
        self._sources = tuple(sources)

    @property
    def last_error(self) -> str | None:
        """The first error that any of the sources has."""
        return next((source.last_error for source in self._sources if source.last_error), None)

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Each of `names` from the first source that has it.

        Raises:
            Denied, Unreachable: as the sources do; later sources are then not asked.
        """
        found: dict[str, Delivered] = {}
        for source in self._sources:
            rest = [name for name in names if name not in found]
            if not rest:
                break
            found.update(source.read(rest))
        return {name: found[name] for name in names if name in found}

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when any source does; several changes at a time may be one yield."""
        changed, ended = threading.Event(), threading.Event()

        def follow(source: SecretSource) -> None:
            for _ in source.watch(names, ended):
                changed.set()

        threads = [
            threading.Thread(target=follow, args=(source,), name="gusset-watch", daemon=True)
            for source in self._sources
        ]
        try:
            for thread in threads:
                thread.start()
            while not stop.is_set():
                if changed.wait(_STOP_POLL):
                    changed.clear()
                    yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(1 - _STOP_POLL)


def _read_file(path: Path) -> bytes:
    """The exact bytes of a regular file. Links are followed: Kubernetes mounts secrets as links."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreachable(f"{path} is not a regular file", hint="put the value in a file of that name")
        data = b""
        while len(data) <= MAX_BYTES and (piece := os.read(descriptor, MAX_BYTES + 1)):
            data += piece
    finally:
        os.close(descriptor)
    _check_size(len(data), path)
    return data


def _check_size(size: int, origin: object) -> None:
    if size > MAX_BYTES:
        raise InvalidValue(
            f"{origin} has more than {MAX_BYTES:,} bytes, the most that a secret holds",
            hint="keep large files elsewhere and store the key that opens them",
        )


def _as_gusset(error: OSError, path: Path) -> GussetError:
    reason = os.strerror(error.errno or errno.EIO).lower()
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(f"{path} may not be read: {reason}", hint="run as its owner, or change its mode")
    return Unreachable(
        f"{path} could not be read: {reason}", hint="see that its file system is mounted and sound"
    )


_Signature = tuple[int, ...] | None


def _signature(path: Path) -> _Signature:
    """What changes whenever the file does; None while it cannot be looked at."""
    try:
        now = path.stat()
    except OSError:
        return None
    return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def _is_racy(signature: _Signature) -> bool:
    return signature is not None and abs(time.time() - signature[-1] / 1e9) < _RACY


@contextlib.contextmanager
def _wakeup(folder: Path) -> Iterator[Any]:
    """A function `sleep(seconds, stop)` that returns early when something happens in `folder`."""
    inotify = _Inotify.open()
    if inotify is None:
        yield lambda seconds, stop: stop.wait(seconds)
        return
    try:
        yield lambda seconds, stop: inotify.wait(folder, seconds)
    finally:
        inotify.close()


class _Inotify:
    """Linux's inotify, just enough to be woken; without it (or without a free handle) polling does."""

    # close_write, moved_from, moved_to, create, delete, delete_self, move_self, attrib
    _EVENTS = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x4

    def __init__(self, libc: Any, descriptor: int) -> None:
        self._libc = libc
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    @classmethod
    def open(cls) -> _Inotify | None:
        import ctypes  # here: only those who watch pay for it

        libc = ctypes.CDLL(None)
        if not hasattr(libc, "inotify_init1"):
            return None
        descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        return cls(libc, descriptor) if descriptor >= 0 else None

    def wait(self, folder: Path, seconds: float) -> None:
        # Anew each time, which costs nothing when it is there: the folder may have been replaced.
        self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), self._EVENTS)
        if self._poll.poll(seconds * 1000):
            with contextlib.suppress(BlockingIOError):
                os.read(self._descriptor, 65_536)

    def close(self) -> None:
        os.close(self._descriptor)
