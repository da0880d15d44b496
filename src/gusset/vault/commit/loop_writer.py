"""Group commit for a server: writes that wait on its event loop share commits, without a thread for each.

Writes run on the loop's own thread: each takes microseconds, and on another
thread every statement would compete for the interpreter lock. Only what may
take long leaves it: waiting for another process's lock, and the commit where
the disk is slow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from gusset.vault.audit.chain import Chain
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.greenlets import spawned, wait
from gusset.vault.commit.writer import PendingWrite, Write, Writer
from gusset.vault.storage.database import (
    disable_busy_timeout,
    translate_db_errors,
    try_begin,
    wait_and_begin,
)

log = logging.getLogger("gusset")

T = TypeVar("T")

MAX_BATCH = 256  # writes in one transaction
SLOW_COMMIT = 0.003  # seconds; a faster commit costs less than handing it to a thread


class LoopWriter(Writer):
    """For callers in a greenlet of an event loop (see `greenlets`); for others it is the plain `Writer`."""

    def __init__(self, engine: Engine, chain: Chain, witness: WitnessFile) -> None:
        super().__init__(engine, chain, witness)
        self._connection: Connection | None = None
        self._loop_queue: list[PendingWrite] = []
        self._working = False
        self._slow_disk = False
        self._witness_write: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None  # the event loop itself keeps no task alive

    def run(self, intent: AuditEvent, write: Write[T]) -> T:
        if not spawned():
            return super().run(intent, write)
        loop, pending = asyncio.get_running_loop(), PendingWrite(intent, write)
        pending.wake = loop.create_future()
        self._loop_queue.append(pending)
        if not self._working:
            self._working = True
            loop.call_soon(self._start)  # deferred: writes of the same turn of the loop share the commit
        wait(pending.wake)
        value: T = pending.result()
        return value

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        """Commit batches until no write waits. Whatever fails, the next write finds the writer working."""
        try:
            await self._commit_all()
        finally:
            self._working = bool(self._loop_queue)
            if self._working:
                asyncio.get_running_loop().call_soon(self._start)

    async def _commit_all(self) -> None:
        while self._loop_queue:
            batch, self._loop_queue = self._loop_queue[:MAX_BATCH], self._loop_queue[MAX_BATCH:]
            checkpoint = None
            try:
                with translate_db_errors(self._engine):
                    checkpoint = await self._commit_batch(batch)
                self.commits += 1
            except BaseException as error:
                for pending in batch:
                    pending.error = error
                if not isinstance(error, Exception):
                    raise
            finally:
                for pending in batch:
                    if not pending.wake.done():
                        pending.wake.set_result(None)
            if checkpoint:
                await self._add_to_witness(checkpoint)

    async def _add_to_witness(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint to the witness file while the next batch goes on; never two at once."""
        if self._witness_write is not None:
            await self._witness_write
        self._witness_write = asyncio.get_running_loop().create_task(self._write_witness(checkpoint))

    async def _write_witness(self, checkpoint: Checkpoint) -> None:
        try:
            await asyncio.to_thread(self._witness.add, checkpoint)
        except Exception as error:  # such as a system that cannot start a thread: the next one may succeed
            log.warning("cannot write the witness file %s: %s", self._witness.path, error)

    async def _commit_batch(self, batch: Sequence[PendingWrite]) -> Checkpoint | None:
        """Execute a batch in one transaction. Returns the checkpoint if one was due."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self._engine.connect().execution_options(manual_begin=True)
            disable_busy_timeout(connection.connection.dbapi_connection)
        driver: Any = connection.connection.dbapi_connection
        await _begin(driver)
        try:
            single = len(batch) == 1
            events = self._run_batch(connection, batch, single)
            if single and batch[0].error:  # a single write that was refused: only its record is kept
                driver.rollback()
                await _begin(driver)
            checkpoint = self._chain.extend(connection, events) if events else None
            await self._commit(driver)
        finally:
            driver.rollback()  # does nothing after a commit
            connection.rollback()
        return checkpoint

    async def _commit(self, driver: Any) -> None:
        """Commit: here where the disk is fast, on a thread where it would block the loop."""
        began = time.perf_counter()
        if self._slow_disk:
            await asyncio.to_thread(driver.commit)
        else:
            driver.commit()
        self._slow_disk = time.perf_counter() - began > SLOW_COMMIT

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        super().close()


async def _begin(driver: Any) -> None:
    """Take the database's write lock; if another process has it, wait on a thread."""
    if not try_begin(driver):
        await asyncio.to_thread(wait_and_begin, driver)
