"""Symbolic links at the paths where models expect their weights.

A machine that is not a container has no mounts of its own. A link can be made
where the account may write. It stays when the server ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import time
from pathlib import Path

from gusset.errors import Conflict, Denied, HostError
from gusset.portable import CLOSE_ON_EXEC, NO_FOLLOW, is_disk_full, write_private_file
from gusset.trusted_folders import untrusted_part
from gusset.weights.cache import WeightsCache, disk_error
from gusset.weights.download import Download

_LINK_TIMEOUT = 10.0  # seconds until another start has made its link
_INTERVAL = 0.05


class Mounts:
    """The links that this process uses. While it does, no other process changes them."""

    def __init__(self, cache: WeightsCache) -> None:
        self._cache = cache
        self._locked: dict[str, int] = {}  # path -> the descriptor that holds its lock

    def check(self, download: Download) -> None:
        """Raise early, before the download, what `mount` would raise.

        Raises:
            Conflict: something is at the path that gusset did not put there.
            Denied: another account could have put there what is at the path, or can replace it.
            HostError: the account may not write there.
        """
        assert download.mount is not None  # noqa: S101  # the caller checks
        path = Path(download.mount)
        _check_not_planted(download, path)
        if self._link_at(path) is None:
            self._check_empty(download, path)
        existing = next(parent for parent in path.parents if os.path.lexists(parent))
        if self._link_at(path) is None and not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            raise _not_writable(download, path)

    def mount(self, download: Download, folder: Path) -> None:
        """Have the path lead to this folder, and keep it so until `close`.

        Raises:
            Conflict: something is at the path that gusset did not put there, or a server uses it.
            Denied: another account could have put there what is at the path, or can replace it.
            HostError: the account may not write there.
        """
        assert download.mount is not None  # noqa: S101  # the caller checks
        path = Path(download.mount)
        _check_not_planted(download, path)
        if self._lock(path, folder):
            try:
                self._link(download, path, folder)
            finally:
                fcntl.flock(self._locked[str(path)], fcntl.LOCK_SH)
        elif self._link_at(path) != folder:
            raise Conflict(
                f"{download.location}: another server uses {path}, and with other content",
                hint="stop that server, or name a revision, so that both use the same",
            )

    def close(self) -> None:
        """Let other processes change the links."""
        for descriptor in self._locked.values():
            os.close(descriptor)
        self._locked.clear()

    def _lock(self, path: Path, folder: Path) -> bool:
        """Lock the path: True for this process only, False if others use it, too."""
        descriptor = self._locked.get(str(path))
        if descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC | NO_FOLLOW
            descriptor = os.open(self._cache.mount_lock(str(path)), flags, 0o600)
            self._locked[str(path)] = descriptor
        deadline = time.monotonic() + _LINK_TIMEOUT
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if self._link_at(path) == folder or time.monotonic() > deadline:
                    return False
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            time.sleep(_INTERVAL)

    def _link(self, download: Download, path: Path, folder: Path) -> None:
        current = self._link_at(path)
        if current == folder:
            return
        if current is None:
            self._check_empty(download, path)
        # First the record: a link without one would not be recognized as gusset's own. It has both
        # targets, since the change may fail, or this process be killed.
        try:
            self._record(path, folder, *([current] if current else []))
        except OSError as error:
            raise disk_error(error, self._cache.root) from None
        new = path.with_name(f".gusset-{os.urandom(8).hex()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.symlink_to(folder)
            if path.is_dir() and not path.is_symlink():
                path.rmdir()  # it is empty
            new.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            full = is_disk_full(error)
            raise (disk_error(error, path.parent) if full else _not_writable(download, path)) from None
        with contextlib.suppress(OSError):  # the record with both is right, too
            self._record(path, folder)

    def _record(self, path: Path, *targets: Path) -> None:
        """Record what a link at this path may lead to if gusset made it."""
        write_private_file(self._cache.mount_record(str(path)), b"\0".join(map(os.fsencode, targets)))

    def _link_at(self, path: Path) -> Path | None:
        """What the link leads to that gusset has put at this path; None if there is no such link."""
        try:
            target = path.readlink()
            if target.is_relative_to(self._cache.root):
                return target
            recorded = self._cache.mount_record(str(path)).read_bytes().split(b"\0")
        except OSError:
            return None
        return target if os.fsencode(target) in recorded else None

    def _check_empty(self, download: Download, path: Path) -> None:
        if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise Conflict(
                f"{download.location}: {path} is there already, and gusset did not make it",
                hint="move it away, or name another folder",
            )


def _check_not_planted(download: Download, path: Path) -> None:
    """Refuse a path that leads through what another account has put into a folder for everybody."""
    if (found := untrusted_part(path)) is not None:
        raise Denied(
            f"{download.location}: other accounts could change where {path} leads: everybody may write to "
            f"{found.parent}",
            hint="name a folder that only this account can write to",
        )


def _not_writable(download: Download, path: Path) -> HostError:
    parent = shlex.quote(str(path.parent))
    return HostError(
        f"{download.location}: this account cannot create {path}",
        hint=f'make its folder once:\n  sudo mkdir -p {parent} && sudo chown "$USER" {parent}',
    )
