"""What is specific to PostgreSQL. It knows nothing of secrets or keys."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from gusset.errors import (
    DatabaseUnreachable,
    HostError,
    IntegrityError,
    OutcomeUnknown,
    Unreachable,
    VaultError,
)
from gusset.vault.storage.postgres_connect import NO_TLS, SERVER_TIME, Connector, ServerClock
from gusset.vault.storage.postgres_driver import PostgresDriver, PostgresError
from gusset.vault.storage.postgres_objects import foreign_objects
from gusset.vault.storage.postgres_url import parse
from gusset.vault.storage.sql import Numbered, Statement

# Advisory locks, by numbers that other programs on the same database are unlikely to use.
_CHAIN_LOCK = 0x6775_7373_6574_0001  # held by the transaction that extends the audit chain
_EXCLUSIVE_LOCK = 0x6775_7373_6574_0002  # held while the vault is created, migrated or re-keyed
_FOLLOWERS_LOCK = 0x6775_7373_6574_0003  # shared by the sessions that follow changes

_LOCK_CHAIN = Numbered(b"SELECT pg_advisory_xact_lock(%d)" % _CHAIN_LOCK, 0)

_CHANNEL = "gusset"
_FOLLOW = f"SELECT pg_advisory_lock_shared({_FOLLOWERS_LOCK})"
# A transaction that gets this lock knows that no session follows. One that begins to follow waits for the
# commit, and sees its changes when it first reads the counter.
_ANNOUNCE = Numbered(
    b"SELECT pg_notify('%s', '') WHERE NOT pg_try_advisory_xact_lock(%d)"
    % (_CHANNEL.encode(), _FOLLOWERS_LOCK),
    0,
)
_COUNTER = f"SELECT coalesce(max(seq), 0), {SERVER_TIME} FROM audit"
_PIECE = 1000  # rows
POLL_INTERVAL = 0.5  # seconds after which the counter is looked at without a notification
# Seconds that reading the counter may take: a connection may have died without a sign. Together with
# the interval and a new connection, it is less than the second within which a change is noticed.
COUNTER_TIMEOUT = 0.25

# What the isolation says matters: with a snapshot from before the lock, a chain's head would be an old one.
_BEGIN_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_IDLE_LIMIT = "idle_in_transaction_session_timeout"
SLOW_READER = 60.0  # seconds that a snapshot may be idle while what it has read is used

_ENDING = 2.0  # seconds that sessions which were closed may take to end
_OTHER_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
"""

# Whether commits wait for no standby, and whether there is one.
_STANDBYS = """
SELECT current_setting('synchronous_standby_names') = '' OR current_setting('synchronous_commit') = 'local',
  EXISTS (SELECT 1 FROM pg_stat_replication)
"""

_TABLES = """
SELECT c.relname::text FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = current_schema()
WHERE c.relkind IN ('r', 'p', 'f') AND NOT EXISTS (
  SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1
"""


