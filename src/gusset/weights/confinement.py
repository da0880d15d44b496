"""Keeps what a library writes inside of a repository's own folders of the hub's cache.

The library names files by hashes that the hub sends. A hostile hub could send a
path in their place. Each version of the library uses them in different places,
so this checks what is written, with an audit hook of Python.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of Python -> which of their arguments are the paths that they change.
_CHANGED = {
    "os.chmod": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
}


class OutsideError(PermissionError):
    """The library would have written outside of its folders."""


@contextmanager
def writing_only_for(repository: str, cache: Path, *others: Path) -> Iterator[None]:
    """Within the context, code of this process can write only for one repository.

    That is its own folder in the hub's cache, its locks, what the cache has for all
    repositories, and the folders `others`. Code that is not Python's is not checked.

    Raises:
        OutsideError: in the code that would write elsewhere.
    """
    cache.mkdir(parents=True, exist_ok=True)
    root = os.path.realpath(cache)
    allowed = ("/dev", *map(os.path.realpath, others))
    own = f"models--{repository.replace('/', '--')}"
    is_active = True

    def check(path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100  # with its links
        real = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
        if any(_is_in(real, each) for each in allowed):
            return
        parts = real.removeprefix(root).strip("/").removeprefix(".locks").strip("/").split("/")
        if not _is_in(real, root) or ("--" in parts[0] and parts[0] != own):
            raise OutsideError(errno.EACCES, "outside of the folders of its repository")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not is_active:
            return
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & _WRITING:
                check(arguments[0])
        elif event in _CHANGED:
            for index in _CHANGED[event]:
                check(arguments[index])

    sys.addaudithook(hook)
    try:
        yield
    finally:
        is_active = False


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
