"""Group commit: writes that wait at the same moment share one durable transaction.

The first caller leads: it executes everything that is waiting, its own write
and others', in one transaction with their audit records, wakes their callers,
and passes the lead to the first caller that came meanwhile. There is no writer
thread, so nothing to start or stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from gusset.errors import GussetError, HostError, VaultError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain import Chain
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.refusals import RefusalSums
from gusset.vault.storage.database import translate_db_errors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WriteResult(Generic[T]):
    """What a write returns: a value for its caller, and the audit events to record with it."""

    value: T
    events: Sequence[AuditEvent]


Write = Callable[[Connection], WriteResult[T]]


class PendingWrite:
    """A write that waits for a commit, and its result or error."""

    __slots__ = ("error", "finished", "intent", "value", "wake", "write")

    def __init__(self, intent: AuditEvent, write: Write[Any]) -> None:
        self.intent = intent
        self.write = write
        self.finished = False
        self.wake: Any = None  # an event or a future: set when finished; for a thread also when it must lead
        self.value: Any = None
        self.error: BaseException | None = None

    def result(self) -> Any:
        """What the finished write returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.value


class Writer:
    """Executes writes, each whole or not at all, and returns when they are on disk."""

    def __init__(self, engine: Engine, chain: Chain, witness: WitnessFile) -> None:
        self._engine = engine
        self._writing = engine.execution_options(writing=True)
        self._chain = chain
        self._witness = witness
        self._refusals = RefusalSums()
        self._transaction_lock = threading.Lock()  # held throughout a transaction
        self._queue_lock = threading.Lock()  # guards `_queue` and `_has_leader`; held only for a moment
        self._queue: list[PendingWrite] = []
        self._has_leader = False
        self.commits = 0

    def run(self, intent: AuditEvent, write: Write[T]) -> T:
        """Execute `write` and return its value once it is committed.

        A write that raises is rolled back without affecting the others of its
        batch. When it raises a `GussetError` (a refusal), `intent` is recorded
        with the error's code as its outcome; repeated ones in sums, see `RefusalSums`.

        Raises:
            Unreachable, HostError, IntegrityError: the database failed; nothing was written.
            Exception: whatever `write` raised.
        """
        pending = PendingWrite(intent, write)
        pending.wake = threading.Event()
        with self._queue_lock:
            self._queue.append(pending)
            leads, self._has_leader = not self._has_leader, True
        if not leads:
            self._wait(pending)
        if not pending.finished:
            self._lead()
        value: T = pending.result()
        return value

    def _wait(self, pending: PendingWrite) -> None:
        try:
            pending.wake.wait()
        except BaseException:  # Ctrl-C: others must not wait for a leader that has left
            with self._queue_lock:
                if pending in self._queue:
                    self._queue.remove(pending)
                    if pending.wake.is_set():
                        self._pass_lead()
            raise

    def _lead(self) -> None:
        """Execute what is waiting.

        Callers need no lock to see that their write is finished. So all callers
        of this batch can be back in the queue before the next batch is taken.
        """
        with self._queue_lock:
            batch, self._queue = self._queue, []
        try:
            with self._transaction_lock:
                self._execute(batch)
        finally:
            with self._queue_lock:
                self._pass_lead()
            for pending in batch:
                pending.wake.set()

    def _pass_lead(self) -> None:
        """Make the first caller in the queue the leader. Requires `_queue_lock`."""
        self._has_leader = bool(self._queue)
        if self._has_leader:
            self._queue[0].wake.set()

    def _execute(self, batch: Sequence[PendingWrite]) -> None:
        """Execute a batch in one transaction; if that fails as a whole, every write has failed."""
        try:
            with translate_db_errors(self._engine):
                checkpoint = self._transaction(batch)
        except BaseException as error:
            for pending in batch:
                pending.error, pending.finished = error, True
            if not isinstance(error, Exception):  # Ctrl-C goes on in the leader, after the others have ended
                raise
            return
        self.commits += 1
        for pending in batch:
            pending.finished = True
        if checkpoint:
            self._witness.add(checkpoint)

    def _transaction(self, batch: Sequence[PendingWrite]) -> Checkpoint | None:
        with self._writing.connect() as connection:
            single = len(batch) == 1
            with connection.begin() as transaction:
                events = self._run_batch(connection, batch, single)
                if not (single and batch[0].error):
                    return self._chain.extend(connection, events) if events else None
                transaction.rollback()
            with connection.begin():  # a single write that was refused: only its record is kept
                return self._chain.extend(connection, events) if events else None

    def _run_batch(
        self, connection: Connection, batch: Sequence[PendingWrite], single: bool
    ) -> list[AuditEvent]:
        """Run every write of a batch. Returns the events to record."""
        return [event for pending in batch for event in self._run_one(connection, pending, single)]

    def _run_one(self, connection: Connection, pending: PendingWrite, single: bool) -> Sequence[AuditEvent]:
        """Run one write, in a savepoint unless it is the only one. Returns the events to record."""
        try:
            result = pending.write(connection) if single else self._in_savepoint(connection, pending)
        except (DBAPIError, self._engine.dialect.loaded_dbapi.Error):
            raise  # a failure of the database concerns the whole batch
        except Exception as error:
            pending.error = error
            if isinstance(error, GussetError) and not isinstance(error, VaultError | HostError):
                return self._refusals.admit([replace(pending.intent, outcome=error.code)])
            return []
        pending.value = result.value
        return self._refusals.admit(result.events)

    def _in_savepoint(self, connection: Connection, pending: PendingWrite) -> WriteResult[Any]:
        """Run one write in a savepoint of the driver: SQLAlchemy's own costs more than most writes."""
        cursor = connection.connection.cursor()
        cursor.execute("SAVEPOINT one_write")
        try:
            result = pending.write(connection)
        except Exception:
            cursor.execute("ROLLBACK TO SAVEPOINT one_write")
            cursor.execute("RELEASE SAVEPOINT one_write")
            raise
        cursor.execute("RELEASE SAVEPOINT one_write")
        return result

    def record_refusal_sums(self, *, all_of_them: bool = False) -> None:
        """Record how often refusals were repeated in the windows that have ended."""
        events = self._refusals.take_due(all_of_them=all_of_them)
        if events:
            intent = AuditEvent("gusset", Action.REQUEST_REFUSE, "several")
            try:
                self.run(intent, lambda _: WriteResult(None, events))
            except GussetError:
                self._refusals.put_back(events)
                raise

    def close(self) -> None:
        """Record the sums of refusals that are left, then a checkpoint of the newest record.

        Does nothing if this process wrote nothing; see `Chain.final_checkpoint`.
        """
        self.record_refusal_sums(all_of_them=True)
        if not self.commits:
            return
        with self._transaction_lock, translate_db_errors(self._engine), self._writing.begin() as connection:
            checkpoint = self._chain.final_checkpoint(connection)
        if checkpoint:
            self._witness.add(checkpoint)
