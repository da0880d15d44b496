"""The connection of a writer: one that is open, a new one after an error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gusset.errors import Unreachable
from gusset.vault.commit.writer import PendingWrite
from gusset.vault.deadline import within
from gusset.vault.storage.connection import Dialect

SHORTEST_BATCH = 0.3  # seconds that must be left of a write's time when its batch begins


class WriterConnection:
    """For one user at a time, whose work must end by the monotonic time `deadline`, if that is not None.

    Both context managers translate the driver's errors into gusset's.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._driver: Any = None

    @contextmanager
    def begun(self, deadline: float | None) -> Iterator[Any]:
        """In a transaction, which is committed at the end and rolled back after an error."""
        with self.opened(deadline) as driver:
            try:
                self._dialect.begin_write(driver, deadline=deadline)
                yield driver
                driver.commit()
            finally:
                driver.rollback()  # does nothing after a commit

    @contextmanager
    def opened(self, deadline: float | None) -> Iterator[Any]:
        """Without a transaction."""
        try:
            if self._driver is not None and not self._dialect.is_usable(self._driver):
                self.close()
            if self._driver is None:
                self._driver = self._dialect.connect(deadline=deadline)
            yield self._driver
        except (self._dialect.errors, OSError) as error:
            self.close()
            raise self._dialect.translated(error) from None

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()


def deadline_of_write(dialect: Dialect) -> float | None:
    """By when a write that is called now must be committed; None if it may take any time."""
    return None if dialect.write_timeout is None else within(dialect.write_timeout)


def in_time(batch: Sequence[PendingWrite]) -> Sequence[PendingWrite]:
    """Those writes that can still be executed; the others have waited for too long for earlier batches."""
    earliest = time.monotonic() + SHORTEST_BATCH
    for pending in batch:
        if pending.deadline is not None and pending.deadline < earliest:
            pending.finished = True
            pending.error = too_slow()
    return [pending for pending in batch if not pending.finished]


def earliest_deadline(batch: Sequence[PendingWrite]) -> float | None:
    """By when a batch must be committed."""
    return min((each.deadline for each in batch if each.deadline is not None), default=None)


def too_slow() -> Unreachable:
    """The error of a write that had no time left when it could have begun."""
    return Unreachable(
        "the database is too slow for all that is written", hint="nothing was written; try again"
    )
