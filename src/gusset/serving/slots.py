"""The threads that a model's synchronous methods run on, one per concurrency slot.

Work is handed over through one queue and comes back in batches: the loop is
woken once for however many results are ready, which costs a fraction of a
wake-up for each.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class ModelThreads:
    """`count` threads; calls start in the order in which they were put."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self._loop = loop
        self._calls: queue.SimpleQueue[Callable[[], Callable[[], object]]] = queue.SimpleQueue()
        self._ready: deque[Callable[[], object]] = deque()
        self._waking = False
        for number in range(count):
            threading.Thread(target=self._run, name=f"model-{number}", daemon=True).start()

    def put(self, call: Callable[[], Callable[[], object]]) -> None:
        """Run `call` on a model thread, and what it returns on the loop. `call` must not raise."""
        self._calls.put(call)

    async def run(self, function: Callable[[], T]) -> T:
        """The result of `function`, run on a model thread; whatever it raises is raised here."""
        future: asyncio.Future[T] = self._loop.create_future()

        def call() -> Callable[[], object]:
            if future.cancelled():
                return _nothing
            try:
                result = function()
            except BaseException as error:  # SystemExit too: the thread belongs to the server
                return partial(_settle, future, error=_passable(error))
            return partial(_settle, future, result)

        self.put(call)
        return await future

    def _run(self) -> None:
        while True:
            deliver = self._calls.get()()
            self._ready.append(deliver)
            if not self._waking:
                self._waking = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop has ended: nobody waits for results
                    return

    def _deliver(self) -> None:
        # First the flag, then the results: one that is added meanwhile wakes the loop again.
        self._waking = False
        ready = self._ready
        while ready:
            ready.popleft()()


class Raised(Exception):
    """Carries what a future cannot: StopIteration, SystemExit, KeyboardInterrupt."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.__cause__ = error


def _passable(error: BaseException) -> BaseException:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return Raised(error)


def _settle(future: asyncio.Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _nothing() -> None:
    """The result of a call that nobody waits for."""
