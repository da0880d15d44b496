"""The newest record that this process knows to be committed: the log may neither end before it nor differ.

A newest record that it does not know was written by another process, or forged: before anything is added
to it, or signed, it is verified.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gusset.errors import IntegrityError, RecordsLost
from gusset.vault.audit.checkpoints import Checkpoint
from gusset.vault.audit.epochs import Epochs
from gusset.vault.audit.events import RECORD_COLUMNS, AuditRecord
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.sql import Statement

_FIND_HASH = Statement("SELECT hash FROM audit WHERE seq = :seq")
_FIND_RECORD = Statement(  # all that is compared with a new head, in one round trip
    f"SELECT {', '.join(RECORD_COLUMNS)}, (SELECT hash FROM audit WHERE seq = :previous) AS previous, "
    "(SELECT hash FROM audit WHERE seq = :known) AS known FROM audit WHERE seq = :seq"
)


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

    def is_newest(self, seq: int, head: bytes) -> bool:
        """Whether the log, whose last record has that number and hash, ends with the known one."""
        known = self.record
        return known is not None and known.seq == seq and known.hash == head

    def read_other(self, connection: Connection, seq: int) -> Any | None:
        """The newest record, which is not the known one, for `check_genuine`. None if there is none.

        The epochs are up to date.

        Raises:
            RecordsLost: the known record is not in the log any more.
        """
        known = self.record
        wanted = {"seq": seq, "previous": seq - 1, "known": seq if known is None else known.seq}
        row = connection.one(_FIND_RECORD, wanted)
        if known is None or self._accepts or self._epochs.has_lost(known.epoch, known.seq):
            return row
        if row is None or row.known != known.hash:
            raise RecordsLost(
                f"the audit log has lost records: {_difference(known, seq)}; nothing is written",
                hint="an older copy of the database was restored, or a standby took over without the newest "
                "commits: find out which, then run `gusset audit accept-loss`",
            )
        return row

    def is_lost(self, connection: Connection, head_seq: int) -> bool:
        """Whether a log that ends with record `head_seq` lacks the known one, and nobody accepted that."""
        known = self.record
        if known is None or self._epochs.has_lost(known.epoch, known.seq):
            return False
        found = connection.one(_FIND_HASH, {"seq": known.seq}) if head_seq >= known.seq else None
        return found is None or found.hash != known.hash

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


def check_genuine(row: Any, head: bytes, keyring: Keyring, genesis: bytes) -> None:
    """Verify the newest record, with the hash `head`: a row of `read_other`.

    Whoever can write the database could otherwise have a record of theirs signed, and by removing it
    later have every process miss it.

    Raises:
        IntegrityError: it was not written by a holder of the audit key, or does not follow the one before it.
    """
    try:
        record = AuditRecord(**dict(zip(RECORD_COLUMNS, row, strict=False)))
        follows = record.hash_after(genesis if record.seq == 1 else row.previous) == head == record.hash
        if follows and hmac.compare_digest(keyring.audit_mac(head, record.seq), record.mac):
            return
    except (TypeError, KeyError):  # SQLite's columns hold any type; there is no key for a negative number
        pass
    raise forged_head(row.seq)


def forged_head(seq: int) -> IntegrityError:
    """The error about a newest record that nobody may add to."""
    return IntegrityError(
        f"the newest record of the audit log, {seq}, was altered or forged: nothing is written",
        hint="find out who can write to the database, and what `gusset audit verify` names; then restore the "
        "database from a backup, or remove what was added to the table audit",
    )


def _difference(known: KnownRecord, head_seq: int) -> str:
    if head_seq < known.seq:
        return f"it ends with record {head_seq}, but record {known.seq} was committed"
    return f"record {known.seq} differs from the one that was committed"
