"""The threads that a model's synchronous methods run on.

Work is handed over through one queue and comes back in batches: the loop is
woken once for however many results are ready, which costs a fraction of a
wake-up for each.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class ModelThreads:
    """At most `count` threads, started as they are needed; calls start in the order in which they came."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int, name: str) -> None:
        self._loop = loop
        self._count = count
        self._name = name
        self._started = 0
        self._under_way = 0  # calls put and not yet delivered
        self._calls: queue.SimpleQueue[Callable[[], Callable[[], object]]] = queue.SimpleQueue()
        self._ready: deque[Callable[[], object]] = deque()
        self._waking = False

    def put(self, call: Callable[[], Callable[[], object]]) -> None:
        """Run `call`, which must not raise, on a thread, and what it returns on the loop. For the loop."""
        self._under_way += 1
        if self._under_way > self._started and self._started < self._count:
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
            self._started += 1
        self._calls.put(call)

    @property
    def waiting(self) -> int:
        """How many calls no thread has taken up yet."""
        return self._calls.qsize()

    async def run(self, function: Callable[[], T]) -> T:
        """The result of `function`, run on a thread in our own context; whatever it raises is raised here."""
        future: asyncio.Future[T] = self._loop.create_future()
        context = contextvars.copy_context()

        def call() -> Callable[[], object]:
            if future.cancelled():
                return do_nothing
            try:
                result = context.run(function)
            except BaseException as error:  # SystemExit too: the thread belongs to the server
                return partial(_settle, future, error=_future_exception(error))
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
            self._under_way -= 1
            ready.popleft()()


class WrappedError(Exception):
    """Carries what a future cannot: StopIteration, SystemExit, KeyboardInterrupt."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.__cause__ = error


def _future_exception(error: BaseException) -> BaseException:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return WrappedError(error)


def _settle(future: asyncio.Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def do_nothing() -> None:
    """The result of a call that nobody waits for."""