class Postgres:
    """A vault in a PostgreSQL database, which several processes may use.

    Larger than other classes: it has a method for each thing in which databases differ.
    """

    errors: type[Exception] = PostgresError
    max_connections: int | None = 16
    write_timeout: float | None = 4.5
    pipelines = True
    kind = "postgresql"
    migration_url = "postgresql+psycopg://"
    file: Path | None = None

    def __init__(self, url: str) -> None:
        """Opens nothing yet. Raises UsageError."""
        address = parse(url)
        self.name = address.name
        self.clock = ServerClock()
        self._connector = Connector(address, self.clock)

    def connect(self, *, deadline: float | None = None, patient: bool = False) -> PostgresDriver:
        return self._connector.connect(deadline=deadline, patient=patient)

    def now(self) -> datetime:
        return self.clock.now()

    def is_usable(self, driver: Any) -> bool:
        """Whether a connection that was idle can be used."""
        return not self._connector.breaker.is_open and bool(driver.is_alive())

    def text(self, statement: Statement) -> Numbered:
        return statement.for_postgres

    def begin_snapshot(self, driver: Any) -> None:
        driver.begin(_BEGIN_SNAPSHOT)

    def begin_write(self, driver: Any, *, deadline: float | None = None) -> None:
        """Queues for the lock that every writer takes, until its transaction ends.

        So a process that was paused cannot commit late: the server ends its session, and with
        it the transaction, before another one has the lock.
        """
        driver.begin(_BEGIN_WRITE, deadline=deadline)
        driver.execute(_LOCK_CHAIN)

    def savepoint(self, driver: Any, verb: str) -> None:
        driver.execute(f"{verb} one_write")

    def announce(self, driver: Any) -> None:
        """Wake those who follow changes, if anyone does, once the transaction is committed."""
        driver.execute(_ANNOUNCE)

    def pieces(self, driver: Any, statement: Statement, values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Rows of a SELECT in a snapshot, a thousand at a time, each with the description of columns."""
        driver.execute(
            f"SELECT set_config('{_IDLE_LIMIT}', '{SLOW_READER * 1000:.0f}', true)"
            f" WHERE current_setting('{_IDLE_LIMIT}') <> '0'"  # a patient connection has none
        )
        select = statement.for_postgres
        driver.execute(select._replace(sql=b"DECLARE pieces NO SCROLL CURSOR FOR " + select.sql), values)
        while True:
            result = driver.execute(f"FETCH {_PIECE} FROM pieces")
            if not (rows := result.fetchall()):
                break
            yield rows, result.description
        driver.execute("CLOSE pieces")

    def change_signal(self) -> Notifications:
        return Notifications.open(self)

    def erase_overwritten(self) -> None:
        """Nothing: VACUUM is the server's business, and so is what its log and backups keep."""

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Hold the lock under which processes create, migrate or re-key the vault.

        It is lost with its session. Code that must be certain checks in the transaction of its change.

        Raises:
            Unreachable, HostError: as `translated` says; or another process has it for too long.
        """
        try:
            driver = self.connect(patient=True)
        except PostgresError as error:
            raise self.translated(error) from None
        with closing(driver):
            try:
                driver.execute(f"SELECT pg_advisory_lock({_EXCLUSIVE_LOCK})").fetchone()
            except PostgresError as error:
                raise self.translated(error) from None
            yield

    @contextmanager
    def sole_user(self) -> Iterator[PostgresDriver]:
        """A connection that holds the exclusive lock, made while no other session uses the database.

        Raises:
            VaultError: another session is open, or holds the lock.
        """
        with closing(self.connect(patient=True)) as driver:
            locked = driver.execute(f"SELECT pg_try_advisory_lock({_EXCLUSIVE_LOCK})").fetchone()
            deadline = time.monotonic() + _ENDING
            others = driver.execute(_OTHER_SESSIONS).fetchone()
            while others and others[0] and time.monotonic() < deadline:
                time.sleep(0.05)
                others = driver.execute(_OTHER_SESSIONS).fetchone()
            if not (locked and locked[0]) or (others and others[0]):
                raise VaultError(
                    "another process uses the vault's database",
                    hint=f"stop managers, models and other clients of {self.name}; see pg_stat_activity",
                )
            yield driver

    def tables(self, driver: Any) -> list[str]:
        """The names of all tables in the schema of the vault."""
        return [str(row[0]) for row in driver.execute(_TABLES).fetchall()]

    def exists(self) -> bool:
        """The database itself must exist; `revision` says whether a vault is in it."""
        return True

    def make(self) -> None:
        """Nothing: whoever administers the server creates the database."""

    def is_no_text(self, error: Exception) -> bool:
        return False  # the server checks what it stores

    def any_text(self, driver: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def warning(self, driver: Any) -> str | None:
        """What a failover would lose, if one is to be expected; None for nothing."""
        [(unconfirmed, has_standby)] = driver.execute(_STANDBYS).fetchall()
        if not unconfirmed or not (has_standby or self._connector.has_several_hosts):
            return None
        return (
            "The database does not wait for its standby: a failover would lose the newest writes. "
            "Set synchronous_standby_names on its servers, see docs/production.md."
        )

    @contextmanager
    def for_sqlalchemy(self, driver: Any) -> Iterator[Any]:
        """The connection as psycopg's, in the transaction that it is in. Its errors become PostgresError."""
        with driver.without_pipeline() as connection:
            try:
                yield _Migrating(connection)
            except psycopg.Error as error:
                raise PostgresError(error.sqlstate, lost=connection.status == pq.ConnStatus.BAD) from None

    def revision(self, driver: Any) -> str | None:
        """The schema's revision; None for a database without tables."""
        exists = driver.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()[0]
        if not exists:
            return None
        row = driver.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])

    def foreign_objects(self, driver: Any) -> list[str]:
        """What could change what is read or written, in the schema of the vault, and is not gusset's."""
        return [str(row[0]) for row in driver.execute(foreign_objects()).fetchall()]

    def contradiction(self, driver: Any, table: str) -> str | None:
        """Nothing: only a superuser can give an index of PostgreSQL other rows than the table's."""
        return None

    def translated(self, error: Exception) -> Exception:
        """gusset's error. Only the hint has addresses: a message may reach a stranger.

        Returns:
            OutcomeUnknown: the connection was lost during a commit.
            Unreachable: the database is away, starting, overloaded, or a lock was held for too long; it is
                DatabaseUnreachable if the hint may have addresses.
            HostError: the disk is full, the database read-only, or gusset's role lacks a right.
            IntegrityError: the server found its files damaged.
        """
        if not isinstance(error, PostgresError):
            return HostError(f"the database cannot be used: {type(error).__name__}")
        if error.outcome_unknown:
            return OutcomeUnknown(
                "the database did not confirm the change: it may or may not have been made",
                hint="check whether it was made before you try again",
            )
        state = error.sqlstate or ""
        for prefix, cls, message, hint in _TRANSLATIONS:
            if state.startswith(prefix):
                if error.text and cls is Unreachable:
                    cls = DatabaseUnreachable
                return cls(message, hint=_with_text(hint, error.text))
        if error.lost:
            hint = f"check that {self.name} is up and can be reached"
            return DatabaseUnreachable("the database does not respond", hint=_with_text(hint, error.text))
        return VaultError(f"the database refused the statement (SQLSTATE {state})")


