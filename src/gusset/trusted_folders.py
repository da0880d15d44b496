"""Whether another account could change what is in a folder, or put something else in its place.

A path leads through folders and symbolic links. Who may write to one of those
folders, or owns one of those links, decides what is at the end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from gusset.errors import HostError
from gusset.portable import HAS_POSIX_ACCOUNTS


@dataclass(frozen=True, slots=True)
class FolderProblem:
    """The folder or link that another account controls, and why, as in `belongs to another account`."""

    path: Path
    reason: str


def folder_problem(folder: Path, *, own: Collection[Path] = ()) -> FolderProblem | None:
    """Why others could change what is in `folder`, as far as it exists; None if they cannot.

    Folders above it may be root's, and shared as /tmp is; those in `own` and `folder`
    itself must belong to this account. Its private group may write to all but
    `folder` itself: on many systems each account has one.
    """
    if not HAS_POSIX_ACCOUNTS:
        return None
    for path in _leading_to(folder):
        reason = _foreign_link(path) or _unsafe(
            path, is_own=path == folder or path in own, is_strict=path == folder
        )
        if reason:
            return FolderProblem(path, reason)
    return None


def check_cache_folder(folder: Path, *, own: Collection[Path] = ()) -> None:
    """Check that only this account decides what is in a folder of the cache. For `own` see `folder_problem`.

    Raises:
        HostError: others could put files there, or code that models run.
    """
    if (problem := folder_problem(folder, own=own)) is not None:
        raise HostError(
            f"other accounts can write to the cache folder {folder}: {problem.path} {problem.reason}",
            hint=f"`chown` it to your account and `chmod go-w {problem.path}`, or set GUSSET_CACHE to a "
            "folder that is yours",
        )


def untrusted_part(path: Path) -> Path | None:
    """The first part of a path that another account could have put there, because everybody may write.

    In a folder that is shared as /tmp is, that is what belongs to others; in one
    without the sticky bit it is everything.
    """
    if not HAS_POSIX_ACCOUNTS:
        return None
    for each in sorted(_leading_to(path), key=lambda part: len(part.parts)):
        parent = _status(each.parent)
        if parent is None or not parent.st_mode & 0o002 or each == each.parent:
            continue
        found = each.lstat() if os.path.lexists(each) else None
        is_foreign = found is not None and found.st_uid not in (0, os.geteuid())
        if is_foreign or not parent.st_mode & stat.S_ISVTX:
            return each
    return None


def _leading_to(path: Path) -> Iterator[Path]:
    """The path and all folders above it, and those above the targets of symbolic links among them."""
    seen, waiting = set(), [path.absolute()]
    while waiting:
        target = waiting.pop()
        for each in (target, *target.parents):
            if each in seen:
                continue
            seen.add(each)
            yield each
            if _is_link(each):
                waiting.append(each.parent / each.readlink())


def _foreign_link(path: Path) -> str | None:
    is_foreign = _is_link(path) and path.lstat().st_uid not in (0, os.geteuid())
    return "is a link that belongs to another account" if is_foreign else None


def _unsafe(path: Path, *, is_own: bool, is_strict: bool) -> str | None:
    status = _status(path)
    if status is None:
        return None
    if status.st_uid != os.geteuid() and (is_own or status.st_uid != 0):
        return "belongs to another account"
    is_shared_safely = not is_own and status.st_mode & stat.S_ISVTX
    writable = status.st_mode & 0o022
    if writable == 0o020 and not is_strict and _is_private_group(status.st_gid):
        return None
    return "can be written by others" if writable and not is_shared_safely else None


def _is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except OSError:  # as in `_status`
        return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # it does not exist, or cannot be accessed
        return None


def _is_private_group(group: int) -> bool:
    """Whether a group is that of this account alone."""
    import grp  # not on Windows
    import pwd

    try:
        account, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return account.pw_gid == group and entry.gr_name == account.pw_name and not entry.gr_mem
