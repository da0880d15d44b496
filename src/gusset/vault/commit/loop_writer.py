"""The writer of a server: acts that wait on its event loop share commits, without a thread for each.

Acts run on the loop's own thread: each takes some microseconds, and on another
thread every statement would have to fight for the interpreter. Only what may
take long leaves it: waiting for another process's lock, and the commit where
the disk is slow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from gusset.vault.audit.audit_log import Chain, Checkpoint, Entry, Witness
from gusset.vault.commit.greenlets import spawned, wait
from gusset.vault.commit.writer import Done, Job, Writer
from gusset.vault.storage.database import begin_at_once, begin_in_time, never_wait, translate_db_errors

T = TypeVar("T")

MOST = 256  # acts in one transaction
SLOW = 0.003  # seconds for a commit; what takes less costs less than its way to a thread and back


class LoopWriter(Writer):
    """For callers in a greenlet of an event loop (see `greenlets`); for any other it is the plain writer."""

    def __init__(self, engine: Engine, chain: Chain, witness: Witness) -> None:
        super().__init__(engine, chain, witness)
        self._lane: Connection | None = None
        self._queue: list[Job] = []
        self._working = False
        self._slow_disk = False
        self._witnessing: asyncio.Future[None] | None = None

    def run(self, intent: Entry, act: Callable[[Connection], Done[T]]) -> T:
        if not spawned():
            return super().run(intent, act)
        loop, job = asyncio.get_running_loop(), Job(intent, act)
        job.wake = loop.create_future()
        self._queue.append(job)
        if not self._working:
            self._working = True
            loop.call_soon(
                self._start
            )  # not at once: whoever comes in this turn of the loop shares the commit
        wait(job.wake)
        result: T = self._outcome(job)
        return result

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:MOST], self._queue[MOST:]
            checkpoint = None
            try:
                with translate_db_errors(self._engine):
                    checkpoint = await self._share(batch)
                self.commits += 1
            except BaseException as error:
                for job in batch:
                    job.error = error
                if not isinstance(error, Exception):
                    raise
            finally:
                for job in batch:
                    if not job.wake.done():
                        job.wake.set_result(None)
            if checkpoint:
                await self._witnessed(checkpoint)
        self._working = False

    async def _witnessed(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint written to the witness file, beside what comes next; one after the other."""
        if self._witnessing is not None:
            await self._witnessing
        self._witnessing = asyncio.ensure_future(asyncio.to_thread(self._witness.add, checkpoint))

    async def _share(self, batch: Sequence[Job]) -> Checkpoint | None:
        """One transaction for all of a batch; the checkpoint that was due."""
        connection = self._lane
        if connection is None:
            connection = self._lane = self._engine.connect().execution_options(lane=True)
            never_wait(connection.connection.dbapi_connection)
        driver: Any = connection.connection.dbapi_connection
        if not begin_at_once(driver):
            await asyncio.to_thread(begin_in_time, driver)
        try:
            alone = len(batch) == 1
            entries = self._done(connection, batch, alone)
            if alone and batch[0].error:  # of a single act that was refused, only the record stays
                driver.rollback()
                begin_in_time(driver)
            checkpoint = self._chain.extend(connection, entries) if entries else None
            await self._commit_soon(driver)
        finally:
            driver.rollback()  # nothing, after a commit
            connection.rollback()
        return checkpoint

    async def _commit_soon(self, driver: Any) -> None:
        """Commit: here where the disk is quick, on a thread where others would have to wait for it."""
        began = time.perf_counter()
        if self._slow_disk:
            await asyncio.to_thread(driver.commit)
        else:
            driver.commit()
        self._slow_disk = time.perf_counter() - began > SLOW

    def close(self) -> None:
        if self._lane is not None:
            self._lane.close()
        super().close()
