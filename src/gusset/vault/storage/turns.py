"""Limits how many callers use something at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Protocol

from gusset.vault.greenlets import set_result, spawned, wait


class _Waiter(Protocol):
    def wait(self, timeout: float) -> bool:
        """Wait for the turn; False after `timeout` seconds."""

    def wake(self) -> None:
        """Let `wait` return True. Thread-safe."""


class Turns:
    """At most `count` callers at a time; others queue, in a greenlet without blocking its event loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[_Waiter] = deque()
        self._lock = threading.Lock()  # held only for a moment

    def take(self, timeout: float) -> bool:
        """Wait for a turn, for at most `timeout` seconds. False if none came."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            waiter: _Waiter = _GreenletWaiter() if spawned() else _ThreadWaiter()
            self._waiting.append(waiter)
        try:
            given = waiter.wait(timeout)
        except BaseException:
            if not self._leave(waiter):
                self.give_back()
            raise
        return given or not self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the queue; False if the turn came at the last moment."""
        with self._lock:
            if waiter not in self._waiting:
                return False
            self._waiting.remove(waiter)
            return True

    def give_back(self) -> None:
        """End a turn: the next in the queue has it."""
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
        self._turn: asyncio.Future[bool] = self._loop.create_future()

    def wait(self, timeout: float) -> bool:
        timer = self._loop.call_at(self._loop.time() + timeout, set_result, self._turn, False)
        try:
            return wait(self._turn)
        finally:
            timer.cancel()

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(set_result, self._turn, True)
