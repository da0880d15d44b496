"""The code of a local folder or archive that is installed: what counts as a change of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_METADATA = ("pyproject.toml", "setup.py", "setup.cfg")
_NOT_CODE = ("__pycache__", "node_modules")
_BUILT = ("build", "dist", "venv", "env")  # only at the top, since packages may have such names
_LARGE = 1 << 20


def newest_change(path: Path, *, editable: bool) -> float | None:
    """When a file of the code changed last, in seconds since 1970; None if there is no such path.

    Only its metadata counts for an editable installation, which runs the code where it is.
    """
    times = [each.stat().st_mtime for each in _files(path, editable=editable)]
    return max(times, default=0.0 if path.is_dir() else None)


def fingerprint(path: Path, *, editable: bool) -> str:
    """A text that changes with the code. Raises OSError."""
    digest = hashlib.sha256()
    for file in _files(path, editable=editable):
        status = file.stat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mode & 0o111}\0".encode())
        if status.st_size > _LARGE:  # too slow to read at each start
            digest.update(str(status.st_mtime_ns).encode())
        else:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files(path: Path, *, editable: bool) -> Iterator[Path]:
    """The files of the code, in one order: without those that builds, tools and Python leave there."""
    if path.is_file():
        yield path
        return
    if editable:
        yield from (path / name for name in _METADATA if (path / name).is_file())
        return
    for folder, names, files in os.walk(path):
        is_top = Path(folder) == path
        names[:] = sorted(name for name in names if not _is_left_over(name, is_top=is_top))
        for file in sorted(files):
            if not file.endswith((".pyc", ".pyo", "~")) and (each := Path(folder, file)).is_file():
                yield each


def _is_left_over(name: str, *, is_top: bool) -> bool:
    hidden = name.startswith(".") or name.endswith(".egg-info")
    return hidden or name in _NOT_CODE or (is_top and name in _BUILT)
