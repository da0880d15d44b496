"""The threads that a model's synchronous methods run on.

Calls and results are handed over in batches, since waking the other side for each
would cost several times as much: calls that arrive in one turn of the loop are put
into the queue together, and the loop is woken once for all results that are ready.

Each side waits for bytes in a pipe. Unlike waking a thread by a lock, or a loop by
`call_soon_threadsafe`, writing them releases the interpreter's lock, which the other side
needs at once: otherwise it would wake up only to wait for that.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

log = logging.getLogger("gusset")

T = TypeVar("T")
Call = Callable[[], Callable[[], object]]


class ModelThreads:
    """At most `count` threads, started as needed; calls start in the order in which they are put."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int, name: str) -> None:
        self._loop = loop
        self._count = count
        self._name = name
        self._started = 0
        self._is_limited = False  # the system has refused a thread, which was logged
        self._outstanding = 0  # calls put whose results are not delivered yet
        self._calls: deque[Call] = deque()
        self._gathered: list[Call] = []  # to be queued in this turn of the loop
        self._idle: list[None] = []  # one for each thread that waits for a call, until it is woken
        self._one_by_one = True  # no calls have overlapped since the last time that none was outstanding
        self._ready: deque[Callable[[], object]] = deque()
        self._wake_scheduled = False
        # The pipes are opened with the first thread. A byte wakes one idle thread, or the loop.
        self._calls_r = self._calls_w = self._results_r = self._results_w = -1

    def put(self, call: Call) -> None:
        """Run `call` on a thread, then the function that it returns on the loop.

        Neither may raise. Called on the loop.

        Raises:
            RuntimeError, OSError: the system gives no thread or no pipe, and no thread runs.
        """
        if self._started <= self._outstanding and self._started < self._count:
            self._start_thread()
        self._outstanding += 1
        if self._outstanding > 1:
            self._one_by_one = False
        elif self._one_by_one:
            self._calls.append(call)
            self._wake_threads(1)
            return
        else:
            self._one_by_one = True
        if not self._gathered:
            self._loop.call_soon(self._queue_gathered)
        self._gathered.append(call)

    def _start_thread(self) -> None:
        """Start another thread, if the system allows it; without, calls wait for those that run."""
        if self._calls_r < 0:
            self._calls_r, self._calls_w = os.pipe()
        if self._results_r < 0:
            self._results_r, self._results_w = os.pipe()
            self._loop.add_reader(self._results_r, self._deliver)
        name = f"{self._name}-{self._started}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError as error:
            if not self._started:
                raise
            if not self._is_limited:
                self._is_limited = True
                log.warning("The system gives no more threads (%s): calls share %d.", error, self._started)
            return
        self._started += 1

    def _queue_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._calls.extend(gathered)
        self._wake_threads(len(gathered))

    def _wake_threads(self, most: int) -> None:
        """Wake up to `most` idle threads for calls that are in the queue."""
        woken = 0
        while woken < most and self._idle:
            try:
                self._idle.pop()
            except IndexError:  # the last one has just found a call by itself
                break
            woken += 1
        if woken:
            os.write(self._calls_w, bytes(woken))

    @property
    def waiting(self) -> int:
        """How many calls no thread has started yet."""
        return len(self._calls) + len(self._gathered)

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
            call = self._take()
            if call is None:
                self._wait_for_call()
                continue
            self._ready.append(call())
            if not self._wake_scheduled:
                self._wake_scheduled = True
                os.write(self._results_w, b"\0")

    def _take(self) -> Call | None:
        try:
            return self._calls.popleft()
        except IndexError:
            return None

    def _wait_for_call(self) -> None:
        self._idle.append(None)
        if self._calls:  # one was put just before: perhaps this thread was not woken for it
            try:
                self._idle.pop()
            except IndexError:  # it was
                pass
            else:
                return
        os.read(self._calls_r, 1)

    def _deliver(self) -> None:
        os.read(self._results_r, 1024)
        # Clear the flag first: a result that is added after the last `popleft` has to wake the loop again.
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
