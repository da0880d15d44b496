"""Writes the context of a build: the same folder gives the same files, times and modes on every machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gusset.containers.build.build_plan import BuildPlan, ContextCopy, ContextFile
from gusset.errors import HostError, Problem
from gusset.portable import is_disk_full, real_path

CONTAINERFILE = "Containerfile"

_TIME = 315_532_800  # 1980-01-01: the oldest time that a zip archive can hold
_LINKED_FROM = 16 << 20  # bytes of a file that is linked instead of copied
_CHUNK = 1 << 20
_NEVER = frozenset(
    {"__pycache__", ".git", ".hg", ".svn", ".venv", ".DS_Store", ".pytest_cache", ".mypy_cache"}
)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def write_context(plan: BuildPlan, context: Path, *, mount_secrets: bool = True) -> None:
    """Write the Containerfile and all files that it uses into `context`, an empty folder or a new one.

    Modes are 644 or 755, and times are fixed. Left out are caches of Python and what version
    control keeps. Large files are hard links if they have such a mode: their times stay. For `mount_secrets`
    see `BuildPlan.containerfile`.

    Raises:
        HostError: a folder cannot be read, `context` cannot be written, or there is no room.
    """
    digest = hashlib.sha256()
    try:
        context.mkdir(parents=True, exist_ok=True)
        for entry in plan.context:
            if isinstance(entry, ContextFile):
                _write(context / entry.path, entry.content, executable=entry.executable)
            else:
                _copy(entry, context, digest if entry.is_model else hashlib.sha256())
        text = plan.containerfile(f"sha256:{digest.hexdigest()}", mount_secrets=mount_secrets)
        _write(context / CONTAINERFILE, text.encode(), executable=False)
        for folder, _, _ in os.walk(context, topdown=False):
            Path(folder).chmod(0o755)
            os.utime(folder, (_TIME, _TIME))
    except OSError as error:
        raise unwritable(context, error) from None


def dangling_links(plan: BuildPlan) -> Iterator[Problem]:
    """A warning for each link in the model's folders that is absolute or leads out of them.

    Raises:
        HostError: a folder cannot be read.
    """
    roots = [
        real_path(entry.source) for entry in plan.context if isinstance(entry, ContextCopy) and entry.is_model
    ]
    for root in roots:
        try:
            links = [path for path in _walk(root, frozenset(roots)) if path.is_symlink()]
        except OSError as error:
            raise _unreadable(root, error) from None
        for link in links:
            target = link.readlink()
            if target.is_absolute() or not any(real_path(link).is_relative_to(each) for each in roots):
                yield Problem(
                    f"the image has the link {link.relative_to(root)}, but not {target}",
                    "put the file itself into the folder, unless the base image has it there",
                    file=str(root),
                    code="link",
                    warning=True,
                )


def _write(path: Path, content: bytes, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    _normalize(path, executable=executable)


def _normalize(path: Path, *, executable: bool) -> None:
    path.chmod(0o755 if executable else 0o644)
    os.utime(path, (_TIME, _TIME))


def _copy(entry: ContextCopy, context: Path, digest: _Hash) -> None:
    target = context / entry.path
    try:
        root = real_path(entry.source)
        if root.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            # The context itself may be in the folder.
            for source in _walk(root, entry.leave_out | {real_path(context)}):
                path = target / source.relative_to(root)
                _copy_one(_followed(source, entry), path, digest, path.relative_to(context))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_one(root, target, digest, Path(entry.path))
    except OSError as error:
        if is_disk_full(error):
            raise  # it is not for `entry.source`
        raise _unreadable(entry.source, error) from None


def unwritable(context: Path, error: OSError) -> HostError:
    """The error for a folder that the context of a build cannot be written to."""
    return HostError(
        f"the context of the build cannot be written to {context}: {error.strerror}",
        hint="it needs room, and a folder that your account may write to",
    )


def _unreadable(source: Path, error: OSError) -> HostError:
    return HostError(
        f"{source} cannot be copied for the build of the image: {error.strerror}",
        hint="let the account that runs gusset read all of it",
    )


def _walk(folder: Path, leave_out: frozenset[Path]) -> Iterator[Path]:
    """What is in a folder, sorted, each folder before its content. Raises OSError."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = folder / name
        if name in _NEVER or name.endswith((".pyc", ".pyo")) or path in leave_out:
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, leave_out)


def _followed(path: Path, entry: ContextCopy) -> Path:
    """For a link to a file in a folder of this machine, that file. The model's own links stay links."""
    return path if entry.is_model or not path.is_file() else path.resolve()


def _copy_one(source: Path, target: Path, digest: _Hash, name: Path) -> None:
    """Copy a file, link or folder without its content, and add it to the digest. Raises OSError."""
    mode = source.lstat().st_mode
    digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
    if stat.S_ISDIR(mode):
        digest.update(b"folder\0")
        target.mkdir(exist_ok=True)
    elif stat.S_ISLNK(mode):
        link = str(source.readlink())
        digest.update(f"link {link}\0".encode("utf-8", "surrogateescape"))
        if not os.path.lexists(target):
            target.symlink_to(link)
            os.utime(target, (_TIME, _TIME), follow_symlinks=False)
    elif stat.S_ISREG(mode):
        executable = bool(mode & 0o100)
        digest.update(f"file {'755' if executable else '644'} {_digest_of(source)}\0".encode())
        if not os.path.lexists(target):
            _copy_file(source, target, mode, executable=executable)


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _copy_file(source: Path, target: Path, mode: int, *, executable: bool) -> None:
    if source.stat().st_size >= _LINKED_FROM and stat.S_IMODE(mode) in (0o644, 0o755):
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            pass
        else:
            return
    shutil.copyfile(source, target)
    _normalize(target, executable=executable)
