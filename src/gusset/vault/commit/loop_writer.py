"""Group commit for a server: writes that wait on its event loop share commits, without a thread for each.

Writes run on the loop's own thread: each takes microseconds, and on another
thread every statement would compete for the interpreter lock. A batch runs in a
greenlet, which lets the loop continue while it waits: with PostgreSQL for the server,
with SQLite only for a thread that does what may take long, which is waiting for another
process's lock, and the commit where the disk is slow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from gusset.vault.audit.checkpoints import Checkpoint
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.batch import BatchResult, BatchRunner, NeedsSavepoints
from gusset.vault.commit.thread_writer import ThreadWriter
from gusset.vault.commit.writer import PendingWrite, Write, Writer
from gusset.vault.commit.writer_connection import (
    WriterConnection,
    deadline_of_write,
    earliest_deadline,
    in_time,
)
from gusset.vault.greenlets import GreenletPool, call_on_thread, spawned, wait
from gusset.vault.storage.database import Database
from gusset.vault.storage.known_rows import LookupCall
from gusset.vault.storage.sqlite import Sqlite

log = logging.getLogger("gusset")

T = TypeVar("T")

MAX_BATCH = 256  # writes in one transaction
WRITE_TIMEOUT = 4.5  # seconds, also where the database has no limit of its own: a request ends within 5
SLOW_COMMIT = 0.003  # seconds; a faster commit costs less than handing it to a thread


def make_server_writer(runner: BatchRunner, database: Database) -> Writer:
    """The writer for a server's vault. People may wait for a file's lock; requests to a server may not."""
    if not isinstance(database, Sqlite):
        return LoopWriter(runner, ServerTransactions(runner))
    database.write_timeout = WRITE_TIMEOUT
    return LoopWriter(runner, SqliteTransactions(runner, database))


class Transactions(Protocol):
    """Executes batches of a `LoopWriter`, one at a time, in a greenlet."""

    def execute(self, batch: Sequence[PendingWrite], *, savepoints: bool) -> BatchResult:
        """Execute a batch in one transaction, and commit it.

        Raises:
            NeedsSavepoints: see `BatchRunner.run`.
            GussetError: the database failed.
        """

    def close(self) -> None:
        """Close the connection."""


class SqliteTransactions:
    """On the loop's thread, but for waits that would block it."""

    def __init__(self, runner: BatchRunner, sqlite: Sqlite) -> None:
        self._runner = runner
        self._sqlite = sqlite
        self._driver: Any = None
        self._slow_disk = False

    def execute(self, batch: Sequence[PendingWrite], *, savepoints: bool) -> BatchResult:
        try:
            return self._execute(batch, savepoints=savepoints)
        except (self._sqlite.errors, OSError) as error:
            raise self._sqlite.translated(error) from None

    def _execute(self, batch: Sequence[PendingWrite], *, savepoints: bool) -> BatchResult:
        driver = self._driver
        if driver is None:
            driver = self._driver = self._sqlite.connect()
            self._sqlite.disable_busy_timeout(driver)
        if not self._sqlite.try_begin_write(driver):
            call_on_thread(self._sqlite.wait_and_begin_write, driver, earliest_deadline(batch))
        try:
            result = self._runner.run(driver, batch, savepoints=savepoints)
            self._commit(driver)
        finally:
            driver.rollback()  # does nothing after a commit
        return result

    def _commit(self, driver: Any) -> None:
        """Commit: here where the disk is fast, on a thread where it would block the loop."""
        began = time.perf_counter()
        if self._slow_disk:
            call_on_thread(driver.commit)
        else:
            driver.commit()
        self._slow_disk = time.perf_counter() - began > SLOW_COMMIT

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()


class ServerTransactions:
    """On a connection whose waits for the server suspend the greenlet."""

    def __init__(self, runner: BatchRunner) -> None:
        self._runner = runner
        self._connection = WriterConnection(runner.dialect)

    def execute(self, batch: Sequence[PendingWrite], *, savepoints: bool) -> BatchResult:
        with self._connection.begun(earliest_deadline(batch)) as driver:
            return self._runner.run(driver, batch, savepoints=savepoints)

    def close(self) -> None:
        self._connection.close()


class LoopWriter:
    """For callers in a greenlet of an event loop (see `greenlets`); others' writes go to a `ThreadWriter`."""

    def __init__(self, runner: BatchRunner, transactions: Transactions) -> None:
        self._runner = runner
        self._transactions = transactions
        self._others = ThreadWriter(runner)
        self._queue: list[PendingWrite] = []
        self._working = False
        self._commits = 0
        self._greenlets = GreenletPool()
        self._witness_write: asyncio.Task[None] | None = None

    @property
    def commits(self) -> int:
        return self._commits + self._others.commits

    @property
    def access_changes(self) -> int:
        return self._runner.access_changes

    def run(self, intent: AuditEvent, write: Write[T], lookups: Sequence[LookupCall] = ()) -> T:
        if not spawned():
            return self._others.run(intent, write, lookups)
        loop = asyncio.get_running_loop()
        pending = PendingWrite(
            intent,
            write,
            lookups,
            wake=loop.create_future(),
            deadline=deadline_of_write(self._runner.dialect),
        )
        self._queue.append(pending)
        if not self._working:
            self._working = True
            loop.call_soon(self._gather, 1)
        wait(pending.wake)
        value: T = pending.result()
        return value

    def _gather(self, known: int) -> None:
        """Begin once a turn of the loop has brought no further write: what comes together shares a commit.

        `known` is how many writes waited before the turn.
        """
        waiting = len(self._queue)
        if known < waiting < MAX_BATCH:
            asyncio.get_running_loop().call_soon(self._gather, waiting)
        else:
            self._greenlets.start(self._work)

    def _work(self) -> None:
        """Commit batches until no write waits. Whatever fails, the next write finds the writer working."""
        try:
            self._commit_all()
        finally:
            self._working = bool(self._queue)
            if self._working:
                asyncio.get_running_loop().call_soon(self._gather, len(self._queue))

    def _commit_all(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            remaining = in_time(batch)
            checkpoint = None
            try:
                if remaining:
                    checkpoint = self._runner.committed(self._commit_batch(remaining))
                    self._commits += 1
            except BaseException as error:
                self._runner.failed(remaining, error)
                if not isinstance(error, Exception):
                    raise
            finally:
                for pending in batch:
                    if not pending.wake.done():
                        pending.wake.set_result(None)
            if checkpoint:
                self._add_to_witness(checkpoint)

    def _add_to_witness(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint to the witness file while the next batch runs; never two at once."""
        if self._witness_write is not None:
            wait(self._witness_write)
        self._witness_write = asyncio.get_running_loop().create_task(self._write_witness(checkpoint))

    async def _write_witness(self, checkpoint: Checkpoint) -> None:
        try:
            await asyncio.to_thread(self._runner.witness.add, checkpoint)
        except Exception as error:  # such as a system that cannot start a thread: the next one may succeed
            log.warning("cannot write the witness file %s: %s", self._runner.witness.path, error)

    def _commit_batch(self, batch: Sequence[PendingWrite]) -> BatchResult:
        try:
            return self._transactions.execute(batch, savepoints=False)
        except NeedsSavepoints:
            return self._transactions.execute(batch, savepoints=True)

    def record_refusal_sums(self) -> None:
        self._runner.record_refusal_sums(self.run)

    def sign_head(self) -> None:
        self._others.sign_head()

    def close(self) -> None:
        self._transactions.close()
        try:
            self._others.record_refusal_sums(all_of_them=True)
            if self.commits:
                self.sign_head()
        finally:
            self._others.close()
