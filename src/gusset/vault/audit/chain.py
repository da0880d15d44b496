"""The chain: how the audit log grows.

Each record's hash covers the hash before it; its HMAC proves that a holder of
the keyring wrote it. A signed checkpoint names the newest record, at most once
per `CHECKPOINT_INTERVAL` while there are writes; `sign_head` signs what is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Protocol

from gusset.errors import IntegrityError, RecordsLost
from gusset.printable import printable
from gusset.vault.audit.checkpoints import Checkpoint
from gusset.vault.audit.epochs import FIRST, Epochs
from gusset.vault.audit.events import (
    RECORD_COLUMNS,
    AuditEvent,
    chain_hash,
    details_text,
    genesis_hash,
)
from gusset.vault.audit.known_head import KnownHead, KnownRecord, check_genuine, forged_head
from gusset.vault.clock import Clock, timestamp
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.meta import SCHEMA
from gusset.vault.storage.schema import check_stored_revisions
from gusset.vault.storage.signed_rows import RowChange, changes_text
from gusset.vault.storage.sql import Statement

# No record stays without a checkpoint for more than a second. While there are writes, their batches
# add checkpoints; a timer signs only what is left after them.
CHECKPOINT_INTERVAL = 0.6  # seconds

_FIND_HEAD = Statement(
    "SELECT seq, hash, (SELECT max(number) FROM keyring WHERE kind = 'manifest') AS generation, "
    "(SELECT max(number) FROM epochs) AS epoch, "
    f"(SELECT value FROM meta WHERE key = '{SCHEMA}') AS revisions "
    "FROM audit WHERE seq = (SELECT max(seq) FROM audit)"
)
_ADD_RECORD = Statement(
    f"INSERT INTO audit ({', '.join(RECORD_COLUMNS)}) "
    f"VALUES ({', '.join(f':{name}' for name in RECORD_COLUMNS)})"
)
_FIND_CHECKPOINT = Statement("SELECT seq FROM checkpoints WHERE seq = :seq")
_ADD_CHECKPOINT = Statement(
    "INSERT INTO checkpoints (seq, at, hash, signature, signing_key, keyring, epoch) "
    "VALUES (:seq, :at, :hash, :signature, :key, :keyring, :epoch)"
)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain: the newest record's number and hash.

    `generation` is that of the stored keyring, `epoch` the newest one that is stored, `revisions`
    the stored row about the schema.
    """

    seq: int
    hash: Any  # bytes, unless the row was altered: SQLite's columns hold any type
    _: KW_ONLY
    generation: int | None = None
    epoch: int = FIRST
    revisions: str | None = None


@dataclass(frozen=True, slots=True)
class Extension:
    """What a transaction has added to the log: its new head, and a checkpoint if one was due.

    `made_at` is a time of the monotonic clock within the transaction.
    """

    head: KnownRecord
    checkpoint: Checkpoint | None
    made_at: float


class CurrentKeyring(Protocol):
    """The keyring to use. `KeyringStore` is one."""

    @property
    def current(self) -> Keyring:
        """The keyring as it was last read."""

    def refresh(self, connection: Connection, generation: int) -> None:
        """Make the stored keyring, of that generation, the current one."""


class ChainTail:
    """The records that one transaction adds."""

    def __init__(self, head: Head, at: str, keys: CurrentKeyring) -> None:
        self.rows: list[tuple[Any, ...]] = []  # with the values of `RECORD_COLUMNS`
        self._seq = head.seq
        self._hash = head.hash
        self.at = at  # the time of the records
        self._keys = keys  # a write of this transaction may replace the keyring

    @property
    def head(self) -> Head:
        """The end of the chain with the added records."""
        return Head(self._seq, self._hash)

    @property
    def next_seq(self) -> int:
        """The number of the record that is added next."""
        return self._seq + 1

    def add(self, events: Sequence[AuditEvent], changes: Sequence[RowChange] = ()) -> None:
        """Add a record of each event; the first has `changes`, which were made with its number."""
        for event in events:
            seq = self._seq = self._seq + 1
            details = details_text(event.stored_details())
            changed = changes_text(changes) if changes else None
            # A text that the database cannot store would fail the other writes of the batch, too.
            actor, target = printable(str(event.actor)), printable(event.target)
            act = (actor, str(event.action), target, event.outcome, details)
            fields = (seq, self.at, *act)
            self._hash = chain_hash(self._hash, *fields, *((changed,) if changed else ()))
            mac = self._keys.current.audit_mac(self._hash, seq)
            self.rows.append((*fields, changed, self._hash, mac))
            changes = ()


