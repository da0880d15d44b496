"""Connecting to PostgreSQL within a deadline, on the host that responds, with gusset's settings."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial

from psycopg import pq
from psycopg.conninfo import make_conninfo

from gusset.errors import HostError
from gusset.vault.deadline import within
from gusset.vault.greenlets import spawned, wait
from gusset.vault.storage.postgres_driver import PostgresDriver, PostgresError
from gusset.vault.storage.postgres_url import PostgresAddress
from gusset.vault.storage.sql import Numbered

HOST_TIMEOUT = 2.0  # seconds for a host that another one follows
CONNECT_TIMEOUT = 4.0  # seconds for all hosts
RETRY_INTERVAL = 0.5  # seconds between attempts while the database does not respond
MIGRATION_TIMEOUT = 600.0  # seconds that a statement of a migration may take
OLDEST_SERVER = 15

MAX_UNCERTAINTY = 0.5  # seconds: a server's time that took longer to arrive is used only if it is the first
SERVER_TIME = (
    "(extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8"
)

# Seconds. A session that is idle within a transaction, such as that of a paused process, loses the lock of
# the chain before others give up waiting for it; and the server gives up before this process does.
IDLE_TIMEOUT, LOCK_TIMEOUT, STATEMENT_TIMEOUT = 2.0, 2.5, 3.5

_SAME_SESSION_CHECKS = 4
_REFUSED_BY_POOLER = "08P01"  # a transaction, in PgBouncer's statement mode


class _Breaker:
    """Lets a single caller try again now and then while the database is silent; others fail at once.

    Without it every caller would hold a thread until its own timeout, and those that wait
    for a thread would wait for longer than a request may take.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_try: float | None = None  # None while the database responds

    @property
    def is_open(self) -> bool:
        return self._next_try is not None

    def trip(self) -> None:
        with self._lock:
            self._next_try = time.monotonic() + RETRY_INTERVAL

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Raises PostgresError when another caller tries, or has just tried."""
        with self._lock:
            if self._next_try is not None:
                if time.monotonic() < self._next_try:
                    raise PostgresError(None, lost=True, timed_out=True)
                self._next_try = time.monotonic() + CONNECT_TIMEOUT
        try:
            yield
        except PostgresError as error:
            if error.timed_out:
                self.trip()
            else:
                self._next_try = None
            raise
        self._next_try = None


class ServerClock:
    """The server's clock: managers whose own clocks differ agree on what has expired. Thread-safe.

    It is read when a connection is made, and whenever somebody looks for changes. In between, this
    process's monotonic clock counts.
    """

    def __init__(self) -> None:
        self._offset: float | None = None  # seconds from the monotonic clock to the server's time

    def set(self, microseconds: int, asked_at: float) -> None:
        """Set the server's time since 1970, asked for at this monotonic time and received just now."""
        received_at = time.monotonic()
        # This process, or the network, may have been paused in between; the next time is not far.
        if self._offset is None or received_at - asked_at < MAX_UNCERTAINTY:
            self._offset = microseconds / 1e6 - (asked_at + received_at) / 2

    def now(self) -> datetime:
        """The server's time; this machine's before there was a connection."""
        if self._offset is None:
            return datetime.now(UTC)
        return datetime.fromtimestamp(self._offset + time.monotonic(), UTC)


