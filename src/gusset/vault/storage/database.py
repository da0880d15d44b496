"""The database: opening it, migrating it, and translating its errors.

Everything that is specific to SQLite is in this file. It knows nothing of secrets or keys.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from gusset.errors import HostError, IntegrityError, Unreachable, UsageError, VaultError, VaultTooNew
from gusset.portable import CLOSE_ON_EXEC, NO_FOLLOW, lock_exclusively
from gusset.vault.storage.revision import REVISION

LOCK_TIMEOUT = 30  # seconds that a writer waits for another process's lock

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    f"PRAGMA busy_timeout={LOCK_TIMEOUT * 1000}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # destroyed bytes are overwritten, not only unlinked
)


def connect(url: str) -> Engine:
    """An engine for `url`; nothing is opened yet.

    Raises:
        UsageError: `url` is not the URL of a database that gusset supports.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            raise UsageError("the database must be SQLite: sqlite:///PATH", hint="check GUSSET_DATABASE")
        engine = create_engine(parsed, hide_parameters=True, isolation_level=None)
    except (ArgumentError, NoSuchModuleError):
        raise UsageError(
            "GUSSET_DATABASE is not a database URL", hint="an example: sqlite:////var/lib/gusset/vault.db"
        ) from None
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: object, _: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # BEGIN is ours, see _begin
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Connection) -> None:
    """Readers take a snapshot; writers take the write lock first, so that none fails half-way."""
    options = connection.get_execution_options()
    if options.get("manual_begin"):
        return  # `LoopWriter` executes BEGIN itself
    writing = options.get("writing", False)
    connection.connection.cursor().execute("BEGIN IMMEDIATE" if writing else "BEGIN")


def file_of(engine: Engine) -> Path | None:
    """The database's file; None for a database in memory or on a server."""
    name = engine.url.database
    return Path(name) if name and name != ":memory:" else None


@contextmanager
def translate_db_errors(engine: Engine) -> Iterator[None]:
    """Turn database errors into gusset's, without their texts, which may contain parameters.

    Raises:
        Unreachable: the database was locked for too long.
        HostError: the disk is full, failing or read-only.
        IntegrityError: the file is damaged or not a database.
    """
    try:
        yield
    except DBAPIError as error:
        raise _translated(str(error.orig), file_of(engine)) from None
    except engine.dialect.loaded_dbapi.Error as error:  # from a compiled statement
        raise _translated(str(error), file_of(engine)) from None
    except OSError as error:
        reason = (error.strerror or "an error").lower()
        raise HostError(
            f"the vault's folder cannot be used: {reason}", hint=_folder_hint(file_of(engine))
        ) from None


def _folder_hint(file: Path | None) -> str | None:
    if file is None:
        return None
    return f"make {file.parent} writable for your account, or set GUSSET_HOME to another folder"


def _translated(message: str, file: Path | None) -> Exception:
    """The file is in the hint alone: a message may reach a stranger, who must not learn paths."""
    message = message.lower()
    if "locked" in message or "busy" in message:
        return Unreachable(
            f"another process has kept the vault locked for {LOCK_TIMEOUT} s", hint="try again"
        )
    if "full" in message:
        return HostError(
            "the disk is full: nothing was written", hint=f"free some space where {file} is and try again"
        )
    if "readonly" in message or "read-only" in message:
        return HostError("the database cannot be written", hint=f"check the owner and mode of {file}")
    if "unable to open" in message:
        return HostError(
            "the database cannot be opened", hint=f"check the owner and mode of {file} and its folder"
        )
    if "i/o error" in message:
        return HostError(
            "the disk failed while the database was in use: the write was not confirmed",
            hint=f"check the disk that {file} is on",
        )
    if "malformed" in message or "not a database" in message or "corrupt" in message:
        return IntegrityError("the database is damaged", hint=f"restore a backup; keep {file} for analysis")
    return VaultError(f"the database refused the statement ({message.split('(')[0].strip()[:80]})")


@contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Hold the lock under which processes create, migrate or re-key the vault in `file`.

    Raises:
        IntegrityError: the lock file is a symbolic link, which gusset never makes.
    """
    path = file.with_name(file.name + ".lock")
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC | NO_FOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise IntegrityError(
            f"{path} is a symbolic link", hint="find out who created it, then remove it"
        ) from None
    try:
        lock_exclusively(lock)
        yield
    finally:
        os.close(lock)


def revision(connection: Connection) -> str | None:
    """The database's schema revision; None for a database without tables."""
    exists = text("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'")
    if not connection.execute(exists).scalar_one():
        return None
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def check_revision(found: str) -> None:
    """Raises VaultTooNew for a schema that a newer gusset wrote."""
    if found > REVISION:
        raise VaultTooNew(
            f"the vault was written by a newer gusset (schema {found}, this one supports {REVISION})",
            hint="use the newer gusset; nothing was changed",
        )


def change_counter(connection: Connection) -> int:
    """A number that changes whenever another connection has written to the database; cheap to read."""
    counter = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    connection.rollback()
    return int(counter)


def disable_busy_timeout(driver: Any) -> None:
    """Let a driver's connection fail at once when another process holds the lock."""
    driver.execute("PRAGMA busy_timeout=0")


def try_begin(driver: Any) -> bool:
    """Take the write lock on a connection without a busy timeout; False when another process has it."""
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True


def wait_and_begin(driver: Any) -> None:
    """Take the write lock on a connection without a busy timeout, waiting up to `LOCK_TIMEOUT` this once."""
    driver.execute(f"PRAGMA busy_timeout={LOCK_TIMEOUT * 1000}")
    try:
        driver.execute("BEGIN IMMEDIATE")
    finally:
        disable_busy_timeout(driver)


def truncate_wal(engine: Engine) -> None:
    """Empty SQLite's write-ahead log, which otherwise keeps overwritten pages until the database is closed.

    Best effort: pages that a reader still uses stay until the next time.
    """
    with translate_db_errors(engine), engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("PRAGMA busy_timeout=2000")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        cursor.execute(f"PRAGMA busy_timeout={LOCK_TIMEOUT * 1000}")
        cursor.close()


def migrate(connection: Connection) -> None:
    """Bring the schema to `REVISION` within the connection's transaction."""
    from alembic import command  # slow to import, and rarely needed
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, REVISION)


def make_private(file: Path) -> None:
    """Create folder and empty file with modes 0700 and 0600; SQLite gives its other files the same mode."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOSE_ON_EXEC, 0o600))
