"""One writer per process: acts that wait at the same moment share one durable commit.

The caller that gets the lock carries out whatever is waiting, its own act and
others', in one transaction with their audit records, and then the others find
their acts done. No thread of its own, so nothing to start or stop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from gusset.errors import GussetError, HostError, VaultError
from gusset.vault.audit import Chain, Entry, Witness
from gusset.vault.database import failures_told

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What an act gives back: its result, and the audit entries that belong to it."""

    result: T
    entries: Sequence[Entry]


class _Job:
    """One act that waits for a commit, and what became of it."""

    __slots__ = ("act", "error", "finished", "intent", "result")

    def __init__(self, intent: Entry, act: Callable[[Connection], Done[Any]]) -> None:
        self.intent = intent
        self.act = act
        self.finished = False
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Carries out acts, each whole or not at all, and returns when they are on disk."""

    def __init__(self, engine: Engine, chain: Chain, witness: Witness) -> None:
        self._engine = engine
        self._chain = chain
        self._witness = witness
        self._commit = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._wrote = False

    def run(self, intent: Entry, act: Callable[[Connection], Done[T]]) -> T:
        """Carry out `act` and return its result once it is committed.

        An act that raises is undone, and does not touch the others of its
        batch. Its refusal (a `GussetError`) is recorded as `intent` with the
        error's code as outcome.

        Raises:
            Unreachable, HostError, IntegrityError: the database failed; nothing was written.
            Exception: whatever `act` raised.
        """
        job = _Job(intent, act)
        self._waiting.append(job)
        with self._commit:
            if not job.finished:
                # One by one: others append while this runs, and what comes now waits for the next batch.
                self._carry_out([self._waiting.popleft() for _ in range(len(self._waiting))])
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def _carry_out(self, batch: Sequence[_Job]) -> None:
        """One transaction for all; if it fails as a whole, all have failed."""
        try:
            with failures_told(self._engine):
                checkpoint = self._transaction(batch)
        except BaseException as error:
            for job in batch:
                job.error, job.finished = error, True
            if not isinstance(error, Exception):  # Ctrl-C is the caller's, after the others know
                raise
            return
        self._wrote = True
        if checkpoint:
            self._witness.add(checkpoint)
        for job in batch:
            job.finished = True

    def _transaction(self, batch: Sequence[_Job]) -> Any:
        with self._engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            alone = len(batch) == 1
            with connection.begin() as transaction:
                entries = [entry for job in batch for entry in self._one(connection, job, alone)]
                if not (alone and batch[0].error):
                    return self._chain.extend(connection, entries) if entries else None
                transaction.rollback()
            with connection.begin():  # of a single act that was refused, only the record stays
                return self._chain.extend(connection, entries) if entries else None

    def _one(self, connection: Connection, job: _Job, alone: bool) -> Sequence[Entry]:
        """Do one act; returns what is to be recorded. A savepoint guards the others of its batch."""
        try:
            if alone:
                done = job.act(connection)
            else:
                with connection.begin_nested():
                    done = job.act(connection)
        except DBAPIError:
            raise  # the database's own trouble is everybody's
        except Exception as error:
            job.error = error
            if isinstance(error, GussetError) and not isinstance(error, VaultError | HostError):
                return [replace(job.intent, outcome=error.code)]
            return []
        job.result = done.result
        return done.entries

    def close(self) -> None:
        """Sign the newest record, when this process wrote; see `Chain.final`."""
        if not self._wrote:
            return
        with self._commit, failures_told(self._engine), self._engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                checkpoint = self._chain.final(connection)
        if checkpoint:
            self._witness.add(checkpoint)