class Connector:
    """Opens connections. Thread-safe."""

    def __init__(self, address: PostgresAddress, clock: ServerClock) -> None:
        """`clock` is set by each connection."""
        self.breaker = _Breaker()
        self._clock = clock
        self._address = address
        self._first = 0  # the host that is tried first: the one that worked last
        self._path: str | None = None  # the search path of all sessions, which the first one has found

    @property
    def has_several_hosts(self) -> bool:
        return len(self._address.hosts) > 1

    def connect(self, *, deadline: float | None = None, patient: bool = False) -> PostgresDriver:
        """A connection; `patient` for one whose statements may take long.

        Raises:
            PostgresError: no host accepts a connection.
            HostError: the server, or what is in front of it, cannot hold a vault.
        """
        latest = within(CONNECT_TIMEOUT)
        latest = latest if deadline is None else min(deadline, latest)
        connect = partial(self._connect, latest, patient=patient)
        if not spawned():
            return connect()
        # On a thread, since names are looked up too, which cannot be interrupted.
        return wait(asyncio.get_running_loop().run_in_executor(None, connect))

    def _connect(self, deadline: float, *, patient: bool) -> PostgresDriver:
        with self.breaker.attempt():
            driver = self._open(deadline)
            try:
                self._configure(driver, patient=patient)
            except BaseException:
                driver.close()
                raise
        return driver

    def _open(self, deadline: float) -> PostgresDriver:
        hosts = self._address.hosts
        failure = PostgresError(None, lost=True, timed_out=True)
        for offset in range(len(hosts)):
            index = (self._first + offset) % len(hosts)
            is_last = offset + 1 == len(hosts)
            host_deadline = deadline if is_last else min(deadline, time.monotonic() + HOST_TIMEOUT)
            try:
                connection = _open_host(hosts[index], host_deadline)
            except PostgresError as error:
                failure = error
                if error.timed_out and time.monotonic() >= deadline:
                    self._first = index + 1  # the hosts after it have not been tried
                    break
                continue
            self._first = index
            return PostgresDriver(connection, self.breaker.trip)
        raise failure

    def _configure(self, driver: PostgresDriver, *, patient: bool) -> None:
        """Set the session's limits, and check in the same statement what the server is."""
        asked_at = time.monotonic()
        row = driver.execute(_configuration(patient=patient), [self._path]).fetchone()
        assert row is not None  # noqa: S101  # a SELECT without FROM
        server = _Server(**{each.name: value for each, value in zip(fields(_Server), row, strict=False)})
        self._clock.set(server.microseconds, asked_at)
        self._check(server)
        self._path = server.path
        if server.process != driver.connection.backend_pid:
            self._check_pooler(driver, server.process)
        if patient:
            driver.response_timeout = MIGRATION_TIMEOUT

    @staticmethod
    def _check(server: _Server) -> None:
        """Raises HostError for a server or a database that cannot hold a vault."""
        if server.version < OLDEST_SERVER * 10_000:
            raise HostError(
                f"the database is PostgreSQL {server.version // 10_000}, which gusset does not support",
                hint=f"use PostgreSQL {OLDEST_SERVER} or newer",
            )
        if server.encoding != "UTF8":
            raise HostError(
                f"the database stores texts as {server.encoding}",
                hint="create it anew: CREATE DATABASE gusset ENCODING 'UTF8' TEMPLATE template0",
            )
        if not server.path.endswith(_TEMPORARY_LAST):
            raise HostError(
                "gusset's role may use no schema of the database",
                hint="`gusset manager grants ROLE` prints what it needs; check search_path, too",
            )

    def _check_pooler(self, driver: PostgresDriver, process: int) -> None:
        """Something is between us and the server; refuse it if it changes sessions between transactions.

        Locks, LISTEN and settings of a session are then lost, or another client's.
        """
        try:
            with closing(self._open(time.monotonic() + CONNECT_TIMEOUT)) as other:
                changes = any(_changes_sessions(driver, process, other) for _ in range(_SAME_SESSION_CHECKS))
        except PostgresError as error:
            if error.sqlstate != _REFUSED_BY_POOLER:
                raise
            changes = True
        if changes:
            raise HostError(
                "a transaction pooler is in front of the database",
                hint="use the address of PostgreSQL itself, or a pool in session mode: "
                "gusset keeps its own connections open",
            )


def _changes_sessions(driver: PostgresDriver, process: int, other: PostgresDriver) -> bool:
    """Whether another client gets our session, whose process this was, or we get another one."""
    other.begin("BEGIN")
    try:
        return _process(other) == process or _process(driver) != process
    finally:
        other.rollback()


