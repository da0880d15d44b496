"""Group commit: writes that wait at the same moment share one durable transaction.

The first caller leads: it executes everything that is waiting, its own write
and others', in one transaction with their audit records, wakes their callers,
and passes the lead to the first caller that came meanwhile. There is no writer
thread, so nothing to start or stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from gusset.vault.audit.checkpoints import Checkpoint
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.batch import BatchResult, BatchRunner, NeedsSavepoints
from gusset.vault.commit.writer import PendingWrite, Write
from gusset.vault.commit.writer_connection import (
    WriterConnection,
    deadline_of_write,
    earliest_deadline,
    in_time,
    too_slow,
)
from gusset.vault.storage.known_rows import LookupCall

T = TypeVar("T")


class ThreadWriter:
    """The writer for callers on any thread. See `Writer`."""

    def __init__(self, runner: BatchRunner) -> None:
        self.commits = 0
        self._runner = runner
        self._transaction_lock = threading.Lock()  # held throughout a transaction
        self._connection = WriterConnection(runner.dialect)  # guarded by `_transaction_lock`
        self._queue_lock = threading.Lock()  # guards `_queue` and `_has_leader`; held only for a moment
        self._queue: list[PendingWrite] = []
        self._has_leader = False

    @property
    def access_changes(self) -> int:
        return self._runner.access_changes

    def run(self, intent: AuditEvent, write: Write[T], lookups: Sequence[LookupCall] = ()) -> T:
        pending = PendingWrite(
            intent,
            write,
            lookups,
            wake=threading.Event(),
            deadline=deadline_of_write(self._runner.dialect),
        )
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
            self._execute(in_time(batch))
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
        if not batch:
            return
        try:
            checkpoint = self._runner.committed(self._transaction(batch))
        except BaseException as error:
            self._runner.failed(batch, error)
            for pending in batch:
                pending.finished = True
            if not isinstance(error, Exception):  # Ctrl-C: re-raised, now that all writes have an error
                raise
            return
        self.commits += 1
        for pending in batch:
            pending.finished = True
        self._add_to_witness(checkpoint)

    def _add_to_witness(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            self._runner.witness.add(checkpoint)

    def _transaction(self, batch: Sequence[PendingWrite]) -> BatchResult:
        try:
            return self._attempt(batch, savepoints=False)
        except NeedsSavepoints:
            return self._attempt(batch, savepoints=True)

    def _attempt(self, batch: Sequence[PendingWrite], *, savepoints: bool) -> BatchResult:
        deadline = earliest_deadline(batch)
        with self._locked(deadline), self._connection.begun(deadline) as driver:
            return self._runner.run(driver, batch, savepoints=savepoints)

    @contextmanager
    def _locked(self, deadline: float | None) -> Iterator[None]:
        """Hold `_transaction_lock`. Raises Unreachable if others hold it for too long."""
        timeout = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._transaction_lock.acquire(timeout=timeout):
            raise too_slow()
        try:
            yield
        finally:
            self._transaction_lock.release()

    def record_refusal_sums(self, *, all_of_them: bool = False) -> None:
        self._runner.record_refusal_sums(self.run, all_of_them=all_of_them)

    def sign_head(self) -> None:
        deadline = deadline_of_write(self._runner.dialect)
        with self._locked(deadline), self._connection.opened(deadline) as driver:
            signed, checkpoint = self._runner.witness_signed_head(driver)
        if not signed:
            with self._locked(deadline), self._connection.begun(deadline) as driver:
                extension = self._runner.sign_head(driver)
            checkpoint = self._runner.signed(extension)
        self._add_to_witness(checkpoint)

    def close(self) -> None:
        try:
            self.record_refusal_sums(all_of_them=True)
            if self.commits:
                self.sign_head()
        finally:
            with self._transaction_lock:
                self._connection.close()
