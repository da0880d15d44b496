"""What is specific to SQLite. It knows nothing of secrets or keys."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gusset.errors import HostError, IntegrityError, Unreachable, VaultError
from gusset.portable import CLOSE_ON_EXEC, NO_FOLLOW, file_system_type, lock_exclusively, mount_type
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.sqlite_objects import SchemaEntry, foreign_objects

POLL_INTERVAL = 0.05  # seconds between looks at the counter of other connections' commits
LOCK_TIMEOUT = 30.0  # seconds that a writer without a deadline waits for another process's lock

_PRAGMAS: Sequence[str] = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    f"PRAGMA busy_timeout={LOCK_TIMEOUT * 1000:.0f}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # destroyed bytes are overwritten, not only unlinked
)


# File systems that reach another machine, by the magic numbers of statfs(2).
_NETWORKS = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x517B: "SMB",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x564C: "NCP",
}
_FUSE = 0x65735546
# FUSE has one number for all, local ones too: the type of the mount has the name after `fuse.`.
_FUSE_NETWORKS = (
    *("sshfs", "rclone", "s3fs", "mount-s3", "goofys", "gcsfuse", "davfs", "curlftpfs", "hdfs"),
    *("ceph", "ceph-fuse", "glusterfs", "juicefs", "moosefs", "seaweedfs", "beegfs"),
)


class Sqlite:
    """A vault in one file.

    Larger than other classes: it has a method for each thing in which databases differ.
    """

    errors: type[Exception] = sqlite3.Error
    max_connections: int | None = None
    write_timeout: float | None = None  # `LOCK_TIMEOUT` is the only limit, unless a server sets another one
    pipelines = False
    kind = "sqlite"
    migration_url = "sqlite://"

    def __init__(self, file: Path) -> None:
        self.file = file
        self.name = str(file)

    def connect(self, *, deadline: float | None = None, patient: bool = False) -> sqlite3.Connection:
        # Connections are used by one thread after another, never by two at once.
        driver = sqlite3.connect(
            self.file, isolation_level=None, check_same_thread=False, timeout=LOCK_TIMEOUT
        )
        for pragma in _PRAGMAS:
            driver.execute(pragma).close()
        return driver

    def now(self) -> datetime:
        return datetime.now(UTC)

    def is_usable(self, driver: Any) -> bool:
        return True  # a file ends no connection

    def text(self, statement: Statement) -> str:
        return statement.for_sqlite

    def begin_snapshot(self, driver: Any) -> None:
        driver.execute("BEGIN")

    def begin_write(self, driver: Any, *, deadline: float | None = None) -> None:
        """Takes the write lock first, so that no write fails half-way. Waits for it until the deadline."""
        if deadline is not None:
            _set_busy_timeout(driver, deadline - time.monotonic())
        driver.execute("BEGIN IMMEDIATE")

    def announce(self, driver: Any) -> None:
        """Nothing: SQLite counts the commits of others."""

    def savepoint(self, driver: Any, verb: str) -> None:
        driver.execute(f"{verb} one_write")

    def pieces(self, driver: Any, statement: Statement, values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        with closing(driver.execute(statement.for_sqlite, values)) as cursor:
            while rows := cursor.fetchmany(1000):
                yield rows, cursor.description

    def try_begin_write(self, driver: Any) -> bool:
        """Take the write lock on a connection without a busy timeout; False when another process has it."""
        try:
            driver.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        return True

    def disable_busy_timeout(self, driver: Any) -> None:
        """Let a connection fail at once when another process holds the lock."""
        _set_busy_timeout(driver, 0.0)

    def wait_and_begin_write(self, driver: Any, deadline: float | None) -> None:
        """Take the write lock on a connection without a busy timeout, waiting as `begin_write` does once."""
        _set_busy_timeout(driver, LOCK_TIMEOUT)
        try:
            self.begin_write(driver, deadline=deadline)
        finally:
            self.disable_busy_timeout(driver)

    def change_signal(self) -> _ChangeCounter:
        try:
            return _ChangeCounter(self.connect(), self)
        except sqlite3.Error as error:
            raise self.translated(error) from None

    def erase_overwritten(self) -> None:
        """Empty the write-ahead log, which otherwise keeps overwritten pages until the database is closed.

        Best effort: pages that a reader still uses stay until the next time.
        """
        driver = self.connect()
        try:
            driver.execute("PRAGMA busy_timeout=2000")
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            driver.close()

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Hold the lock under which processes create, migrate or re-key the vault.

        Raises:
            IntegrityError: the lock file is a symbolic link, which gusset never makes.
        """
        path = self.file.with_name(self.file.name + ".lock")
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

    @contextmanager
    def sole_user(self) -> Iterator[sqlite3.Connection]:
        """A connection while no other process has the database open, nor can open it.

        Raises:
            VaultError: another connection is open.
        """
        with closing(sqlite3.connect(self.file, isolation_level=None, timeout=0)) as driver:
            driver.execute("PRAGMA locking_mode=EXCLUSIVE").close()  # other connections hold a shared lock
            try:
                driver.execute("BEGIN EXCLUSIVE")
                driver.execute("COMMIT")
                for pragma in _PRAGMAS:
                    driver.execute(pragma).close()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                raise VaultError(
                    "another process uses the vault's database",
                    hint=f"stop managers, models and commands that have {self.file} open",
                ) from None
            yield driver

    def tables(self, driver: Any) -> list[str]:
        """The names of all tables."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite/_%' ESCAPE '/'"
        return [str(row[0]) for row in driver.execute(f"{query} ORDER BY 1")]

    def exists(self) -> bool:
        """Whether there is a database with anything in it."""
        self._refuse_network()
        return self.file.exists() and self.file.stat().st_size > 0

    def _refuse_network(self) -> None:
        """Raises VaultError for a file on a network: SQLite's locks and shared memory work on one machine."""
        folder = next(path for path in self.file.absolute().parents if path.exists())
        if kind := _network(folder):
            raise VaultError(
                f"the vault's database is on a network file system ({kind}), where SQLite loses data",
                hint=f"put {self.file.name} on a local disk, or use PostgreSQL: see docs/production.md",
            )

    def make(self) -> None:
        """Create folder and empty file with modes 0700 and 0600; SQLite's other files get the same mode."""
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOSE_ON_EXEC, 0o600))

    def warning(self, driver: Any) -> str | None:
        return None  # a commit is on the disk

    @contextmanager
    def for_sqlalchemy(self, driver: Any) -> Iterator[Any]:
        """The connection as SQLAlchemy uses it, for migrations."""
        yield driver

    def revision(self, driver: Any) -> str | None:
        """The schema's revision; None for a database without tables."""
        exists = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
        if not driver.execute(exists).fetchone()[0]:
            return None
        row = driver.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])

    def foreign_objects(self, driver: Any) -> list[str]:
        """What could change what is read or written, and is not gusset's."""
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2"
        return foreign_objects((SchemaEntry(*row) for row in driver.execute(query)), self.revision(driver))

    def contradiction(self, driver: Any, table: str) -> str | None:
        """How a table and its indexes contradict each other; None if they do not.

        SQLite reads rows from either. It takes some microseconds for each row, while other threads
        run, and holds up no writer.
        """
        [(found,), *_] = driver.execute(f"PRAGMA integrity_check({table})").fetchall()
        return None if found == "ok" else " ".join(str(found).split())

    def is_no_text(self, error: Exception) -> bool:
        return isinstance(error, self.errors) and _NOT_UTF8.match(str(error).lower()) is not None

    @contextmanager
    def any_text(self, driver: Any) -> Iterator[None]:
        usual, driver.text_factory = driver.text_factory, _text_or_bytes
        try:
            yield
        finally:
            driver.text_factory = usual

    def translated(self, error: Exception) -> Exception:
        """gusset's error. Only the hint has paths: a message may reach a stranger.

        Returns:
            Unreachable: the database was locked for too long.
            HostError: the disk is full, failing or read-only.
            IntegrityError: the file is damaged or not a database.
        """
        if isinstance(error, OSError):
            reason = (error.strerror or "an error").lower()
            path = error.filename or self.file.parent
            hint = f"check {path} and its permissions, or set GUSSET_HOME, or the setting of this file"
            return HostError(f"the vault's files cannot be used: {reason}", hint=hint)
        message = str(error).lower()
        if found := _NOT_UTF8.match(message):  # the rest of the message is what the column holds
            return IntegrityError(
                f"a text in the column {found[1]} is not UTF-8: it was altered in the database",
                hint="restore a backup, or remove the row",
            )
        if "locked" in message or "busy" in message:
            return Unreachable(
                "another process keeps the vault locked", hint="end it, or wait for it; then try again"
            )
        if "full" in message:
            return HostError(
                "the disk is full: nothing was written",
                hint=f"free some space where {self.file} is and try again",
            )
        if "readonly" in message or "read-only" in message:
            return HostError(
                "the database cannot be written", hint=f"check the owner and mode of {self.file}"
            )
        if "unable to open" in message:
            return HostError(
                "the database cannot be opened",
                hint=f"check the owner and mode of {self.file} and its folder",
            )
        if "i/o error" in message:
            return HostError(
                "the disk failed while the database was in use: the write was not confirmed",
                hint=f"check the disk that {self.file} is on",
            )
        if "malformed" in message or "not a database" in message or "corrupt" in message:
            return IntegrityError(
                "the database is damaged", hint=f"restore a backup; keep {self.file} for analysis"
            )
        return VaultError(f"the database refused the statement ({message.split('(')[0].strip()[:80]})")


def _set_busy_timeout(driver: Any, seconds: float) -> None:
    """How long a statement waits for another process's lock."""
    driver.execute(f"PRAGMA busy_timeout={max(0.0, seconds) * 1000:.0f}")


_NOT_UTF8 = re.compile(r"could not decode to utf-8 column '(\w+)'")


def _network(folder: Path) -> str | None:
    """The name of the network file system that `folder` is on, None for a local one."""
    number = file_system_type(folder)
    if number == _FUSE:
        name = mount_type(folder).removeprefix("fuse.")
        return name if name in _FUSE_NETWORKS else None
    return _NETWORKS.get(number)


def _text_or_bytes(stored: bytes) -> str | bytes:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


class _ChangeCounter:
    """SQLite's own counter of the commits of other connections."""

    def __init__(self, driver: sqlite3.Connection, sqlite: Sqlite) -> None:
        self._driver = driver
        self._sqlite = sqlite
        self._woken = threading.Event()

    def counter(self) -> int:
        try:
            return int(self._driver.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise self._sqlite.translated(error) from None

    def wait(self) -> None:
        self._woken.wait(POLL_INTERVAL)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._driver.close()
