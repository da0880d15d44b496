"""A connection to PostgreSQL, as small as gusset's needs allow: libpq by psycopg, in pipeline mode.

psycopg's own connection converts any type and waits for any time. Four types are enough here, which
costs a fifth of the CPU per statement; and every wait has a deadline of this process's own
clock, because a server that is paused, or behind a dead network, answers nothing at all.

Statements are only queued by `execute`. They are sent, with all that is queued, when a row of
a result is read or the transaction ends. So a batch of writes costs one round trip.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from psycopg import Error as PsycopgError
from psycopg import pq

from gusset.errors import InvalidValue
from gusset.vault.deadline import within
from gusset.vault.greenlets import spawned, wait_for_socket
from gusset.vault.storage.sql import Numbered

WAIT_TIMEOUT = 4.0  # seconds that a response may take
QUICK_MS = 1  # that an event loop blocks: a server nearby responds before the loop could suspend and resume
SLOW_SECONDS = 1.0  # for which the loop does not block again, after a server took longer
SILENCE = 1.0  # seconds without a response to a write after which the server is taken to be silent
READ_SILENCE = 3.5  # and to a read, which the server itself ends after that time
MAX_PENDING = 500  # queued statements; with more their results are read at once
MAX_PREPARED = 300  # prepared statements of a connection; statements that are made at run time could be many
MAX_PREPARED_PARAMETERS = 64  # a longer list is not likely to come again

IDLE_IN_TRANSACTION = "25P03"

_TEXT, _BINARY = 0, 1
_OK = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
_SYNC = pq.ExecStatus.PIPELINE_SYNC


class PostgresError(Exception):
    """A failure, by its SQLSTATE: the server's own text may contain parameters, and is dropped.

    `sqlstate` is None when the connection was lost or the server did not respond. `text` is
    libpq's and only that of an attempt to connect. `outcome_unknown` says that a COMMIT was
    sent and its result never came.
    """

    def __init__(
        self,
        sqlstate: str | None,
        *,
        text: str = "",
        lost: bool = False,
        timed_out: bool = False,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(f"SQLSTATE {sqlstate}" if sqlstate else "the connection was lost")
        self.sqlstate = sqlstate
        self.text = text
        self.lost = lost
        self.timed_out = timed_out
        self.outcome_unknown = outcome_unknown


class _Column(NamedTuple):
    name: str


class Result:
    """The rows of one statement. Reading them waits for the server."""

    __slots__ = ("_driver", "_next", "_result")

    def __init__(self, driver: PostgresDriver) -> None:
        self._driver = driver
        self._result: Any = None  # libpq's, once it has come
        self._next = 0

    def fulfil(self, result: Any) -> None:
        self._result = result

    @property
    def description(self) -> Sequence[_Column]:
        found = self._read()
        return [_Column(found.fname(column).decode()) for column in range(found.nfields)]

    def fetchone(self) -> tuple[Any, ...] | None:
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.fetchmany(self._read().ntuples)

    def fetchmany(self, count: int) -> list[tuple[Any, ...]]:
        """At most `count` rows that were not read yet."""
        found = self._read()
        first, self._next = self._next, min(self._next + count, found.ntuples)
        loaders = [_LOADERS.get(found.ftype(column), _unknown) for column in range(found.nfields)]
        get = found.get_value
        return [
            tuple([load(get(row, column)) for column, load in enumerate(loaders)])
            for row in range(first, self._next)
        ]

    def close(self) -> None:
        """Outside a transaction, wait until the statement has taken effect."""
        if self._result is None and not self._driver.in_transaction:
            self._driver.collect()

    @property
    def status(self) -> bytes | None:
        """Which command was executed, such as `COMMIT`."""
        status: bytes | None = self._read().command_status
        return status

    def _read(self) -> Any:
        if self._result is None and not self._driver.failed:
            self._driver.collect()
        if self._result is None:  # this statement or an earlier one has failed, which was raised before
            raise PostgresError(None, lost=True)
        return self._result


class PostgresDriver:
    """One connection, for one thread at a time. After an error it is of no further use, but for `close`."""

    def __init__(self, connection: pq.abc.PGconn, on_silence: Callable[[], None] = lambda: None) -> None:
        """`connection` is open. `on_silence` is called when the server does not respond in time."""
        self.connection = connection
        self.response_timeout = WAIT_TIMEOUT  # seconds that a response may take, where no deadline is set
        self._on_silence = on_silence
        self.in_transaction = False
        self.deadline: float | None = None  # of this transaction, by the monotonic clock
        self.failed = False
        self._pending: deque[Result | None] = (
            deque()
        )  # a Result per queued statement, None where nobody reads it
        self._names: dict[bytes, bytes] = {}
        self._warned = False
        self._asked_at = 0.0
        self._slow_until = 0.0
        self._committing = False  # a commit may wait for a standby while all else goes on
        self._poll = select.poll()
        self._poll.register(connection.socket, select.POLLIN)
        self._configure()

    def execute(self, statement: Numbered | str, values: Sequence[Any] = ()) -> Result:
        """Queue a statement; its errors are raised where its result, or a later one, is read.

        `values` are those of its parameters. A `Numbered` one is prepared the first time. A text has no
        parameters.
        """
        result = Result(self)
        self._queue(statement, values, result)
        return result

    def executemany(self, statement: Numbered, rows: Iterable[Sequence[Any]]) -> Result:
        """Queue a statement for each of `rows`. Returns the last one's result, or an empty one."""
        result = Result(self)
        for values in rows:
            result = self.execute(statement, values)
        return result

    def _queue(self, statement: Numbered | str, parameters: Sequence[Any], result: Result) -> None:
        if isinstance(statement, str):
            statement = Numbered(statement.encode(), 0)
            name = None
        else:
            name = self._prepared(statement)
        encoded = list(map(_encoded, parameters))
        values = [value for value, _ in encoded]
        formats = [form for _, form in encoded]
        try:
            if name is None:
                self.connection.send_query_params(statement.sql, values, None, formats, _BINARY)
            else:
                self.connection.send_query_prepared(name, values, formats, _BINARY)
        except PsycopgError:
            raise self._lost() from None
        self._pending.append(result)
        if len(self._pending) > MAX_PENDING:
            self.collect()

    def _prepared(self, statement: Numbered) -> bytes | None:
        """The name of the prepared statement; None for one that is not worth it."""
        name = self._names.get(statement.sql)
        many = statement.parameters > MAX_PREPARED_PARAMETERS or len(self._names) >= MAX_PREPARED
        if name is None and not many:
            name = self._names[statement.sql] = b"g%d" % len(self._names)
            try:
                self.connection.send_prepare(name, statement.sql)
            except PsycopgError:
                raise self._lost() from None
            self._pending.append(None)
        return name

    def begin(self, sql: str, *, deadline: float | None = None) -> None:
        """Queue the begin of a transaction, which must end by `deadline`."""
        self.deadline = deadline
        self.in_transaction = True
        self.execute(sql)

    def commit(self) -> None:
        """Commit. Raises PostgresError with `outcome_unknown` when nobody knows whether it was done."""
        if not self.in_transaction:
            return
        self._take_input()  # raises if the session has ended; the COMMIT is not sent then
        self._warned, self._committing = False, True
        result = self.execute("COMMIT")
        try:
            self.collect()
        except PostgresError as error:
            before = error.sqlstate is not None and self._pending[0] is not result
            error.outcome_unknown = error.lost and not before and error.sqlstate != IDLE_IN_TRANSACTION
            raise
        committed = result.status == b"COMMIT"
        self._committing = self.in_transaction = False
        self.deadline = None
        # A warning: this server has committed, but a standby that it must wait for has not confirmed it.
        if self._warned or not committed:
            self.failed = True
            raise PostgresError(None, outcome_unknown=self._warned)

    def rollback(self) -> None:
        """Roll back; does nothing after a commit or an error, since an error ends the connection."""
        if self.in_transaction and not self.failed:
            self.execute("ROLLBACK")
            self.in_transaction = False
            with suppress(PostgresError):
                self.collect()
        self.in_transaction, self.deadline = False, None

    def collect(self) -> None:
        """Send what is queued, and wait until all of it has been executed.

        Raises:
            PostgresError: a statement failed, the connection was lost or the server did not respond.
        """
        try:
            # Within a transaction too: only after a sync does the server take the session for idle.
            self.connection.pipeline_sync()
            self._pending.append(None)
            self._asked_at = time.monotonic()
            deadline = within(self.response_timeout) if self.deadline is None else self.deadline
            self._send(deadline)
            while self._pending:
                self._receive(deadline)
        except PsycopgError:
            raise self._lost() from None

    def _send(self, deadline: float) -> None:
        if self.connection.flush() == 0:
            return
        while self.connection.flush() != 0:
            self._wait(deadline, writing=True)
            if self._poll.poll(0):
                self.connection.consume_input()

    def _receive(self, deadline: float) -> None:
        """Handle the next of libpq's results; None marks the end of a statement's results."""
        connection = self.connection
        lost = False
        while not lost and connection.is_busy():
            self._wait(deadline)
            try:
                connection.consume_input()
            except PsycopgError:
                lost = True  # libpq still has what came before, such as the reason
        result = connection.get_result()
        if result is None:
            if connection.status != pq.ConnStatus.OK:
                raise self._lost()
            self._pending.popleft()
        elif result.status in _OK:
            if waiting := self._pending[0]:
                waiting.fulfil(result)
        elif result.status == _SYNC:
            self._pending.popleft()
        else:
            self.failed = True
            state = result.error_field(pq.DiagnosticField.SQLSTATE)
            dead = state is None or connection.status != pq.ConnStatus.OK or _ends_session(result)
            raise PostgresError(state.decode() if state else None, lost=dead)

    def _wait(self, deadline: float, *, writing: bool = False) -> None:
        """Wait until the socket can be read, or written if `writing`."""
        if spawned():
            ready = self._wait_on_loop(deadline, writing=writing)
        else:
            poll = self._poll
            if writing:
                poll = select.poll()
                poll.register(self.connection.socket, select.POLLIN | select.POLLOUT)
            ready = bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if not ready:
            self.failed = True
            limit = READ_SILENCE if self.deadline is None else SILENCE
            if time.monotonic() - self._asked_at > limit and not self._committing:
                self._on_silence()
            raise PostgresError(None, lost=True, timed_out=True)

    def _wait_on_loop(self, deadline: float, *, writing: bool) -> bool:
        if not writing and not self._committing and time.monotonic() >= self._slow_until:
            if self._poll.poll(QUICK_MS):
                return True
            self._slow_until = time.monotonic() + SLOW_SECONDS
        return wait_for_socket(self.connection.socket, deadline=deadline, writing=writing)

    def _lost(self) -> PostgresError:
        self.failed = True
        return PostgresError(None, lost=True)

    def _on_notice(self, notice: Any) -> None:
        """Texts of notices may contain parameters: none is kept."""
        severity = notice.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        self._warned = self._warned or severity == b"WARNING"

    def is_alive(self) -> bool:
        """Whether the server has not ended the session, as far as can be known without asking it."""
        if self.failed or self._pending:
            return False
        try:
            self._take_input()
        except PostgresError:
            return False
        return True

    def _take_input(self) -> None:
        """Read what the server has sent already. Raises PostgresError when it has ended the session."""
        try:
            while self._poll.poll(0):
                self.connection.consume_input()
        except PsycopgError:
            raise self._lost() from None
        if self.connection.status != pq.ConnStatus.OK:
            raise self._lost()

    def take_notifications(self) -> bool:
        """Whether the server has notified this session since the last call. Raises PostgresError."""
        self._take_input()
        found = False
        while self.connection.notifies() is not None:
            found = True
        return found

    @contextmanager
    def without_pipeline(self) -> Iterator[pq.abc.PGconn]:
        """libpq's connection, for another user for a while, in the transaction that it is in."""
        self.collect()
        self.connection.exit_pipeline_mode()
        try:
            yield self.connection
        finally:
            self._configure()

    def _configure(self) -> None:
        self.connection.nonblocking = 1
        self.connection.notice_handler = self._on_notice
        self.connection.notify_handler = None
        self.connection.enter_pipeline_mode()

    def close(self) -> None:
        self.failed = True
        self.connection.finish()


