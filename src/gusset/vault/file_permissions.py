"""Ownership and modes of the vault's files: as in ssh, no file is trusted that another account can write to.

Finds what is wrong and the command that fixes it; changes nothing and reads no file.
It avoids large imports, since the fast list of secrets uses it too.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gusset.errors import IntegrityError, RootKeyError
from gusset.portable import HAS_POSIX_ACCOUNTS
from gusset.settings import Settings

_WRITABLE_BY_OTHERS = 0o022
_ACCESSIBLE_TO_OTHERS = 0o077

_DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")  # SQLite trusts these files too


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Why a file is not trusted, and the command that fixes it."""

    path: Path
    message: str
    hint: str
    code: str


def file_problem(path: Path, found: os.stat_result, *, private: bool = False) -> FileProblem | None:
    """What is wrong with a file or folder. Other accounts must not write to it, nor read a `private` one."""
    if not HAS_POSIX_ACCOUNTS:
        return None
    if found.st_uid not in (os.geteuid(), 0):
        return _wrong_owner(path, found.st_uid)
    mode = stat.S_IMODE(found.st_mode)
    if not mode & (_ACCESSIBLE_TO_OTHERS if private else _WRITABLE_BY_OTHERS):
        return None
    access, wanted = ("access", "600") if private else ("write to", "go-w")
    return FileProblem(
        path,
        f"other accounts can {access} {path} (mode {mode:04o})",
        f"chmod {wanted} {shlex.quote(str(path))}",
        "open_to_others",
    )


def credential_problem(path: Path, found: os.stat_result) -> FileProblem | None:
    """What is wrong with a systemd credential. It may be root's, with the service's account in an ACL.

    An ACL shows as the group's right to read.
    """
    if stat.S_IMODE(found.st_mode) & 0o027:
        return FileProblem(
            path,
            f"other accounts can access the credential {path}",
            "pass the root key by LoadCredential= or LoadCredentialEncrypted=",
            "open_to_others",
        )
    return file_problem(path, found)


def file_problems(settings: Settings, database: Path | None) -> Iterator[FileProblem]:
    """What is wrong with the vault's folders and files, as far as they exist."""
    folders = [settings.home]
    files: list[Path] = []
    if database is not None:
        folders.append(database.absolute().parent)
        files = [database.with_name(database.name + suffix) for suffix in _DATABASE_SUFFIXES]
    if settings.root_key_command is None and settings.root_key_credential is None:
        files.append(settings.root_key_file)
    for path in dict.fromkeys([*folders, *files, settings.witness_file]):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if problem := file_problem(path, found, private=path == settings.root_key_file):
            yield problem


def check_files(settings: Settings, database: Path | None) -> None:
    """Raise the first of `file_problems`: RootKeyError for the root key, IntegrityError for other files."""
    for problem in file_problems(settings, database):
        error = RootKeyError if problem.path == settings.root_key_file else IntegrityError
        raise error(problem.message, hint=problem.hint)


def _wrong_owner(path: Path, owner: int) -> FileProblem:
    own_name = _account_name(os.geteuid())
    return FileProblem(
        path,
        f"{path} belongs to another account ({_account_name(owner)})",
        f"run gusset as that account or, if you trust the content: chown {own_name} {shlex.quote(str(path))}",
        "owned_by_another",
    )


def _account_name(account: int) -> str:
    import pwd  # Windows has no such module; see `HAS_POSIX_ACCOUNTS`

    try:
        return pwd.getpwuid(account).pw_name
    except KeyError:  # a container's user may have no name
        return str(account)