def _with_text(hint: str, text: str) -> str:
    return f"{hint}; PostgreSQL's client reports: {text}" if text else hint


_TRY_AGAIN = "nothing was written; try again"

# The beginning of the SQLSTATE, gusset's error, its message and hint.
_TRANSLATIONS: tuple[tuple[str, type[Unreachable | HostError | IntegrityError], str, str], ...] = (
    ("25006", HostError, "the database is read-only", "check whether this server is a standby, or full"),
    ("53100", HostError, "the disk of the database is full", "free some space on the database's server"),
    (
        "53300",
        Unreachable,
        "the database has no free connection",
        "raise max_connections, or end other clients",
    ),
    ("53", Unreachable, "the database lacks memory or other resources", _TRY_AGAIN),
    ("55P03", Unreachable, "another session keeps the vault locked", "see pg_locks on the server; try again"),
    ("57014", Unreachable, "the database took too long", _TRY_AGAIN),
    ("57P03", Unreachable, "the database is starting or stopping", _TRY_AGAIN),
    ("57", Unreachable, "the database ended the connection", _TRY_AGAIN),
    ("25P03", Unreachable, "the database ended a transaction that was idle for too long", _TRY_AGAIN),
    ("40", Unreachable, "the database rolled back a transaction in favour of another", _TRY_AGAIN),
    (
        "42501",
        HostError,
        "gusset's role may not do this in the database",
        "`gusset manager grants ROLE` prints what it needs; migrate as the owner of the tables",
    ),
    (
        NO_TLS,
        HostError,
        "the database cannot be reached over TLS as its URL requires",
        "check sslmode, sslrootcert, and that the server's certificate is for the name in the URL",
    ),
    ("28", HostError, "the database refuses gusset's role", "check user, password and pg_hba.conf"),
    ("3D000", HostError, "the database does not exist", "create it: CREATE DATABASE gusset"),
    ("58", HostError, "the disk of the database failed", "check the database's server"),
    (
        "XX001",
        IntegrityError,
        "the database is damaged",
        "restore a backup; keep the damaged one for analysis",
    ),
    ("XX002", IntegrityError, "an index of the database is damaged", "check the server's disk, then REINDEX"),
)