def _ends_session(result: Any) -> bool:
    return result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC")


def _encoded(value: Any) -> tuple[bytes | None, int]:
    """A parameter and its format. Its type is the one that the statement has there."""
    if isinstance(value, str):  # such as an `Actor`
        if "\0" in value:  # libpq would end the text there
            raise InvalidValue("a text has the character NUL, which cannot be stored")
        return value.encode(), _TEXT
    if type(value) is int:
        return b"%d" % value, _TEXT
    if type(value) is bytes:
        return value, _BINARY
    if value is None:
        return None, _TEXT
    raise TypeError(f"a parameter cannot be of the type {type(value).__name__}")


def _integer(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, "big", signed=True)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _bytes(value: bytes | None) -> bytes | None:
    return value


def _boolean(value: bytes | None) -> bool | None:
    return None if value is None else value == b"\x01"


def _nothing(_: bytes | None) -> None:
    return None


def _unknown(_: bytes | None) -> Any:
    raise TypeError("a column has a type that gusset does not read: CAST it")


# By the type's number in `pg_type`: bool, bytea, name, int8, int2, int4, text, oid, unknown, varchar, void.
_LOADERS: dict[int, Callable[[bytes | None], Any]] = {
    16: _boolean,
    17: _bytes,
    19: _text,
    20: _integer,
    21: _integer,
    23: _integer,
    25: _text,
    26: _integer,
    705: _text,
    1043: _text,
    2278: _nothing,
}
