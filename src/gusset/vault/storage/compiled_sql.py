"""Statements of the hot path: written in SQLAlchemy Core, compiled once, run through the driver.

An execution by SQLAlchemy costs several times what SQLite needs for such a
statement, and a write makes five. So their text is kept, and given to the
driver's cursor within SQLAlchemy's own connection and transaction. Only for
texts, integers and bytes, which drivers take and give as they are.
"""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql import ClauseElement

Parameters = Mapping[str, Any]


class Prepared:
    """One statement. `columns` names the parameters of an INSERT that has no VALUES yet."""

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        selected = getattr(statement, "selected_columns", ())
        self._row = _row_type([column.key for column in selected])
        self._compiled: dict[str, tuple[str, Sequence[str] | None]] = {}

    def run(self, connection: Connection, parameters: Parameters) -> None:
        """Carry it out once."""
        self._execute(connection, parameters).close()

    def run_many(self, connection: Connection, parameters: Sequence[Parameters]) -> None:
        """Carry it out for each."""
        text, names = self._text(connection.dialect)
        cursor = connection.connection.cursor()
        cursor.executemany(text, [_given(names, each) for each in parameters])
        cursor.close()

    def one(self, connection: Connection, parameters: Parameters) -> Any | None:
        """The first row that it selects, as a named tuple; None when there is none."""
        cursor = self._execute(connection, parameters)
        row = cursor.fetchone()
        cursor.close()
        return None if row is None else self._row._make(row)

    def all(self, connection: Connection, parameters: Parameters) -> list[Any]:
        """Every row that it selects, as named tuples."""
        cursor = self._execute(connection, parameters)
        rows = [self._row._make(row) for row in cursor.fetchall()]
        cursor.close()
        return rows

    def _execute(self, connection: Connection, parameters: Parameters) -> Any:
        text, names = self._text(connection.dialect)
        cursor = connection.connection.cursor()
        cursor.execute(text, _given(names, parameters))
        return cursor

    def _text(self, dialect: Dialect) -> tuple[str, Sequence[str] | None]:
        """The statement in the dialect's SQL; the order of its parameters, None where they have names."""
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled: Any = self._statement.compile(dialect=dialect, column_keys=self._columns)
            known = self._compiled[dialect.name] = str(compiled), compiled.positiontup
        return known


class Reader:
    """A connection for each thread that reads by prepared statements, kept open.

    Taking one from the pool and giving it back costs more than a look-up. No
    transaction is begun, so each statement sees what is newest.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._mine = threading.local()
        self._opened: list[Connection] = []

    @property
    def connection(self) -> Connection:
        """The connection of the calling thread."""
        found: Connection | None = getattr(self._mine, "connection", None)
        if found is None:
            found = self._mine.connection = self._engine.connect()
            self._opened.append(found)
        return found

    def close(self) -> None:
        for connection in self._opened:
            connection.close()


def _row_type(columns: Sequence[str]) -> Any:
    return namedtuple("Row", columns)  # its fields are known at run time only


def _given(names: Sequence[str] | None, parameters: Parameters) -> Any:
    return parameters if names is None else [parameters[name] for name in names]
