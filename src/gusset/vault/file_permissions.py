"""Whose the vault's files are: what another account owns or can write to is not trusted, in ssh's manner.

Says what is wrong and the command that mends it; changes nothing, reads no file.
Free of large imports, since the quick list of secrets asks it too.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gusset.errors import IntegrityError, RootKeyError
from gusset.settings import Settings

_WRITABLE = 0o022
_ANY = 0o077

_BESIDE = ("", "-wal", "-shm", "-journal")  # SQLite believes these too


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a file is not trusted, and what mends it."""

    path: Path
    message: str
    hint: str
    code: str


def fault_of(path: Path, found: os.stat_result, *, private: bool = False) -> Fault | None:
    """What is wrong with a file or folder; a `private` one others may not even read."""
    if found.st_uid not in (os.geteuid(), 0):
        return _owned(path, found.st_uid)
    mode = stat.S_IMODE(found.st_mode)
    if not mode & (_ANY if private else _WRITABLE):
        return None
    may, mend = ("use", "600") if private else ("write to", "go-w")
    return Fault(
        path,
        f"other accounts may {may} {path} (mode {mode:04o})",
        f"chmod {mend} {shlex.quote(str(path))}",
        "open_to_others",
    )


def faults(settings: Settings, database: Path | None) -> Iterator[Fault]:
    """What is wrong with the vault's folders and files, as far as they are there."""
    folders = [settings.home]
    files: list[Path] = []
    if database is not None:
        folders.append(database.absolute().parent)
        files = [database.with_name(database.name + end) for end in _BESIDE]
    for path in dict.fromkeys([*folders, *files, settings.witness_file, settings.root_key_file]):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if fault := fault_of(path, found, private=path == settings.root_key_file):
            yield fault


def check_files(settings: Settings, database: Path | None) -> None:
    """Raise the first of `faults`: RootKeyError for the root key, IntegrityError for all else."""
    for fault in faults(settings, database):
        error = RootKeyError if fault.path == settings.root_key_file else IntegrityError
        raise error(fault.message, hint=fault.hint)


def _owned(path: Path, owner: int) -> Fault:
    mine = _name_of(os.geteuid())
    return Fault(
        path,
        f"{path} belongs to another account ({_name_of(owner)})",
        f"use the account that it belongs to or, when its content is to be trusted: "
        f"chown {mine} {shlex.quote(str(path))}",
        "owned_by_another",
    )


def _name_of(account: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(account).pw_name
    except KeyError:  # a container's user may have no name
        return str(account)
