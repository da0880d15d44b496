"""Accepting that the database has lost audit records: a new epoch begins."""

from __future__ import annotations

from dataclasses import dataclass

from gusset.errors import IntegrityError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain import Chain, Head
from gusset.vault.audit.epochs import Epochs
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.known_head import KnownHead, KnownRecord
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.services.access_keys import new_access_generation
from gusset.vault.storage.connection import Store, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.tables import EPOCHS, SECRETS

VERSION_GAP = 1000  # what version numbers and revisions jump by: more than a lost part of the log has used
_PIECE = 500  # secrets in one transaction

_SECRETS_AFTER = Select(SECRETS, also="id > :after", then="ORDER BY id LIMIT :limit")


@dataclass(frozen=True, slots=True)
class Loss:
    """The log ends with `head`; `known` is a record that it should have, None if no such record is known."""

    head: Head
    known: KnownRecord | None


class LostRecords:
    """Finds out what is lost, and accepts it. For a process that does nothing else."""

    def __init__(
        self, store: Store, writer: Writer, clock: Clock, *, chain: Chain, known: KnownHead, epochs: Epochs
    ) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._chain = chain
        self._known = known
        self._epochs = epochs

    def find(self) -> Loss:
        """Compare the log with the witness file of this process."""
        with self._store.snapshot() as connection:
            head = self._chain.head(connection)
            return Loss(head, self._known.record if self._known.is_lost(connection, head.seq) else None)

    def accept(self, *, actor: str) -> int:
        """Begin a new epoch. Returns its number.

        Rows that lost records wrote do not verify any more, should they be restored. Version numbers
        and revisions of all secrets jump, so that none is used twice and replicas fetch anew. If
        this is interrupted, call it again.
        """
        loss = self.find()
        with self._known.accepting():
            number = self._writer.run(
                AuditEvent(actor, Action.AUDIT_ACCEPT_LOSS, "epoch"),
                lambda transaction: self._begin(transaction, loss, actor),
            )
            after: str | None = ""
            while after is not None:
                after = self._renumber(number, after, actor)
        return number

    def _begin(self, transaction: Transaction, loss: Loss, actor: str) -> WriteResult[int]:
        now = self._clock()
        # At least the current time: epochs may have been lost, too, and their numbers may be unknown.
        number = max(self._epochs.newest + 1, loss.known.epoch + 1 if loss.known else 0, int(now.timestamp()))
        self._epochs.begin(number, transaction.seq)
        transaction.insert(
            EPOCHS, {"number": number, "first_seq": transaction.seq, "started_at": timestamp(now)}
        )
        new_access_generation(transaction)
        details = {"epoch": number, "kept": {"seq": loss.head.seq, "hash": loss.head.hash.hex()}}
        if loss.known is not None:
            details["lost"] = {"seq": loss.known.seq, "hash": loss.known.hash.hex()}
        return WriteResult(
            number, [AuditEvent(actor, Action.AUDIT_ACCEPT_LOSS, f"epoch {number}", details=details)]
        )

    def _renumber(self, epoch: int, after: str, actor: str) -> str | None:
        """Let the numbers of some secrets jump. Returns the last one's id, None when there are no more."""

        def write(transaction: Transaction) -> WriteResult[str | None]:
            rows, altered = transaction.all_valid(_SECRETS_AFTER, {"after": after, "limit": _PIECE})
            for row in rows:
                transaction.update(
                    SECRETS,
                    row,
                    last_version=row.last_version + VERSION_GAP,
                    revision=row.revision + VERSION_GAP,
                )
            ids = [row.id for row in [*rows, *altered]]
            if any(type(each) is not str for each in ids):
                raise IntegrityError(
                    "the id of a row in secrets was altered", hint="`gusset audit verify` says which"
                )
            last = max(ids, default=None)
            details = {"secrets": len(rows)}
            event = AuditEvent(actor, Action.AUDIT_ACCEPT_LOSS, f"epoch {epoch}", details=details)
            return WriteResult(last, [event] if rows else [])

        return self._writer.run(AuditEvent(actor, Action.AUDIT_ACCEPT_LOSS, f"epoch {epoch}"), write)