class _Migrating(psycopg.Connection[Any]):
    """psycopg's wrapper of a connection that it does not own, so it need not be closed."""

    def __del__(self, *_: Any) -> None:
        """Without psycopg's warning that it was not closed."""


class _Counter(NamedTuple):
    """What `_COUNTER` selects: the newest audit record's number, and the server's time."""

    newest: int
    microseconds: int


class Notifications:
    """Follows what other connections commit. For use by one thread, but for `wake`."""

    def __init__(self, postgres: Postgres, driver: PostgresDriver) -> None:
        """`driver` listens already, and is closed with this."""
        self._postgres = postgres
        self._driver = driver
        self._lock, self._closed = threading.Lock(), False  # or `wake` could write to a reused descriptor
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake_r, select.POLLIN)
        self._poll.register(driver.connection.socket, select.POLLIN)

    @classmethod
    def open(cls, postgres: Postgres) -> Notifications:
        """Connect and listen. Raises Unreachable, HostError."""
        try:
            driver = postgres.connect()
            try:
                # Before the counter is first read: it shows older commits, and later ones notify.
                driver.execute(f"LISTEN {_CHANNEL}").close()
                driver.execute(_FOLLOW).close()
            except BaseException:
                driver.close()
                raise
        except PostgresError as error:
            raise postgres.translated(error) from None
        # Too short to conclude anything about the server: a loss of this connection affects no other.
        driver.response_timeout = COUNTER_TIMEOUT
        return cls(postgres, driver)

    def counter(self) -> int:
        """The newest audit record's number: every change of a secret or of a right has one.

        It also shows that the connection is alive, and what time it is. Unreachable after `COUNTER_TIMEOUT`.
        """
        asked_at = time.monotonic()
        try:
            self._driver.take_notifications()  # of commits that the counter has; libpq would keep them all
            row = self._driver.execute(_COUNTER).fetchone()
        except PostgresError as error:
            raise self._postgres.translated(error) from None
        assert row is not None  # noqa: S101  # an aggregate
        found = _Counter(*row)
        self._postgres.clock.set(found.microseconds, asked_at)
        return found.newest

    def wait(self, timeout: float = POLL_INTERVAL) -> None:
        """Return when something was committed, when `wake` was called, or after `timeout` seconds.

        Notifications may be lost: look at the counter after each return.
        """
        deadline = time.monotonic() + timeout
        try:
            while not self._driver.take_notifications():
                found = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not found:
                    return
                if any(descriptor == self._wake_r for descriptor, _ in found):
                    os.read(self._wake_r, 4096)
                    return
        except PostgresError as error:
            raise self._postgres.translated(error) from None

    def wake(self) -> None:
        """Let `wait` return. Thread-safe; does nothing once it is closed."""
        with self._lock, suppress(BlockingIOError):  # a full pipe wakes as well
            if not self._closed:
                os.write(self._wake_w, b"w")

    def close(self) -> None:
        self._driver.close()
        with self._lock:
            self._closed = True
            os.close(self._wake_r)
            os.close(self._wake_w)