class Chain:
    """Extends the chain, for the writer: within its transaction, once per batch."""

    def __init__(
        self, vault: str, keys: CurrentKeyring, clock: Clock, *, epochs: Epochs, known: KnownHead
    ) -> None:
        self._vault = vault
        self._keys = keys
        self._clock = clock
        self._epochs = epochs
        self._known = known
        self._genesis = genesis_hash(vault)
        self._signed_at: float | None = None  # monotonic: a clock that is set back delays nothing
        self._witnessed = (
            self._genesis
        )  # hash of the last record whose checkpoint was given to the witness file

    def head(self, connection: Connection) -> Head:
        """The newest record's number and hash; number 0 for an empty log.

        Raises:
            IntegrityError: what was read about it has another type than gusset writes.
        """
        return self.send_head(connection)()

    def send_head(self, connection: Connection) -> Callable[[], Head]:
        """Have `head` read with what is sent next. The result waits for it."""
        fetch = connection.send_one(_FIND_HEAD)

        def head() -> Head:
            row = fetch()
            if row is None:
                return Head(0, self._genesis)
            _check_types(row)
            epoch = FIRST if row.epoch is None else row.epoch
            return Head(row.seq, row.hash, generation=row.generation, epoch=epoch, revisions=row.revisions)

        return head

    def tail(self, connection: Connection, read_head: Callable[[], Head]) -> ChainTail:
        """What a write transaction adds its records to. Reloads keyring and epochs if others changed them.

        `read_head` is what `send_head` returned, the first statement of the transaction.

        Raises:
            VaultTooNew: a newer gusset has migrated the database, and this one can no longer use it.
            RecordsLost, IntegrityError: see `KnownHead` and `check_genuine`.
        """
        try:
            head = read_head()
        except connection.dialect.errors:
            # What was sent after it may have failed because a newer gusset has changed the schema.
            with suppress(connection.dialect.errors):
                check_stored_revisions(read_head().revisions)
            raise
        return ChainTail(self._refreshed(connection, head), timestamp(self._clock()), self._keys)

    def _refreshed(self, connection: Connection, head: Head) -> Head:
        check_stored_revisions(head.revisions)
        self._check(connection, head)
        return head

    def _check(self, connection: Connection, head: Head) -> None:
        """Refresh keyring and epochs, and verify the head unless this process knows it.

        Raises:
            RecordsLost, IntegrityError: see `KnownHead` and `check_genuine`.
        """
        self._epochs.refresh(connection, head.epoch)
        is_known = self._known.is_newest(head.seq, head.hash)
        row = None if is_known else self._known.read_other(connection, head.seq)
        if head.generation is not None:  # another process may have replaced the audit key, too
            self._keys.refresh(connection, head.generation)
        if is_known or (head.seq == 0 and row is None):  # an empty log
            return
        if row is None:
            raise forged_head(head.seq)  # it was removed meanwhile
        check_genuine(row, head.hash, self._keys.current, self._genesis)
        self._known.remember(KnownRecord(self._epochs.of(head.seq), head.seq, head.hash))

    def extend(self, connection: Connection, tail: ChainTail) -> Extension | None:
        """Store the records of `tail`, and a checkpoint if one is due. None if there are no records.

        Once it is committed, pass the result to `committed`.
        """
        if not tail.rows:
            return None
        connection.send_many(_ADD_RECORD, tail.rows)
        head = tail.head
        return self._extension(
            head, self._add_checkpoint(connection, head) if self._checkpoint_due() else None
        )

    def _extension(self, head: Head, checkpoint: Checkpoint | None) -> Extension:
        record = KnownRecord(self._epochs.of(head.seq), head.seq, head.hash)
        return Extension(record, checkpoint, time.monotonic())

    def committed(self, extension: Extension) -> None:
        """Remember that what `extend` or `sign_head` returned was committed."""
        self._known.remember(extension.head)
        if extension.checkpoint is not None:  # before the commit it could still be rolled back
            self._signed_at, self._witnessed = extension.made_at, extension.head.hash

    def _checkpoint_due(self) -> bool:
        return self.seconds_since_signing() >= CHECKPOINT_INTERVAL

    def seconds_since_signing(self) -> float:
        """How long ago the newest record certainly had a checkpoint; infinity if that is not known."""
        return math.inf if self._signed_at is None else time.monotonic() - self._signed_at

    def _add_checkpoint(self, connection: Connection, head: Head) -> Checkpoint:
        checkpoint = self._new_checkpoint(head)
        connection.run(
            _ADD_CHECKPOINT,
            {
                "seq": checkpoint.seq,
                "at": checkpoint.at,
                "hash": checkpoint.hash,
                "signature": checkpoint.signature,
                "key": checkpoint.key,
                "keyring": checkpoint.keyring,
                "epoch": checkpoint.epoch,
            },
        )
        return checkpoint

    def _new_checkpoint(self, head: Head) -> Checkpoint:
        keyring = self._keys.current
        unsigned = Checkpoint(
            vault=self._vault,
            seq=head.seq,
            at=timestamp(self._clock()),
            hash=head.hash,
            key=keyring.signing_key(head.seq),
            keyring=keyring.generation,
            epoch=self._epochs.of(head.seq),
        )
        return replace(unsigned, signature=keyring.sign(unsigned.signed_bytes(), head.seq))

    def signed_head(self, connection: Connection) -> Head | None:
        """The newest record's number and hash if it has a checkpoint, else None."""
        now = time.monotonic()
        head = self.head(connection)
        if not _is_signed(connection, head):
            return None
        self._signed_at = now
        return head

    def checkpoint_for_witness(self, connection: Connection, head: Head) -> Checkpoint | None:
        """A checkpoint for the witness file of this process, where another one has signed the newest record.

        None if the file already has one of that record, or this process knows records that the log has lost.

        Raises:
            IntegrityError: see `check_genuine`; its checkpoint may be forged, too.
        """
        if head.hash == self._witnessed:
            return None
        try:
            self._check(connection, head)
        except RecordsLost:
            return None
        self._witnessed = head.hash
        return self._new_checkpoint(head)

    def sign_head(self, connection: Connection) -> Extension | None:
        """Store a checkpoint of the newest record, unless it has one.

        Once it is committed, pass the result to `committed`.

        Raises:
            RecordsLost, IntegrityError: see `tail`.
        """
        head = self._refreshed(connection, self.head(connection))
        if _is_signed(connection, head):
            return None
        return self._extension(head, self._add_checkpoint(connection, head))


def _check_types(row: Any) -> None:
    """Raises IntegrityError for a row of `_FIND_HEAD` with other types: SQLite's columns hold any."""
    if type(row.seq) is not int or type(row.hash) is not bytes:
        raise IntegrityError(
            f"record {printable(str(row.seq))} of the audit log has no valid hash: nothing is written",
            hint=_RESTORE_HINT,
        )
    if row.generation is not None and type(row.generation) is not int:
        raise _altered("keyring")
    if row.epoch is not None and type(row.epoch) is not int:
        raise _altered("list of epochs")
    if row.revisions is not None and type(row.revisions) is not str:
        raise _altered("schema's number")


def _altered(what: str) -> IntegrityError:
    return IntegrityError(f"the {what} was altered in the database: nothing is written", hint=_RESTORE_HINT)


_RESTORE_HINT = "find out who can write to the database; restore it from a backup"


def _is_signed(connection: Connection, head: Head) -> bool:
    """Whether a record has a checkpoint; an empty log needs none."""
    return head.seq == 0 or connection.one(_FIND_CHECKPOINT, {"seq": head.seq}) is not None
