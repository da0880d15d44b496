"""Compares the rows in the database with what the audit log says they must be.

The newest record about a row says what the row must be: one that was altered, added, removed
or rolled back to an older state is found. `log_state` finds what was wrong only for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gusset.vault.audit.log_state import LogState, RowState
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.signed_rows import RowSigner, SignedTable


class RowComparison:
    """Compares the rows of all signed tables with a `LogState`."""

    def __init__(self, state: LogState, signer: RowSigner) -> None:
        self.state = state
        self._signer = signer
        self._seen: set[tuple[str, str]] = set()
        self._seen_again: set[tuple[str, str]] = set()
        self._unreadable: set[str] = set()  # names of tables

    def unreadable(self, table: SignedTable) -> None:
        """Note that not all rows of a table could be read."""
        self._unreadable.add(table.name)

    def has_read(self, *tables: SignedTable) -> bool:
        """Whether all rows of these tables could be read."""
        return self._unreadable.isdisjoint([table.name for table in tables])

    def table_problems(self, table: SignedTable, rows: Iterable[Any]) -> Iterator[str]:
        """How the rows of one table differ from what the log says. Pass each row once."""
        for row in rows:
            yield from self.duplicates(table, [row])
            yield from self.differences(table, [row])

    def duplicates(self, table: SignedTable, rows: Iterable[Any]) -> Iterator[str]:
        """Which rows of one table there are more than once. Pass each row once."""
        for row in rows:
            key = (table.name, table.key_text(row))
            if key in self._seen and key not in self._seen_again:
                self._seen_again.add(key)
                yield f"{table.name}: {table.describe(row)} is in the database more than once"
            self._seen.add(key)

    def differences(self, table: SignedTable, rows: Iterable[Any]) -> Iterator[str]:
        """How rows of one table differ from what the log says."""
        for row in rows:
            state = self.state.rows.get((table.name, table.key_text(row)))
            if (problem := self._row_problem(table, row, state)) is not None:
                yield f"{table.name}: {table.describe(row)} {problem}"

    def _row_problem(self, table: SignedTable, row: Any, state: RowState | None) -> str | None:
        valid = self._signer.is_valid(table, row)
        if valid and (state is None or row.changed_seq > state.seq):
            return f"was written by record {row.changed_seq}, but the log has no record of that"
        if state is None:
            return "is in the database, but no record says that it was written"
        if state.mac is None:
            return f"was removed by record {state.seq} ({state.act}), but is in the database again"
        if valid and row.mac == state.mac:
            return None
        if valid and row.changed_seq < state.seq:
            return (
                f"was rolled back to its state of record {row.changed_seq}; "
                f"record {state.seq} ({state.act}) has changed it since"
            )
        return f"was altered after record {state.seq} ({state.act}) wrote it"

    def missing(self, until: int | None = None) -> Iterator[str]:
        """The rows that only the log has, but for tables that could not be read.

        Call it after `table_problems` for each table. With `until`, only rows that no record after that one
        has changed.
        """
        for (table, key), state in self.state.rows.items():
            if table in self._unreadable or (until is not None and state.seq > until):
                continue
            if state.mac is not None and (table, key) not in self._seen:
                yield f"{table}: the row {key} of record {state.seq} ({state.act}) is missing"


def contradiction(connection: Connection, table: SignedTable) -> Iterator[str]:
    """How the table and its indexes contradict each other: a comparison may see one, and use the other."""
    found = connection.dialect.contradiction(connection.driver, table.name)
    if found is not None:
        yield f"{table.name}: its rows and indexes contradict each other ({found})"


def unreadable(what: str, error: Exception) -> str:
    """The problem that gusset fails by what it reads of `what`."""
    return (
        f"{what}: cannot be read ({type(error).__name__}): the type of a column was altered, or what it holds"
    )


def unopened(
    versions: Iterable[Any], secrets: Mapping[str, Any], opens: Callable[[Any, Any], bool]
) -> Iterator[str]:
    """Which stored versions do not open. `secrets` are rows by id; `opens` gets both rows."""
    for row in versions:
        secret = secrets.get(row.secret_id)
        if secret is not None and row.sealed is not None and not opens(secret, row):
            yield f"secret_versions: the bytes of {secret.name} (version {row.version}) do not open"
