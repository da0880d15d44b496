"""The threads that a model's synchronous methods run on.

Calls and results are handed over in batches, since waking the other side for each
would cost several times as much: calls that arrive in one turn of the loop are put
into the queue together, and the loop is woken once for all results that are ready.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class ModelThreads:
    """At most `count` threads, started as needed; calls start in the order in which they are put."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int, name: str) -> None:
        self._loop = loop
        self._count = count
        self._name = name
        self._started = 0
        self._outstanding = 0  # calls put whose results are not delivered yet
        self._calls: queue.SimpleQueue[Callable[[], Callable[[], object]]] = queue.SimpleQueue()
        self._gathered: list[Callable[[], Callable[[], object]]] = []  # to be queued in this turn of the loop
        self._one_by_one = True  # no call was put while another was outstanding, since there was none last
        self._ready: deque[Callable[[], object]] = deque()
        self._wake_scheduled = False

    def put(self, call: Callable[[], Callable[[], object]]) -> None:
        """Run `call` on a thread, then the function that it returns on the loop.

        Neither may raise. Called on the loop.
        """
        self._outstanding += 1
        if self._outstanding > self._started and self._started < self._count:
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
            self._started += 1
        if self._outstanding > 1:
            self._one_by_one = False
        elif self._one_by_one:
            self._calls.put(call)
            return
        else:
            self._one_by_one = True
        if not self._gathered:
            self._loop.call_soon(self._queue_gathered)
        self._gathered.append(call)

    def _queue_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        for call in gathered:
            self._calls.put(call)

    @property
    def waiting(self) -> int:
        """How many calls no thread has started yet."""
        return self._calls.qsize() + len(self._gathered)

    async def run(self, function: Callable[[], T]) -> T:
        """The result of `function`, run on a thread in the caller's context.

        Raises what `function` raises; a `WrappedError` around what a future cannot hold.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        context = contextvars.copy_context()

        def call() -> Callable[[], object]:
            if future.cancelled():
                return do_nothing
            try:
                result = context.run(function)
            except BaseException as error:  # SystemExit too: the thread belongs to the server
                return partial(_resolve, future, error=_for_future(error))
            return partial(_resolve, future, result)

        self.put(call)
        return await future

    def _run(self) -> None:
        with self._adopted_by_anyio():
            self._run_calls()

    def _adopted_by_anyio(self) -> AbstractContextManager[object]:
        """Let `anyio.from_thread` work on this thread, if the model has imported anyio, as Starlette does.

        So a synchronous method can await `request.is_disconnected`. anyio has no public way to
        adopt a thread.
        """
        anyio = sys.modules.get("anyio._core._eventloop")
        if anyio is None:
            return nullcontext()
        adopted: AbstractContextManager[object] = anyio.claim_worker_thread(
            anyio.get_async_backend("asyncio"), self._loop
        )
        return adopted

    def _run_calls(self) -> None:
        while True:
            deliver = self._calls.get()()
            self._ready.append(deliver)
            if not self._wake_scheduled:
                self._wake_scheduled = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop is closed: no caller is waiting any more
                    return

    def _deliver(self) -> None:
        # The flag first: a result that is added after the last `popleft` has to wake the loop again.
        self._wake_scheduled = False
        ready = self._ready
        while ready:
            self._outstanding -= 1
            ready.popleft()()


class WrappedError(Exception):
    """Carries an error that a future cannot: StopIteration, SystemExit, KeyboardInterrupt."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.__cause__ = error


def _for_future(error: BaseException) -> BaseException:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return WrappedError(error)


def _resolve(future: asyncio.Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    if future.done():  # it has been cancelled
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def do_nothing() -> None:
    """Returned by a call whose caller is not waiting any more."""
