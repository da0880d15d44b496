"""Removes downloads that were not used for some time from the cache."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from gusset.weights.cache import WeightsCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How many downloaded files were removed, complete or not, and their bytes."""

    files: int
    bytes: int


def prune(root: Path, *, unused_since: float) -> Pruned | None:
    """Remove what was not used since then, in seconds since 1970; None if a server uses the cache.

    Raises:
        HostError: other accounts can write to the cache.
    """
    if not root.is_dir():
        return Pruned(files=0, bytes=0)
    in_use = WeightsCache.open(root).hold()
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _prune(root, unused_since)
    except BlockingIOError:
        return None
    finally:
        os.close(in_use)


def _prune(root: Path, unused_since: float) -> Pruned:
    """Remove what is unused, with the cache locked: nobody downloads or uses what is downloaded."""
    for folder in (root / "folders").iterdir():
        if _is_older(folder, unused_since):
            shutil.rmtree(folder, ignore_errors=True)
    kept = set()
    for file in (root / "index").iterdir():
        entry = _entry(file)
        if not _is_older(file, unused_since):
            kept.add(entry.get("sha256"))
        elif "source" not in entry:  # one with it says which external data gusset has put there
            file.unlink()
    old = [file for file in (root / "files").iterdir() if file.name not in kept]
    old += [file for file in (root / "partial").iterdir() if _is_older(file, unused_since)]
    size = sum(file.stat().st_size for file in old)
    for file in old:
        file.unlink()
    return Pruned(files=len(old), bytes=size)


def _is_older(path: Path, time: float) -> bool:
    return path.stat().st_mtime < time


def _entry(file: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        entry = json.loads(file.read_bytes())
        return entry if isinstance(entry, dict) else {}
    return {}