def _process(driver: PostgresDriver) -> int:
    row = driver.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None  # noqa: S101  # a SELECT without FROM
    return int(row[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Server:
    """What the statement of `_configuration` selects first."""

    version: int
    encoding: str
    process: int
    microseconds: int
    path: str


# Temporary tables and views come first in a search path that does not name them.
_TEMPORARY_LAST = ", pg_temp"

# The schema that the vault's tables are in, or will be made in: nothing is looked up in another one but
# PostgreSQL's own. So whoever makes a schema that comes before it in the search path changes nothing. Until
# this is set, such a schema may come before PostgreSQL's own, too: everything is called by its schema.
_SET_PATH = f"""
pg_catalog.set_config('search_path', coalesce($1::pg_catalog.text, pg_catalog.quote_ident(coalesce(
  (SELECT n.nspname FROM pg_catalog.pg_class c
   JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
   WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('alembic_version')),
  pg_catalog.current_schema())) OPERATOR(pg_catalog.||) '{_TEMPORARY_LAST}'), false)
"""


def _configuration(*, patient: bool) -> Numbered:
    """The statement that configures a session. `synchronous_commit` may be stricter, but not off."""
    lock, statement, idle = (30.0, 0.0, 0.0) if patient else (LOCK_TIMEOUT, STATEMENT_TIMEOUT, IDLE_TIMEOUT)
    settings = {
        "lock_timeout": f"{lock * 1000:.0f}",
        "statement_timeout": f"{statement * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{idle * 1000:.0f}",
        "idle_session_timeout": "0",
        "default_transaction_isolation": "read committed",
    }
    sets = ", ".join(f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in settings.items())
    select = (
        "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4, "
        "pg_catalog.current_setting('server_encoding'), "
        f"pg_catalog.pg_backend_pid(), {SERVER_TIME}, {_SET_PATH}, {sets}, "
        "CASE WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off' "
        "THEN pg_catalog.set_config('synchronous_commit', 'on', false) END"
    )
    return Numbered(select.encode(), 1)


def _open_host(parameters: Mapping[str, str], deadline: float) -> pq.abc.PGconn:
    """Connect to one host. Raises PostgresError."""
    connection = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    try:
        while connection.status != pq.ConnStatus.BAD:
            status = connection.connect_poll()
            if status == pq.PollingStatus.OK:
                return connection
            if status == pq.PollingStatus.FAILED:
                break
            _wait_for(connection.socket, status, deadline)
        raise _failed(connection, parameters)  # noqa: TRY301  # finished below
    except BaseException:
        connection.finish()
        raise


def _wait_for(socket: int, status: pq.PollingStatus | int, deadline: float) -> None:
    poll = select.poll()
    poll.register(socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise PostgresError(None, lost=True, timed_out=True)


NO_TLS = "TLS"  # in place of an SQLSTATE: the server's certificate is not trusted, or it has none

# libpq gives no SQLSTATE for a failed connection. Servers in other languages get the general message.
_STATES = (
    ("too many clients", "53300"),
    ("remaining connection slots", "53300"),
    ("too many connections", "53300"),
    ("starting up", "57P03"),
    ("shutting down", "57P03"),
    ("not yet accepting", "57P03"),
    ("in recovery mode", "57P03"),
    ("session is read-only", "25006"),
    ("hot standby", "25006"),
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("authentication failed", "28000"),
    ("no pg_hba.conf entry", "28000"),
    ("certificate verify failed", NO_TLS),
    ("does not match host name", NO_TLS),
    ("root certificate file", NO_TLS),
    ("does not support SSL", NO_TLS),
    ("role ", "28000"),
    ("database ", "3D000"),
)


def _failed(connection: pq.abc.PGconn, parameters: Mapping[str, str]) -> PostgresError:
    text = connection.get_error_message("utf-8")
    if password := parameters.get("password"):
        text = text.replace(password, "***")
    state = next((state for part, state in _STATES if part in text), None)
    return PostgresError(state, text=" ".join(text.split()), lost=True)
