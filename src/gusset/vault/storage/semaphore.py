"""A counting semaphore for threads and greenlets, with a timeout."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Protocol

from gusset.vault.greenlets import set_result, spawned, wait


class _Waiter(Protocol):
    def wait(self, timeout: float) -> bool:
        """Wait for `wake`; False after `timeout` seconds."""

    def wake(self) -> None:
        """Let `wait` return True. Thread-safe."""


class Semaphore:
    """At most `count` callers at a time; others queue, in a greenlet without blocking its event loop.

    `threading.Semaphore` would block the event loop, and `asyncio.Semaphore` serves one loop only.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[_Waiter] = deque()
        self._lock = threading.Lock()  # held only for a moment

    def acquire(self, timeout: float) -> bool:
        """Wait until fewer than `count` callers hold it, for at most `timeout` seconds. False after that."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            waiter: _Waiter = _GreenletWaiter() if spawned() else _ThreadWaiter()
            self._waiting.append(waiter)
        try:
            woken = waiter.wait(timeout)
        except BaseException:
            if not self._leave(waiter):
                self.release()
            raise
        return woken or not self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the queue; False if it was woken at the last moment."""
        with self._lock:
            if waiter not in self._waiting:
                return False
            self._waiting.remove(waiter)
            return True

    def release(self) -> None:
        """Let the next in the queue have it."""
        with self._lock:
            waiter = self._waiting.popleft() if self._waiting else None
            if waiter is None:
                self._free += 1
        if waiter is not None:
            waiter.wake()


class _ThreadWaiter:
    def __init__(self) -> None:
        self._event = threading.Event()
        self.wait = self._event.wait
        self.wake = self._event.set


class _GreenletWaiter:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[bool] = self._loop.create_future()

    def wait(self, timeout: float) -> bool:
        timer = self._loop.call_at(self._loop.time() + timeout, set_result, self._woken, False)
        try:
            return wait(self._woken)
        finally:
            timer.cancel()

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(set_result, self._woken, True)
