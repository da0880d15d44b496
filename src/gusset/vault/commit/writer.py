"""One writer per process: acts that wait at the same moment share one durable commit.

The first caller leads: it carries out whatever is waiting, its own act and
others', in one transaction with their audit records, wakes them, and hands the
lead to one of those that came meanwhile. No thread of its own, so nothing to
start or stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from gusset.errors import GussetError, HostError, VaultError
from gusset.vault.audit.audit_log import Chain, Entry, Witness
from gusset.vault.storage.database import translate_db_errors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What an act gives back: its result, and the audit entries that belong to it."""

    result: T
    entries: Sequence[Entry]


class Job:
    """One act that waits for a commit, and what became of it."""

    __slots__ = ("act", "error", "finished", "intent", "result", "wake")

    def __init__(self, intent: Entry, act: Callable[[Connection], Done[Any]]) -> None:
        self.intent = intent
        self.act = act
        self.finished = False
        self.wake: Any = None  # told when finished; for a thread, also when it is to lead
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Carries out acts, each whole or not at all, and returns when they are on disk."""

    def __init__(self, engine: Engine, chain: Chain, witness: Witness) -> None:
        self._engine = engine
        self._writing = engine.execution_options(writing=True)
        self._chain = chain
        self._witness = witness
        self._commit = threading.Lock()  # held through a transaction
        self._turn = threading.Lock()  # guards the two below, for an instant only
        self._waiting: list[Job] = []
        self._led = False
        self.commits = 0

    def run(self, intent: Entry, act: Callable[[Connection], Done[T]]) -> T:
        """Carry out `act` and return its result once it is committed.

        An act that raises is undone, and does not touch the others of its
        batch. Its refusal (a `GussetError`) is recorded as `intent` with the
        error's code as outcome.

        Raises:
            Unreachable, HostError, IntegrityError: the database failed; nothing was written.
            Exception: whatever `act` raised.
        """
        job = Job(intent, act)
        job.wake = threading.Event()
        with self._turn:
            self._waiting.append(job)
            leads, self._led = not self._led, True
        if not leads:
            self._wait(job)
        if not job.finished:
            self._lead()
        result: T = self._outcome(job)
        return result

    def _outcome(self, job: Job) -> Any:
        """What the act of a finished job returned; raises what it raised."""
        if job.error is not None:
            raise job.error
        return job.result

    def _wait(self, job: Job) -> None:
        try:
            job.wake.wait()
        except BaseException:  # Ctrl-C: nobody may wait for a lead that this caller will not take
            with self._turn:
                if job in self._waiting:
                    self._waiting.remove(job)
                    if job.wake.is_set():
                        self._hand_over()
            raise

    def _lead(self) -> None:
        """Carry out what is waiting. Nobody needs a lock to learn that his act is done, so that all who
        were served are back in the queue before the next batch is taken from it."""
        with self._turn:
            batch, self._waiting = self._waiting, []
        try:
            with self._commit:
                self._carry_out(batch)
        finally:
            with self._turn:
                self._hand_over()
            for job in batch:
                job.wake.set()

    def _hand_over(self) -> None:
        """Let the first of those who wait lead. Called with `_turn` held."""
        self._led = bool(self._waiting)
        if self._led:
            self._waiting[0].wake.set()

    def _carry_out(self, batch: Sequence[Job]) -> None:
        """One transaction for all; if it fails as a whole, all have failed."""
        try:
            with translate_db_errors(self._engine):
                checkpoint = self._transaction(batch)
        except BaseException as error:
            for job in batch:
                job.error, job.finished = error, True
            if not isinstance(error, Exception):  # Ctrl-C is the caller's, after the others know
                raise
            return
        self.commits += 1
        if checkpoint:
            self._witness.add(checkpoint)
        for job in batch:
            job.finished = True

    def _transaction(self, batch: Sequence[Job]) -> Any:
        with self._writing.connect() as connection:
            alone = len(batch) == 1
            with connection.begin() as transaction:
                entries = self._done(connection, batch, alone)
                if not (alone and batch[0].error):
                    return self._chain.extend(connection, entries) if entries else None
                transaction.rollback()
            with connection.begin():  # of a single act that was refused, only the record stays
                return self._chain.extend(connection, entries) if entries else None

    def _done(self, connection: Connection, batch: Sequence[Job], alone: bool) -> list[Entry]:
        """Do every act of a batch; returns what is to be recorded."""
        return [entry for job in batch for entry in self._one(connection, job, alone)]

    def _one(self, connection: Connection, job: Job, alone: bool) -> Sequence[Entry]:
        """Do one act; returns what is to be recorded. A savepoint guards the others of its batch."""
        try:
            done = job.act(connection) if alone else self._guarded(connection, job)
        except (DBAPIError, self._engine.dialect.loaded_dbapi.Error):
            raise  # the database's own trouble is everybody's
        except Exception as error:
            job.error = error
            if isinstance(error, GussetError) and not isinstance(error, VaultError | HostError):
                return [replace(job.intent, outcome=error.code)]
            return []
        job.result = done.result
        return done.entries

    def _guarded(self, connection: Connection, job: Job) -> Done[Any]:
        """Do one act in a savepoint. By the driver: SQLAlchemy's own costs more than most acts."""
        cursor = connection.connection.cursor()
        cursor.execute("SAVEPOINT act")
        try:
            done = job.act(connection)
        except Exception:
            cursor.execute("ROLLBACK TO SAVEPOINT act")
            cursor.execute("RELEASE SAVEPOINT act")
            raise
        cursor.execute("RELEASE SAVEPOINT act")
        return done

    def close(self) -> None:
        """Sign the newest record, when this process wrote; see `Chain.final`."""
        if not self.commits:
            return
        with self._commit, translate_db_errors(self._engine), self._writing.begin() as connection:
            checkpoint = self._chain.final(connection)
        if checkpoint:
            self._witness.add(checkpoint)
