"""What services use of the database: verified reads, and changes of signed rows.

The same for SQLite and PostgreSQL; a `Dialect` has what differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from gusset.errors import Unreachable
from gusset.vault.deadline import within
from gusset.vault.storage.known_rows import KnownRows, LookupCall
from gusset.vault.storage.signed_rows import Lookup, RowChange, RowSigner, Select, SignedTable
from gusset.vault.storage.sql import Parameters, Statement

if TYPE_CHECKING:
    from gusset.vault.storage.semaphore import Semaphore

_FREE_TIMEOUT = 2.0  # seconds to wait until a connection is free

_NONE: Parameters = {}


class Dialect(Protocol):
    """What differs between the databases. A `driver` is a connection of the database's driver."""

    errors: type[Exception]  # the base class of the driver's errors
    max_connections: int | None  # that a `Store` uses at a time; None for any number
    # Seconds that a write, or a request to a manager, may take with all its waiting; None for any time.
    write_timeout: float | None
    pipelines: bool  # whether statements are sent together, when a result is needed

    def connect(self, *, deadline: float | None = None, patient: bool = False) -> Any:
        """A new connection, made before the monotonic time `deadline`. No transaction is open.

        A `patient` one is for statements that may take long.
        """

    def is_usable(self, driver: Any) -> bool:
        """Whether a connection that was not in use can be used again."""

    def contradiction(self, driver: Any, table: str) -> str | None:
        """How a table and its indexes contradict each other; None if they do not. Reads all rows."""

    def text(self, statement: Statement) -> Any:
        """The statement as the driver takes it."""

    def begin_snapshot(self, driver: Any) -> None:
        """Begin a transaction in which all reads see the same state."""

    def begin_write(self, driver: Any, *, deadline: float | None = None) -> None:
        """Begin a transaction in which nobody else writes to the vault, waiting for others to end.

        It fails when it has not ended at the monotonic time `deadline`.
        """

    def announce(self, driver: Any) -> None:
        """Wake those who follow changes when this transaction is committed."""

    def savepoint(self, driver: Any, verb: str) -> None:
        """Execute `SAVEPOINT`, `ROLLBACK TO SAVEPOINT` or `RELEASE SAVEPOINT` for one write of a batch."""

    def now(self) -> datetime:
        """The time by which rights and leases end: that of all processes that use the database."""

    def pieces(self, driver: Any, statement: Statement, values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """The rows of a SELECT within a transaction, some at a time, each time with their description.

        `values` are those of its parameters, in their order.
        """

    def is_no_text(self, error: Exception) -> bool:
        """Whether a row was not read since a text in it is not UTF-8, so that it was altered."""

    def any_text(self, driver: Any) -> AbstractContextManager[None]:
        """Within the context, such a text is read as bytes."""

    def translated(self, error: Exception) -> Exception:
        """gusset's error for one of the driver, without its text, which may contain parameters."""


class Connection:
    """Executes statements. Rows of signed tables are verified when they are read."""

    __slots__ = ("_signer", "dialect", "driver")

    def __init__(self, driver: Any, dialect: Dialect, signer: RowSigner | None) -> None:
        self.driver = driver
        self.dialect = dialect
        self._signer = signer  # None while a vault is opened, created, migrated or moved

    def one(self, statement: Statement, parameters: Parameters = _NONE) -> Any | None:
        """The first row, None when there is none.

        Raises:
            IntegrityError: it is a signed row that was altered.
        """
        return self._first_row(statement, parameters, self._execute(statement, parameters))

    def send_one(self, statement: Statement, parameters: Parameters = _NONE) -> Callable[[], Any | None]:
        """Send a statement with what is sent next. The result returns what `one` does, on each call."""
        return partial(self._first_row, statement, parameters, self._execute(statement, parameters))

    def _first_row(self, statement: Statement, parameters: Parameters, cursor: Any) -> Any | None:
        values = cursor.fetchone()
        row = None if values is None else self._row(statement, parameters, values, cursor)
        cursor.close()
        return row

    def all(self, statement: Statement, parameters: Parameters = _NONE) -> list[Any]:
        """Every row. Raises the same errors as `one`."""
        cursor = self._execute(statement, parameters)
        found = cursor.fetchall()
        asked = _with_sets(statement, parameters)
        rows = [self._row(statement, asked, values, cursor) for values in found]
        cursor.close()
        return rows

    def all_valid(self, select: Select, parameters: Parameters = _NONE) -> tuple[list[Any], list[Any]]:
        """Every row: the valid ones, and those that were altered, with which nothing may be done."""
        try:
            found = self._execute(select, parameters).fetchall()
        except self.dialect.errors as error:
            if not self.dialect.is_no_text(error):
                raise
            with self.dialect.any_text(self.driver):
                found = self._execute(select, parameters).fetchall()
        rows = [select.table.row_type._make(values) for values in found]
        valid: list[Any] = []
        altered: list[Any] = []
        asked = _with_sets(select, parameters)
        for row in rows:
            (valid if self._is_valid(select, asked, row) else altered).append(row)
        return valid, altered

    def one_valid_each(self, select: Select, keys: Sequence[Parameters]) -> list[Any | None]:
        """For each of `keys` the row, None when there is none or it was altered. One round trip for all."""
        rows: list[Any | None] = []
        for cursor in [self._execute(select, key) for key in keys]:
            values = cursor.fetchone()
            cursor.close()
            rows.append(None if values is None else select.table.row_type._make(values))
        return [
            row if row is not None and self._is_valid(select, key, row) else None
            for key, row in zip(keys, rows, strict=True)
        ]

    def _is_valid(self, select: Select, parameters: Parameters, row: Any) -> bool:
        assert self._signer is not None  # noqa: S101  # see `__init__`
        return select.finds(row, parameters) and self._signer.is_valid_in(self, select.table, row)

    def send_lookups(self, calls: Iterable[LookupCall]) -> Callable[[KnownRows], None]:
        """Send the statements of lookups with what is sent next. Call the result to add what they find."""
        sent = [(*call, self._execute(*call)) for call in calls]

        def add_found(known: KnownRows) -> None:
            for lookup, parameters, cursor in sent:
                values = cursor.fetchone()
                row = None if values is None else lookup.table.row_type._make(values)
                known.add(lookup, parameters, row, verified=False)

        return add_found

    def run(self, statement: Statement, parameters: Parameters = _NONE) -> None:
        """Execute a statement that returns nothing."""
        self._execute(statement, parameters).close()

    def run_many(self, statement: Statement, rows: Iterable[Parameters]) -> None:
        """Execute a statement for each of `rows`."""
        self.send_many(statement, [_values_of(statement, row) for row in rows])

    def send_many(self, statement: Statement, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each of `rows`, which have the values of its parameters in their order."""
        self.driver.executemany(self.dialect.text(statement), rows).close()

    def _execute(self, statement: Statement, parameters: Parameters) -> Any:
        if statement.lists:
            statement, parameters = statement.with_lists(parameters)
        return self._send(statement, _values_of(statement, parameters))

    def _send(self, statement: Statement, values: Sequence[Any]) -> Any:
        """Execute a statement with the values of its parameters, in their order."""
        return self.driver.execute(self.dialect.text(statement), values)

    def _row(self, statement: Statement, parameters: Parameters, values: Any, cursor: Any) -> Any:
        if isinstance(statement, Select):
            row = statement.table.row_type._make(values)
            self._verify(statement, parameters, row)
            return row
        return statement.row(values, cursor.description)

    def _verify(self, select: Select, parameters: Parameters, row: Any) -> None:
        if self._signer is not None:
            self._signer.check(self, select.table, row)
            select.check_found(row, parameters)


def _values_of(statement: Statement, parameters: Parameters) -> list[Any]:
    return [parameters[name] for name in statement.names]


def _with_sets(statement: Statement, parameters: Parameters) -> Parameters:
    """The parameters with sets for lists: each row that is found is looked up in them."""
    if not statement.lists:
        return parameters
    return {**parameters, **{name: frozenset(parameters[name]) for name in statement.lists}}


class Transaction(Connection):
    """One write, within the transaction of its batch. Changes of signed rows are signed and noted.

    `seq` is the number of the audit record that the changes will be part of, `at` its time.
    """

    __slots__ = ("_known", "at", "changes", "changes_access", "seq", "written")

    def __init__(
        self,
        driver: Any,
        dialect: Dialect,
        signer: RowSigner,
        *,
        seq: int,
        at: str,
        known: KnownRows | None = None,
    ) -> None:
        """`known` are the rows that the batch knows; it needs none if its statements may be rolled back."""
        super().__init__(driver, dialect, signer)
        self._known = known
        self.seq = seq
        self.at = at
        self.changes: list[RowChange] = []
        self.written = False  # whether it has executed anything but a SELECT
        self.changes_access = False  # whether it changes who may do what

    def one(self, statement: Statement, parameters: Parameters = _NONE) -> Any | None:
        known = self._known
        if known is None or not isinstance(statement, Lookup):
            return super().one(statement, parameters)
        try:
            return known.get(statement, parameters, partial(self._verify, statement, parameters))
        except KeyError:
            row = super().one(statement, parameters)
            known.add(statement, parameters, row, verified=True)
            return row

    def insert(self, table: SignedTable, values: Mapping[str, Any]) -> Any:
        """Insert a row; columns that are not in `values` are NULL. Returns the row."""
        row = self._signed(table, [None] * len(table.all_columns), values)
        self._change(table.insert, table, None, row)
        return row

    def update(self, table: SignedTable, row: Any, **values: Any) -> Any:
        """Change columns of `row`, a row that was read in this transaction. Returns the new row."""
        new = self._signed(table, list(row), values)
        self._change(table.update(tuple(values)), table, row, new)
        return new

    def delete(self, table: SignedTable, row: Any) -> None:
        """Remove `row`, a row that was read in this transaction."""
        self._change(table.delete, table, row, None)
        self.changes.append(RowChange(table.name, table.key_text(row), None, None))

    def _signed(self, table: SignedTable, columns: list[Any], values: Mapping[str, Any]) -> Any:
        """The row with `columns`, but for `values`, the number of the audit record, and the HMAC.

        `columns` are those of the row that it replaces; all are None for a new one.
        """
        assert self._signer is not None  # noqa: S101  # see `__init__`
        for name, value in values.items():
            columns[table.positions[name]] = value
        before = columns[-1]
        columns[-2] = self.seq
        columns[-1] = mac = self._signer.mac(table, columns)
        row = table.row_type._make(columns)
        self.changes.append(RowChange(table.name, table.key_text(row), mac, before))
        return row

    def _change(self, statement: Statement, table: SignedTable, before: Any, after: Any) -> None:
        """Execute a statement that makes `after` of the row `before`. One of them may be None."""
        row = before if after is None else after
        if statement is not table.insert:  # whose parameters are all columns, in their order
            row = [row[table.positions[name]] for name in statement.names]
        self._send(statement, row).close()
        if self._known is not None:
            self._known.change(table, before, after)

    def run(self, statement: Statement, parameters: Parameters = _NONE) -> None:
        super().run(statement, parameters)
        self._forget_rows()

    def send_many(self, statement: Statement, rows: Iterable[Sequence[Any]]) -> None:
        self.written = True
        super().send_many(statement, rows)
        self._forget_rows()

    def _forget_rows(self) -> None:
        if self._known is not None:
            self._known.forget()

    def _send(self, statement: Statement, values: Sequence[Any]) -> Any:
        if not statement.reads:
            self.written = True
        return super()._send(statement, values)


class Store:
    """The vault's database as services read it. Connections are kept open and used again.

    Thread-safe. Both context managers translate the driver's errors into gusset's.
    """

    def __init__(self, dialect: Dialect, signer: RowSigner | None, idle: Sequence[Any] = ()) -> None:
        """Without a `signer` no row is verified: only for what is read before the keyring is.

        `idle` are open connections that it takes over.
        """
        self._dialect = dialect
        self._signer = signer
        self._idle = list(idle)  # append and pop are atomic
        self._semaphore = _semaphore(dialect.max_connections)
        self._closed = False

    def signed_by(self, signer: RowSigner) -> Store:
        """A store that verifies rows. It takes over the connections of this one."""
        idle, self._idle = self._idle, []
        return Store(self._dialect, signer, idle)

    def read(self) -> _Borrowed:
        """A connection on which each statement sees the newest data."""
        return _Borrowed(self, self._dialect, snapshot=False)

    def snapshot(self) -> _Borrowed:
        """A connection on which all statements see the same state."""
        return _Borrowed(self, self._dialect, snapshot=True)

    def take(self) -> Connection:
        """A connection. Raises Unreachable if all are in use for too long."""
        if self._semaphore is not None:
            timeout = within(_FREE_TIMEOUT) - time.monotonic()
            if not self._semaphore.acquire(timeout):
                raise Unreachable("too many requests use the database at the same time", hint="try again")
        try:
            return Connection(self._idle_driver() or self._dialect.connect(), self._dialect, self._signer)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self._semaphore is not None:
            self._semaphore.release()

    def _idle_driver(self) -> Any | None:
        """A connection that is not in use. Those that the server has ended meanwhile are closed."""
        while self._idle:
            try:
                driver = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if self._dialect.is_usable(driver):
                return driver
            driver.close()
        return None

    def give_back(self, driver: Any, *, usable: bool) -> None:
        self._release()
        if usable and not self._closed:
            self._idle.append(driver)
        else:
            driver.close()

    def close(self) -> None:
        """Close the connections that are not in use, and the others when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _semaphore(count: int | None) -> Semaphore | None:
    if count is None:
        return None
    # Imported here because it imports asyncio, which short commands have no use for.
    from gusset.vault.storage.semaphore import Semaphore

    return Semaphore(count)


def iterate(connection: Connection, statement: Statement, parameters: Parameters = _NONE) -> Iterator[Any]:
    """Every row of `statement`, read in pieces, in the connection's snapshot."""
    found = connection.dialect.pieces(connection.driver, statement, _values_of(statement, parameters))
    for rows, description in found:
        for values in rows:
            yield statement.row(values, description)


def unverified_rows(connection: Connection, table: SignedTable) -> Generator[Any, None, None]:
    """Every row of a signed table, read in pieces in the connection's snapshot, not verified."""
    for row in iterate(connection, table.all_rows):
        yield table.row_type._make(row)


class _Borrowed:
    """A connection of a `Store` for a while. A class: half the cost of a generator."""

    __slots__ = ("_connection", "_dialect", "_snapshot", "_store")

    def __init__(self, store: Store, dialect: Dialect, *, snapshot: bool) -> None:
        self._store = store
        self._dialect = dialect
        self._snapshot = snapshot
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        try:
            connection = self._connection = self._store.take()
            if self._snapshot:
                self._dialect.begin_snapshot(connection.driver)
        except (self._dialect.errors, OSError) as error:
            self._give_back(usable=False)
            raise self._dialect.translated(error) from None
        except BaseException:
            self._give_back(usable=False)
            raise
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = isinstance(error, (self._dialect.errors, OSError))
        usable = False
        try:
            if self._snapshot and self._connection is not None and not failed:
                self._connection.driver.rollback()
            usable = not failed
        except self._dialect.errors:
            pass
        finally:  # also when the greenlet is cancelled: others wait for the connection
            self._give_back(usable=usable)
        if isinstance(error, (self._dialect.errors, OSError)):
            raise self._dialect.translated(error) from None

    def _give_back(self, *, usable: bool) -> None:
        if self._connection is not None:
            self._store.give_back(self._connection.driver, usable=usable)
            self._connection = None
