"""The connection of a writer: one that is open, a new one after an error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gusset.errors import Unreachable
from gusset.vault.commit.writer import PendingWrite
from gusset.vault.storage.connection import Dialect

SHORTEST_BATCH = 0.3  # seconds that must be left of a write's time when its batch begins


class WriterConnection:
    """For one user at a time. `started` is when the oldest write was called, by the monotonic clock.

    Both context managers translate the driver's errors into gusset's.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._driver: Any = None

    @contextmanager
    def begun(self, started: float) -> Iterator[Any]:
        """In a transaction, which is committed at the end and rolled back after an error."""
        with self.opened(started) as driver:
            try:
                self._dialect.begin_write(driver, deadline=self._deadline(started))
                yield driver
                driver.commit()
            finally:
                driver.rollback()  # does nothing after a commit

    @contextmanager
    def opened(self, started: float) -> Iterator[Any]:
        """Without a transaction."""
        try:
            if self._driver is not None and not self._dialect.is_usable(self._driver):
                self.close()
            if self._driver is None:
                self._driver = self._dialect.connect(deadline=self._deadline(started))
            yield self._driver
        except (self._dialect.errors, OSError) as error:
            self.close()
            raise self._dialect.translated(error) from None

    def _deadline(self, started: float) -> float | None:
        return None if self._dialect.write_timeout is None else started + self._dialect.write_timeout

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()


def in_time(batch: Sequence[PendingWrite], timeout: float | None) -> Sequence[PendingWrite]:
    """Those writes that can still be executed; the others have waited for too long for earlier batches."""
    if timeout is None:
        return batch
    latest = time.monotonic() - timeout + SHORTEST_BATCH
    for pending in batch:
        if pending.started < latest:
            pending.finished = True
            pending.error = Unreachable(
                "the database is too slow for all that is written", hint="nothing was written; try again"
            )
    return [pending for pending in batch if not pending.finished]
