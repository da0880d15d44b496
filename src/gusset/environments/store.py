"""Keeps the environments of model folders in the cache: made once, used by several starts, removed.

An environment belongs to a key, a hash of all that it was made from. `KEY/` contains
attempts, each in a folder of its own, and `complete.json`, which names the one that
is complete and is written last. So a start that is killed leaves nothing that another
would use, even if its installer runs on for a moment. `KEY.lock` is locked
exclusively by whoever makes or removes the environment, and shared by whoever uses it.
"""

# Imports in functions: Windows, where `gusset check` looks environments up, has no fcntl.

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gusset.environments.last_pythons import LastPythons, environments_folder
from gusset.errors import Conflict, HostError, NotFound
from gusset.portable import CLOSE_ON_EXEC, NO_FOLLOW, is_disk_full, sync_file_system, write_private_file
from gusset.trusted_folders import check_cache_folder

_COMPLETE = "complete.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentInfo:
    """A complete environment: the model folder that it was made for, and its Python's version."""

    key: str
    name: str
    folder: str
    python_version: str
    path: str
    made: float
    format: int = _FORMAT

    @property
    def python(self) -> Path:
        return Path(self.path, "bin", "python")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEnvironment:
    """An environment as `env list` shows it. `used` is when it was used last, in seconds since 1970."""

    info: EnvironmentInfo
    used: float
    in_use: bool
    size: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A use of an environment: nobody removes it until `close`, or until this process ends."""

    info: EnvironmentInfo
    _lock: int

    def close(self) -> None:
        os.close(self._lock)


class EnvironmentStore:
    """The environments in one folder of the cache."""

    def __init__(self, cache: Path) -> None:
        self.folder = environments_folder(cache)
        self._last_pythons = LastPythons(cache)

    def find(self, key: str) -> EnvironmentInfo | None:
        """The complete environment of a key, if its Python is still there. Locks nothing."""
        info = self._info(key)
        return info if info is not None and os.access(info.python, os.X_OK) else None

    def use(
        self,
        key: str,
        make: Callable[[Path], EnvironmentInfo],
        *,
        on_wait: Callable[[], object] = lambda: None,
    ) -> Lease:
        """The environment of a key; if there is none, `make` makes it in the folder that it is given.

        `on_wait` is called if another process is making or removing it just now.

        Raises:
            HostError: the cache folder cannot be written, or other accounts can write to it.
        """
        self._prepare_folder()
        while True:
            lock = self._lock(key, exclusive=False, on_wait=on_wait)
            if (info := self.find(key)) is not None:
                self._stamp(key)
                return Lease(info, lock)
            os.close(lock)
            lock = self._lock(key, exclusive=True, on_wait=on_wait)
            try:
                if self.find(key) is None:
                    self._make(key, make)
            finally:
                os.close(lock)

    def environments(self) -> list[StoredEnvironment]:
        """All complete environments, the most recently used first."""
        found = []
        for key in self._keys():
            if (info := self._info(key)) is not None:
                found.append(
                    StoredEnvironment(
                        info=info,
                        used=self._used(key),
                        in_use=self._is_locked(key),
                        size=_size(self.folder / key),
                    )
                )
        return sorted(found, key=lambda each: -each.used)

    def remove(self, key: str) -> None:
        """Remove an environment.

        Raises:
            NotFound: there is none.
            Conflict: a model runs in it, or it is being made.
        """
        self._check_folder()
        if key not in self._keys():
            raise NotFound(f"there is no environment {key}", hint="`gusset env list` shows them")
        lock = self._try_lock(key, exclusive=True)
        if lock is None:
            raise Conflict(
                f"the environment {key} is in use", hint="stop the model that runs in it, then try again"
            )
        try:
            self._delete(key)
        finally:
            os.close(lock)
        self._last_pythons.forget_missing()

    def prune(self, *, unused_since: float) -> list[EnvironmentInfo]:
        """Remove what was not used since then, and what killed starts have left; returns the removed ones."""
        self._check_folder()
        removed = []
        for key in self._keys():
            info = self._info(key)
            if info is not None and self._used(key) >= unused_since:
                continue
            lock = self._try_lock(key, exclusive=True)
            if lock is None:
                continue
            try:
                if info is None or self._used(key) < unused_since:  # it may have been used meanwhile
                    self._delete(key)
                    removed += [info] if info is not None else []
            finally:
                os.close(lock)
        self._last_pythons.forget_missing()
        return removed

    def _make(self, key: str, make: Callable[[Path], EnvironmentInfo]) -> None:
        home = self.folder / key
        with _host_errors(home):
            home.mkdir(mode=0o700, exist_ok=True)
            (home / _COMPLETE).unlink(missing_ok=True)
            self._delete_attempts(home)
            attempt = home / os.urandom(4).hex()
        try:
            info = make(attempt)
            with _host_errors(home):
                sync_file_system(home)  # after a power failure no marker names files that are not there
                write_private_file(home / _COMPLETE, json.dumps(asdict(info)).encode())
                self._stamp(key)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise

    def _info(self, key: str) -> EnvironmentInfo | None:
        try:
            data = json.loads((self.folder / key / _COMPLETE).read_bytes())
            info = EnvironmentInfo(**data)
        except (OSError, ValueError, TypeError):
            return None
        return info if info.format == _FORMAT and info.key == key else None

    def _keys(self) -> Iterator[str]:
        with suppress(OSError):
            yield from sorted(each.name for each in self.folder.iterdir() if each.is_dir())

    def _stamp(self, key: str) -> None:
        with suppress(OSError):
            os.utime(self.folder / key / _COMPLETE)

    def _used(self, key: str) -> float:
        try:
            return (self.folder / key / _COMPLETE).stat().st_mtime
        except OSError:
            return 0.0

    def _delete(self, key: str) -> None:
        """Delete an environment whose lock this process holds: the marker first."""
        home = self.folder / key
        with _host_errors(home):
            (home / _COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(home)
            self._lock_file(key).unlink(missing_ok=True)

    def _delete_attempts(self, home: Path) -> None:
        for each in home.iterdir():
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)  # a killed start's installer may still write there

    def _lock_file(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _lock(self, key: str, *, exclusive: bool, on_wait: Callable[[], object]) -> int:
        lock = self._try_lock(key, exclusive=exclusive)
        if lock is None:
            on_wait()
            lock = self._open_locked(key, _operation(exclusive=exclusive))
        return lock

    def _try_lock(self, key: str, *, exclusive: bool) -> int | None:
        import fcntl

        try:
            return self._open_locked(key, _operation(exclusive=exclusive) | fcntl.LOCK_NB)
        except BlockingIOError:
            return None

    def _open_locked(self, key: str, operation: int) -> int:
        """Open and lock the lock file; again if another process has removed it meanwhile."""
        import fcntl

        path = self._lock_file(key)
        while True:
            with _host_errors(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC | NO_FOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, operation)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_locked(self, key: str) -> bool:
        lock = self._try_lock(key, exclusive=True)
        if lock is not None:
            os.close(lock)
        return lock is None

    def _prepare_folder(self) -> None:
        with _host_errors(self.folder):
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_folder()

    def _check_folder(self) -> None:
        """Refuse a folder in which others could put code that models then run."""
        check_cache_folder(self.folder, own=[self.folder.parent])


def _operation(*, exclusive: bool) -> int:
    import fcntl

    return fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH


def _size(folder: Path) -> int:
    """The bytes of its files; a file with several names, as in uv's cache, counts fully."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118  # many files
    return total


@contextmanager
def _host_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise HostError(
            f"{path} cannot be written: {reason}",
            hint="free some space, for example with `gusset env prune`"
            if is_disk_full(error)
            else "make it writable, or set GUSSET_CACHE to another folder",
        ) from None


def days_ago(days: float) -> float:
    """The time so many days ago, in seconds since 1970."""
    return time.time() - days * 86_400
