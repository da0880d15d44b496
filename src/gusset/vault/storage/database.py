"""The database: opened, brought to the newest schema, and its failures in gusset's words.

All that is SQLite's own stands here. Knows nothing of secrets or keys.
"""

from __future__ import annotations

import errno
import fcntl
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
from gusset.vault.storage.revision import REVISION

LOCK_WAIT = 30  # seconds that a writer waits for another process

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    f"PRAGMA busy_timeout={LOCK_WAIT * 1000}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # destroyed bytes are overwritten, not just forgotten
)


def connect(url: str) -> Engine:
    """An engine for `url`; nothing is opened yet.

    Raises:
        UsageError: the URL is of no database that gusset speaks.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            raise UsageError("the database must be SQLite: sqlite:///PATH", hint="look at GUSSET_DATABASE")
        engine = create_engine(parsed, hide_parameters=True, isolation_level=None)
    except (ArgumentError, NoSuchModuleError):
        raise UsageError(
            "GUSSET_DATABASE is not the URL of a database", hint="as in sqlite:////var/lib/gusset/vault.db"
        ) from None
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: object, _: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # we say BEGIN ourselves, see _begin
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Connection) -> None:
    """Readers take a snapshot; writers take the lock at once, so that none fails half way."""
    options = connection.get_execution_options()
    if options.get("lane"):
        return  # it says BEGIN itself
    writing = options.get("writing", False)
    connection.connection.cursor().execute("BEGIN IMMEDIATE" if writing else "BEGIN")


def file_of(engine: Engine) -> Path | None:
    """The database's file; None for a database in memory or on a server."""
    name = engine.url.database
    return Path(name) if name and name != ":memory:" else None


@contextmanager
def translate_db_errors(engine: Engine) -> Iterator[None]:
    """Turn the database's errors into ours, without its texts: they may hold parameters.

    Raises:
        Unreachable: locked for too long, or gone.
        HostError: the disk is full, failing or read-only.
        IntegrityError: the file is not a database any more.
    """
    try:
        yield
    except DBAPIError as error:
        raise _told(str(error.orig), file_of(engine)) from None
    except engine.dialect.loaded_dbapi.Error as error:  # by a prepared statement, past SQLAlchemy
        raise _told(str(error), file_of(engine)) from None
    except OSError as error:
        raise HostError(f"the vault's folder cannot be used: {error.strerror}") from None


def _told(said: str, file: Path | None) -> Exception:
    said = said.lower()
    if "locked" in said or "busy" in said:
        return Unreachable(f"another process has kept the vault locked for {LOCK_WAIT} s", hint="try again")
    if "full" in said:
        return HostError(f"the disk is full: nothing was written to {file}", hint="make room and try again")
    if "readonly" in said or "read-only" in said:
        return HostError(f"{file} cannot be written to", hint="look at its owner and mode")
    if "unable to open" in said:
        return HostError(f"{file} cannot be opened", hint="look at the folder, its owner and mode")
    if "i/o error" in said:
        return HostError(f"the disk failed while {file} was in use: nothing was acknowledged")
    if "malformed" in said or "not a database" in said or "corrupt" in said:
        return IntegrityError(
            f"{file} is damaged", hint="put a backup back; keep the damaged file for a look at it"
        )
    return VaultError(f"the database refused ({said.split('(')[0].strip()[:80]})")


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keep other processes from creating or migrating the same vault meanwhile.

    Raises:
        IntegrityError: the lock's file is a link, which gusset never makes.
    """
    path = file.with_name(file.name + ".lock")
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise IntegrityError(f"{path} is a link", hint="find out who laid it there, and remove it") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def revision(connection: Connection) -> str | None:
    """The migration that the database is stamped with; None for one without tables."""
    there = text("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'")
    if not connection.execute(there).scalar_one():
        return None
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def check_revision(found: str) -> None:
    """Raises VaultTooNew for a vault of a newer gusset, before anything is touched."""
    if found > REVISION:
        raise VaultTooNew(
            f"the vault was written by a newer gusset (schema {found}, this one knows {REVISION})",
            hint="use that gusset; nothing was changed",
        )


def change_counter(connection: Connection) -> int:
    """A number that moves whenever another connection has changed the database; cheap to ask."""
    counter = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    connection.rollback()
    return int(counter)


def never_wait(driver: Any) -> None:
    """Let the driver's connection refuse at once what another process has locked."""
    driver.execute("PRAGMA busy_timeout=0")


def begin_at_once(driver: Any) -> bool:
    """Take the write lock on a connection that never waits; False when another process has it."""
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True


def begin_in_time(driver: Any) -> None:
    """Take the write lock on a connection that never waits, waiting this once as long as writers do."""
    driver.execute(f"PRAGMA busy_timeout={LOCK_WAIT * 1000}")
    try:
        driver.execute("BEGIN IMMEDIATE")
    finally:
        never_wait(driver)


def forget_old_pages(engine: Engine) -> None:
    """Empty SQLite's write-ahead log, which holds the pages of before until the database is closed.

    Best effort: what a reader still looks at stays until the next time.
    """
    with translate_db_errors(engine), engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("PRAGMA busy_timeout=2000")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        cursor.execute(f"PRAGMA busy_timeout={LOCK_WAIT * 1000}")
        cursor.close()


def migrate(connection: Connection) -> None:
    """Bring the schema to `REVISION` within the connection's transaction. Slow to import, so not above."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, REVISION)


def make_private(file: Path) -> None:
    """Make folder and file, empty, for their owner alone: SQLite gives its other files that mode too."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
