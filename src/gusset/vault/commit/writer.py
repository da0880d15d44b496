"""What writes are, and what executes them. `thread_writer` and `loop_writer` implement `Writer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.refusals import CountedRefusal
from gusset.vault.storage.connection import Transaction
from gusset.vault.storage.known_rows import LookupCall

T = TypeVar("T")


class WriteResult(Generic[T]):
    """What a write returns: a value for its caller, and the audit events to record with it.

    A write that changes signed rows has at least one event: its record has the rows' HMACs.
    """

    __slots__ = ("events", "value")

    def __init__(self, value: T, events: Sequence[AuditEvent]) -> None:
        self.value = value
        self.events = events


# Reads, decides and changes rows. It may be called again, after a rollback, if another of its batch failed.
Write = Callable[[Transaction], WriteResult[T]]


class PendingWrite:
    """A write that waits for a commit, and its result or error.

    It must be committed by the monotonic time `deadline`, if that is not None.
    """

    __slots__ = ("counted", "deadline", "error", "finished", "intent", "lookups", "value", "wake", "write")

    def __init__(
        self,
        intent: AuditEvent,
        write: Write[Any],
        lookups: Sequence[LookupCall],
        *,
        wake: Any,
        deadline: float | None,
    ) -> None:
        self.intent = intent
        self.write = write
        self.lookups = lookups
        self.deadline = deadline
        self.finished = False
        self.wake = wake  # an event or a future: set when finished; for a thread also when it must lead
        self.value: Any = None
        self.error: BaseException | None = None
        self.counted: list[CountedRefusal] = []  # refusals that were counted in the transaction

    def result(self) -> Any:
        """What the finished write returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.value


class Writer(Protocol):
    """Executes writes, each whole or not at all, and returns when they are on disk."""

    @property
    def commits(self) -> int:
        """How many transactions this process has committed."""

    @property
    def access_changes(self) -> int:
        """How many transactions of this process have changed who may do what."""

    def run(self, intent: AuditEvent, write: Write[T], lookups: Sequence[LookupCall] = ()) -> T:
        """Execute `write` and return its value once it is committed.

        `lookups` are those that it will make first: on a database server, those of a whole batch
        take one round trip together.

        A write that raises is rolled back without affecting the others of its
        batch. When it raises a `GussetError` (a refusal), `intent` is recorded
        with the error's code as its outcome; repeated ones in sums, see `RefusalSums`.

        Raises:
            OutcomeUnknown: the connection to the database was lost during the commit.
            Unreachable, HostError, IntegrityError: the database failed; nothing was written.
            Exception: whatever `write` raised.
        """

    def record_refusal_sums(self) -> None:
        """Record how often refusals were repeated in the windows that have ended."""

    def sign_head(self) -> None:
        """Sign a checkpoint of the newest record if it has none. Call it every second."""

    def close(self) -> None:
        """Record the sums of refusals that are left, and sign the newest record."""
