"""One batch: writes that share a transaction, with their audit records."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gusset.errors import GussetError, HostError, VaultError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain import Chain, ChainTail, Extension
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.refusals import RefusalSums
from gusset.vault.commit.writer import PendingWrite, Write, WriteResult
from gusset.vault.storage.connection import Connection, Dialect, Transaction
from gusset.vault.storage.known_rows import KnownRows
from gusset.vault.storage.signed_rows import RowSigner
from gusset.vault.storage.tables import FOLLOWED_TABLES


class NeedsSavepoints(Exception):
    """A write failed after it had changed something: the batch must run again, each write in a savepoint.

    This is rare, and savepoints cost more than most writes.
    """


class BatchResult:
    """What a transaction has done, for `BatchRunner.committed`: what it has added to the log, for one."""

    __slots__ = ("changes_access", "extension")

    def __init__(self) -> None:
        self.extension: Extension | None = None
        self.changes_access = False  # whether it changes who may do what


class BatchRunner:
    """Executes the writes of a batch within a transaction that its caller begins and commits.

    Two writers of a manager share it: one may commit while the other executes a batch.
    """

    def __init__(self, dialect: Dialect, signer: RowSigner, chain: Chain, witness: WitnessFile) -> None:
        self.dialect = dialect
        self.refusals = RefusalSums()
        self.witness = witness
        self.access_changes = 0  # see `Writer`
        self._lock = threading.Lock()  # guards `access_changes`
        self._signer = signer
        self._chain = chain

    def run(self, driver: Any, batch: Sequence[PendingWrite], *, savepoints: bool) -> BatchResult:
        """Execute every write and add the audit records. Once it is committed, call `committed`.

        Raises:
            NeedsSavepoints: call it again in a new transaction, with `savepoints`.
        """
        connection = Connection(driver, self.dialect, self._signer)
        known = None if savepoints else KnownRows()  # a rollback would leave wrong rows in it
        sends = known is not None and self.dialect.pipelines
        calls = [call for pending in batch for call in pending.lookups] if sends else []
        read_head = self._chain.send_head(connection)
        add_found = connection.send_lookups(calls)  # before the first wait for a result
        tail = self._chain.tail(connection, read_head)
        if known is not None:
            add_found(known)
        result, is_followed = BatchResult(), False
        try:
            for pending in batch:
                is_followed |= self._run_one(driver, pending, tail, known, result)
        except NeedsSavepoints:
            self._take_back_refusals(batch)
            raise
        result.extension = self._chain.extend(connection, tail)
        if is_followed:
            self.dialect.announce(driver)  # last: what the server does for it is short, and then it commits
        return result

    def _run_one(
        self, driver: Any, pending: PendingWrite, tail: ChainTail, known: KnownRows | None, batch: BatchResult
    ) -> bool:
        """Execute one write; without `known` rows it has a savepoint.

        Returns whether it has changed what others follow.
        """
        transaction = Transaction(
            driver, self.dialect, self._signer, seq=tail.next_seq, at=tail.at, known=known
        )
        pending.value = pending.error = None
        try:
            result = self._in_savepoint(transaction, pending) if known is None else pending.write(transaction)
        except self.dialect.errors:
            raise  # a failure of the database concerns the whole batch
        except Exception as error:
            if transaction.written and known is not None:
                raise NeedsSavepoints from None
            pending.error = error
            if isinstance(error, GussetError) and not isinstance(error, VaultError | HostError):
                refusal = replace(pending.intent, outcome=error.code)
                tail.add(self.refusals.admit([refusal], pending.counted))
            return False
        if transaction.changes and not result.events:
            raise AssertionError(f"{pending.intent.action} changes signed rows without an audit record")
        batch.changes_access = batch.changes_access or transaction.changes_access
        pending.value = result.value
        changes = transaction.changes
        events = result.events if changes else self.refusals.admit(result.events, pending.counted)
        tail.add(events, changes)
        return not FOLLOWED_TABLES.isdisjoint([change.table for change in transaction.changes])

    def failed(self, batch: Sequence[PendingWrite], error: BaseException) -> None:
        """Let every write of a batch fail: its transaction was not committed."""
        self._take_back_refusals(batch)
        for pending in batch:
            pending.error = error

    def _take_back_refusals(self, batch: Sequence[PendingWrite]) -> None:
        for pending in reversed(batch):  # what was counted last first: see `RefusalSums.take_back`
            self.refusals.take_back(pending.counted)

    def _in_savepoint(self, transaction: Transaction, pending: PendingWrite) -> WriteResult[Any]:
        driver = transaction.driver
        self.dialect.savepoint(driver, "SAVEPOINT")
        try:
            result = pending.write(transaction)
        except self.dialect.errors:
            raise
        except Exception:
            self.dialect.savepoint(driver, "ROLLBACK TO SAVEPOINT")
            self.dialect.savepoint(driver, "RELEASE SAVEPOINT")
            raise
        self.dialect.savepoint(driver, "RELEASE SAVEPOINT")
        return result

    def committed(self, result: BatchResult) -> Checkpoint | None:
        """Remember that a batch was committed. Returns its checkpoint, which belongs in the witness file."""
        if result.changes_access:
            with self._lock:
                self.access_changes += 1
        return self.signed(result.extension)

    def witness_signed_head(self, driver: Any) -> tuple[bool, Checkpoint | None]:
        """Whether the newest record has a checkpoint; and one for the witness file, if that lacks it."""
        connection = Connection(driver, self.dialect, self._signer)
        head = self._chain.signed_head(connection)
        return (False, None) if head is None else (True, self._chain.checkpoint_for_witness(connection, head))

    def sign_head(self, driver: Any) -> Extension | None:
        """Store a checkpoint of the newest record, unless it has one. Once it is committed, call `signed`."""
        return self._chain.sign_head(Connection(driver, self.dialect, self._signer))

    def signed(self, extension: Extension | None) -> Checkpoint | None:
        """Remember that a checkpoint was committed. Returns it: it belongs in the witness file."""
        if extension is None:
            return None
        self._chain.committed(extension)
        return extension.checkpoint

    def record_refusal_sums(
        self, run: Callable[[AuditEvent, Write[None]], None], *, all_of_them: bool = False
    ) -> None:
        """See `Writer.record_refusal_sums`; `run` is the writer's."""
        events = self.refusals.take_due(all_of_them=all_of_them)
        if not events:
            return
        intent = AuditEvent("gusset", Action.REQUEST_REFUSE, "several")
        try:
            run(intent, lambda _: WriteResult(None, events))
        except BaseException:
            self.refusals.put_back(events)
            raise
