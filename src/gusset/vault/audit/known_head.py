"""The newest record that this process knows to be committed: the log may neither end before it nor differ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gusset.errors import RecordsLost
from gusset.vault.audit.checkpoints import Checkpoint
from gusset.vault.audit.epochs import Epochs
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.sql import Statement

_FIND_HASH = Statement("SELECT hash FROM audit WHERE seq = :seq")


@dataclass(frozen=True, slots=True)
class KnownRecord:
    """A record that was committed. Its number may have been given once in each epoch."""

    epoch: int
    seq: int
    hash: Any  # bytes, unless the row was altered: SQLite's columns hold any type


class KnownHead:
    """Compares the log with the newest known record, before anything is added to it.

    An older copy of a database, and a standby that took over without the newest commits, lack
    records that others may have acted upon. So nothing is written until an administrator has
    accepted the loss.
    """

    def __init__(self, epochs: Epochs, witnessed: Callable[[], Checkpoint | None]) -> None:
        """`witnessed` reads the newest checkpoint of the witness file. Called until a record is known."""
        self._epochs = epochs
        self._witnessed = witnessed
        self._lock = threading.Lock()  # writers on several threads
        self._record: KnownRecord | None = None
        self._accepts = False

    @property
    def record(self) -> KnownRecord | None:
        """The newest known record; None if this process and its witness file know none."""
        if self._record is None and (point := self._witnessed()) is not None:
            self.remember(KnownRecord(point.epoch, point.seq, point.hash))
        return self._record

    def check(self, connection: Connection, seq: int, head: bytes) -> None:
        """Compare with the head of the log, its number and hash, in a transaction. The epochs are up to date.

        Raises:
            RecordsLost: the known record is not in the log any more.
        """
        known = self.record
        if known is not None and known.seq == seq and known.hash == head:
            return
        if known is not None and not self._accepts and self.is_lost(connection, seq):
            raise RecordsLost(
                f"the audit log has lost records: {_difference(known, seq)}; nothing is written",
                hint="an older copy of the database was restored, or a standby took over without the newest "
                "commits: find out which, then run `gusset audit accept-loss`",
            )
        self.remember(KnownRecord(self._epochs.of(seq), seq, head))

    def is_lost(self, connection: Connection, head_seq: int) -> bool:
        """Whether a log that ends with record `head_seq` lacks the known one, and nobody accepted that."""
        known = self.record
        if known is None or self._epochs.has_lost(known.epoch, known.seq):
            return False
        found = connection.one(_FIND_HASH, {"seq": known.seq}) if head_seq >= known.seq else None
        return found is None or bytes(found.hash) != known.hash

    def remember(self, record: KnownRecord) -> None:
        """Remember a record that was committed, if it is newer than the known one."""
        with self._lock:
            known = self._record
            if known is None or (record.epoch, record.seq) > (known.epoch, known.seq):
                self._record = record

    @contextmanager
    def accepting(self) -> Iterator[None]:
        """Let this process write although records are lost."""
        self._accepts = True
        try:
            yield
        finally:
            self._accepts = False


def _difference(known: KnownRecord, head_seq: int) -> str:
    if head_seq < known.seq:
        return f"it ends with record {head_seq}, but record {known.seq} was committed"
    return f"record {known.seq} differs from the one that was committed"
