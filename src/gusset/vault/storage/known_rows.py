"""The rows that the writes of a batch look up, as they are at each moment.

On a database server every statement whose result is needed costs a round trip. A batch sends the
lookups of all its writes with its first statement, and a write that looks up what an earlier one
has changed gets the changed row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gusset.vault.storage.signed_rows import Lookup, SignedTable
from gusset.vault.storage.sql import Parameters

LookupCall = tuple[Lookup, Parameters]

_Key = tuple[Lookup, tuple[Any, ...]]


class KnownRows:
    """For the writes of one transaction, in which nobody else changes the tables."""

    def __init__(self) -> None:
        self._rows: dict[_Key, Any | None] = {}
        self._unverified: set[_Key] = set()
        self._of_table: dict[str, set[Lookup]] = {}

    def add(self, lookup: Lookup, parameters: Parameters, row: Any | None, *, verified: bool) -> None:
        """Remember what `lookup` has found."""
        key = (lookup, lookup.values(parameters))
        self._rows[key] = row
        self._of_table.setdefault(lookup.table.name, set()).add(lookup)
        if not verified and row is not None:
            self._unverified.add(key)

    def get(self, lookup: Lookup, parameters: Parameters, verify: Callable[[Any], None]) -> Any | None:
        """The row that `lookup` finds, or None. `verify` is called with a row that was not verified.

        Raises:
            KeyError: it is not known what it finds.
        """
        key = (lookup, lookup.values(parameters))
        row = self._rows[key]
        if key in self._unverified:
            verify(row)
            self._unverified.discard(key)
        return row

    def change(self, table: SignedTable, before: Any | None, after: Any | None) -> None:
        """Note a changed row of `table`. `before` is None for an insert, `after` for a delete."""
        for lookup in self._of_table.get(table.name, ()):
            self._set(lookup, before, None)
            self._set(lookup, after, after)

    def _set(self, lookup: Lookup, found_by: Any | None, row: Any | None) -> None:
        values = None if found_by is None else lookup.values_of(found_by)
        if values is not None:
            self._rows[lookup, values] = row
            self._unverified.discard((lookup, values))

    def forget(self) -> None:
        """Forget all rows: a statement has changed some."""
        self._rows.clear()
        self._unverified.clear()
