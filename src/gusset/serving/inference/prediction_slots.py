"""The slots that limit how many predictions run at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class PredictionSlots:
    """Like `asyncio.Semaphore`, but a free slot is taken without a coroutine. Waiters get slots in order."""

    def __init__(self, count: int) -> None:
        self._free = count  # none while somebody waits
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiters)

    def take(self) -> bool:
        """Take a free slot; False if there is none, and `wait` gives one later."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self) -> None:
        """Wait for a slot and take it."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):  # `give` has passed over it
                    self._waiters.remove(waiter)
            else:  # it got a slot just before
                self.give()
            raise

    def give(self) -> None:
        """Give a slot back: to the first that waits, if any does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
