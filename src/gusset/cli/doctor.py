"""`gusset doctor`: looks for problems on this machine that weaken security."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gusset
from gusset.cli.app import App, Command, pass_app
from gusset.cli.output import problem_data
from gusset.errors import CheckFailed, GussetError, NoVault, Problem
from gusset.portable import HAS_POSIX_ACCOUNTS, accessible_to_others
from gusset.settings import Settings
from gusset.vault.file_permissions import file_problems

if TYPE_CHECKING:
    from gusset.vault.storage.database import Database


@click.command(cls=Command)
@pass_app
def doctor(app: App) -> None:
    """Look for problems on this machine that weaken security, and print how to fix them."""
    compiled = gusset.is_compiled()
    kind = "compiled" if compiled else "not compiled"
    app.output.note(f"gusset {gusset.__version__} ({kind}) runs on Python {platform.python_version()}")
    problems = [problem for check in CHECKS for problem in check(app.settings)]
    problems += _vault(app)
    errors = [problem for problem in problems if not problem.warning]
    if errors:
        raise CheckFailed("there are problems to fix", problems=problems)
    app.output.problems([] if app.output.json else problems)
    app.output.result(
        {"problems": [problem_data(p) for p in problems], "compiled": compiled},
        f"no problem that must be fixed; the vault is in {_place(app.settings)}",
    )


def _files(settings: Settings) -> Iterator[Problem]:
    """Only their owner may access the vault's files.

    Opening the vault refuses files that others own or can write to, and a root
    key that others can read. Other files that others can read are found here.
    """
    try:
        refused = {fault.path: fault for fault in file_problems(settings, _database(settings).file)}
    except OSError:
        refused = {}  # reported below
    for fault in refused.values():
        yield Problem(fault.message, hint=fault.hint, file=str(fault.path), code=fault.code)
    for path in (settings.home, settings.root_key_file, settings.witness_file, _database(settings).file):
        if path is None or path in refused:
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Problem(
                f"its permissions cannot be read: {error.strerror}", file=str(path), code="unreadable"
            )
            continue
        if accessible_to_others(mode):
            yield Problem(
                f"other accounts can access it (mode {mode:04o})",
                hint=f"chmod go= {path}",
                file=str(path),
                code="open_to_others",
            )


def _database(settings: Settings) -> Database:
    from gusset.vault.storage.database import open_database

    return open_database(settings.database)


def _place(settings: Settings) -> str:
    """Where the vault is, for people."""
    database = _database(settings)
    return database.name if database.file is None else str(settings.home)


def _root_key(settings: Settings) -> Iterator[Problem]:
    """A backup of the database should not include the root key."""
    from gusset.vault.crypto.root_key_sources import pending_path

    pending = pending_path(settings.root_key_file)
    try:
        is_pending, exists = pending.exists(), settings.root_key_file.exists()
    except OSError:
        return  # `_files` reports it
    if is_pending:
        yield Problem(
            "a root key was written here by a rotation",
            hint="delete the file when the rotation is finished and each machine has the new root key",
            file=str(pending),
            code="root_key_pending",
            warning=True,
        )
    if settings.root_key_command is not None or settings.root_key_credential is not None:
        return
    if exists and settings.root_key_file.parent == settings.home:
        yield Problem(
            "the root key is in the folder of the vault: a backup of the folder contains both",
            hint="move it and set GUSSET_ROOT_KEY_FILE to its path, or exclude it from backups",
            file=str(settings.root_key_file),
            code="root_key_beside_vault",
            warning=True,
        )


def _swap(_: Settings) -> Iterator[Problem]:
    """Swap that is not encrypted may keep values on disk."""
    for device in _swap_devices(Path("/proc/swaps")):
        if not device.startswith(("/dev/zram", "/dev/dm-", "/dev/mapper/")):
            yield Problem(
                f"swap on {device} does not look encrypted: values in memory can get onto that disk",
                hint="encrypt the swap or turn it off; gusset cannot keep values out of it",
                code="swap",
                warning=True,
            )


def _swap_devices(swaps: Path) -> list[str]:
    try:
        return [line.split()[0] for line in swaps.read_text().splitlines()[1:]]
    except OSError:
        return []


def _root(_: Settings) -> Iterator[Problem]:
    """Root can read every process's memory."""
    if HAS_POSIX_ACCOUNTS and os.geteuid() == 0:
        yield Problem(
            "gusset runs as root here: a served model would, too, and root can read all values",
            hint="run `gusset serve` as an ordinary account",
            code="root",
            warning=True,
        )


def _platform(_: Settings) -> Iterator[Problem]:
    """Only Linux has non-dumpable processes and folders in memory."""
    if platform.system() != "Linux":
        yield Problem(
            "on this system, other processes of the same account can read the memory of gusset's processes",
            code="platform",
            warning=True,
        )


def _vault(app: App) -> Iterator[Problem]:
    """The vault can be opened, and its audit log is intact."""
    database = _database(app.settings).file
    try:
        is_missing = database is not None and not database.exists()
        if is_missing or any(file_problems(app.settings, database)):
            return  # there is no vault, or it is already reported why it cannot be opened
    except OSError:
        return  # already reported
    try:
        with app.vault(create=False) as vault:
            for text in vault.audit.verify().problems:
                yield Problem(text, code="audit", hint="see `gusset audit verify`")
            if unfinished := vault.root_key_rotation.unfinished:
                yield Problem(unfinished, code="root_key_rotation")
    except GussetError as error:
        if database is None and isinstance(error, NoVault):
            return  # only now is it known of a database on a server
        yield Problem(str(error), hint=error.hint, code=error.code)


CHECKS: tuple[Callable[[Settings], Iterator[Problem]], ...] = (_files, _root_key, _swap, _root, _platform)
