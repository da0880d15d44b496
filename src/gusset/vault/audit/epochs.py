"""Epochs: each begins when an administrator accepts that a part of the audit log is lost.

The numbers of lost records are given again, to other records. The epoch is part of what
the HMAC of a row covers, so a row that a lost record wrote does not verify any more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from gusset.errors import IntegrityError
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import EPOCHS

FIRST = 1  # the epoch that a vault is created in; it has no row

_LIST = Statement("SELECT number, first_seq FROM epochs ORDER BY number")
_LIST_VERIFIED = Select(EPOCHS, then="ORDER BY number")
_FIND_NEWEST = Statement("SELECT max(number) AS number FROM epochs")


class Epochs:
    """The epochs of a vault, as they were last read."""

    def __init__(self) -> None:
        self._begins: list[tuple[int, int]] = []  # (number of an epoch's first record, number of the epoch)

    @property
    def newest(self) -> int:
        return self._begins[-1][1] if self._begins else FIRST

    def of(self, seq: int) -> int:
        """The epoch in which the audit record `seq` was written."""
        if not self._begins:
            return FIRST
        index = bisect_right(self._begins, seq, key=lambda begin: begin[0])
        return self._begins[index - 1][1] if index else FIRST

    def has_lost(self, epoch: int, seq: int) -> bool:
        """Whether the loss of the record `seq` of that epoch was accepted."""
        index = bisect_right(self._begins, epoch, key=lambda begin: begin[1])
        return index < len(self._begins) and self._begins[index][0] <= seq

    def begin(self, number: int, first_seq: int) -> None:
        """Let an epoch begin with a record of the current transaction.

        If that is rolled back, the next transaction's `refresh` returns to what is stored.
        """
        del self._begins[bisect_left(self._begins, first_seq, key=lambda begin: begin[0]) :]
        self._begins.append((first_seq, number))

    def refresh(self, connection: Connection, newest: int) -> None:
        """Read the epochs again, unless `newest` is the newest one that is known.

        Raises:
            IntegrityError: they were altered.
        """
        if newest != self.newest:
            self.load(connection)

    def reload_if_other(self, connection: Connection) -> bool:
        """Read the epochs again if others have changed them. Raises the same error as `refresh`."""
        row = connection.one(_FIND_NEWEST)
        if row is None or (row.number or FIRST) == self.newest:
            return False
        self.load(connection)
        return True

    def load(self, connection: Connection) -> None:
        """Read the epochs. Raises the same error as `refresh`."""
        rows = connection.all(_LIST)
        if any(type(each) is not int for row in rows for each in row):  # SQLite's columns hold any type
            raise IntegrityError("the epochs were altered in the database")
        before, self._begins = self._begins, [(row.first_seq, row.number) for row in rows]
        try:
            if rows:
                connection.all(_LIST_VERIFIED)  # with these epochs, which their own HMACs cover
        except IntegrityError:
            self._begins = before
            raise
