"""Statements of the hot path: written in SQLAlchemy Core, compiled once, executed by the driver.

SQLAlchemy's own execution costs several times what SQLite needs for such a
statement, and one write makes five of them. So the compiled text goes straight
to the driver's cursor, within SQLAlchemy's connection and transaction. This
works only for text, integers and bytes, which drivers need not convert.
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


class CompiledStatement:
    """One statement. `columns` names the parameters of an INSERT that has no VALUES yet."""

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        selected = getattr(statement, "selected_columns", ())
        self._row = _row_type([column.key for column in selected])
        self._compiled: dict[str, tuple[str, Sequence[str] | None]] = {}

    def run(self, connection: Connection, parameters: Parameters) -> None:
        """Execute it once."""
        self._execute(connection, parameters).close()

    def run_many(self, connection: Connection, parameters: Sequence[Parameters]) -> None:
        """Execute it for each of `parameters`."""
        text, names = self.compiled(connection.dialect)
        cursor = connection.connection.cursor()
        cursor.executemany(text, [_driver_parameters(names, each) for each in parameters])
        cursor.close()

    def one(self, connection: Connection, parameters: Parameters) -> Any | None:
        """The first row as a named tuple, None when there is none."""
        cursor = self._execute(connection, parameters)
        row = cursor.fetchone()
        cursor.close()
        return None if row is None else self._row._make(row)

    def all(self, connection: Connection, parameters: Parameters) -> list[Any]:
        """Every row as a named tuple."""
        cursor = self._execute(connection, parameters)
        rows = [self._row._make(row) for row in cursor.fetchall()]
        cursor.close()
        return rows

    def _execute(self, connection: Connection, parameters: Parameters) -> Any:
        text, names = self.compiled(connection.dialect)
        cursor = connection.connection.cursor()
        cursor.execute(text, _driver_parameters(names, parameters))
        return cursor

    def compiled(self, dialect: Dialect) -> tuple[str, Sequence[str] | None]:
        """The statement in the dialect's SQL; the order of its parameters, None where they have names."""
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled: Any = self._statement.compile(dialect=dialect, column_keys=self._columns)
            known = self._compiled[dialect.name] = str(compiled), compiled.positiontup
        return known


class ReadConnections:
    """One connection for each reading thread, kept open; for compiled statements.

    Taking a connection from the pool and giving it back costs more than a
    look-up. No transaction begins, so each statement sees the newest data.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._local = threading.local()
        self._opened: list[Connection] = []

    @property
    def current(self) -> Connection:
        """The connection of the calling thread."""
        found: Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._engine.connect()
            self._opened.append(found)
        return found

    def close(self) -> None:
        for connection in self._opened:
            connection.close()


def _row_type(columns: Sequence[str]) -> Any:
    return namedtuple("Row", columns)  # its fields are known at run time only


def _driver_parameters(names: Sequence[str] | None, parameters: Parameters) -> Any:
    return parameters if names is None else [parameters[name] for name in names]
