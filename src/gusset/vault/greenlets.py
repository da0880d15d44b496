"""Lets synchronous code wait for something that an event loop does, without blocking its thread.

The vault's reads and writes are plain functions that wait for a commit, or for a
server's response. `spawn` and `GreenletPool` call such a function in a greenlet on
the event loop's thread; `wait`, anywhere below it, suspends the greenlet until
a future is done, while the event loop continues.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from gusset.vault.deadline import call_within

T = TypeVar("T")


_MAX_IDLE = 64  # of a pool


class _Spawned(greenlet):  # type: ignore[misc]  # the library has no types
    """A greenlet of `spawn` or of a pool. Its parent runs the event loop."""


class _Pooled(_Spawned):
    """Makes one call after the other. Between two of them it gives itself to its parent."""

    call: Callable[[], Any] | None
    result: Any = None

    def run(self) -> None:
        while self.call is not None:
            call, self.call = self.call, None
            self.result = call()
            del call  # what it has used is not kept
            self.parent.switch(self)


class GreenletPool:
    """Runs functions in greenlets that are used again: the stack of a new one takes the system microseconds.

    For one event loop, on its thread.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """All waits of one call end within so many `seconds`, if that is not None."""
        self._seconds = seconds
        self._idle: list[_Pooled] = []

    def start(
        self, function: Callable[..., T], *args: Any, on_done: Callable[[T], object] | None = None
    ) -> None:
        """Call `function` in a greenlet, then `on_done` with its result; cheaper than a task with `spawn`.

        Call this outside any other greenlet. What `function` raises is raised here, or
        reported by the event loop if it has waited: a function that may fail should return its errors.
        """
        child = self._idle.pop() if self._idle else _Pooled()
        child.call = partial(function, *args)
        if self._seconds is not None:
            child.call = partial(call_within, self._seconds, child.call)
        self._step(child, on_done, child.switch())

    def _step(self, child: _Pooled, on_done: Callable[[Any], object] | None, given: Any) -> None:
        """Handle what a greenlet has returned: itself after its call, or a future that it waits for."""
        if given is not child:
            given.add_done_callback(partial(self._resume, child, on_done))
            return
        result, child.result = child.result, None
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(child)
        else:
            child.switch()  # without a call it ends; if it were only dropped, its frame would keep it alive
        if on_done is not None:
            on_done(result)

    def _resume(
        self, child: _Pooled, on_done: Callable[[Any], object] | None, future: asyncio.Future[Any]
    ) -> None:
        try:
            value = future.result()
        except BaseException:
            given = child.throw(*sys.exc_info())
        else:
            given = child.switch(value)
        self._step(child, on_done, given)


async def spawn(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `function` in a greenlet and await its result. Raises what it raises."""
    child = _Spawned(function)
    result = child.switch(*args, **kwargs)
    while not child.dead:
        try:
            value = await result
        except BaseException:  # also when the caller is cancelled
            result = child.throw(*sys.exc_info())
        else:
            result = child.switch(value)
    found: T = result
    return found


def wait_for_socket(descriptor: int, *, deadline: float, writing: bool = False) -> bool:
    """Wait until a socket can be read, or written if `writing`; False at the monotonic time `deadline`.

    Suspends the current greenlet.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    loop.add_reader(descriptor, set_result, ready, True)
    if writing:
        loop.add_writer(descriptor, set_result, ready, True)
    timer = loop.call_later(max(0.0, deadline - time.monotonic()), set_result, ready, False)
    try:
        return wait(ready)
    finally:
        timer.cancel()
        loop.remove_reader(descriptor)
        if writing:
            loop.remove_writer(descriptor)


def call_on_thread(function: Callable[..., T], *args: Any) -> T:
    """Call `function` on a thread, and suspend the current greenlet meanwhile. Raises what it raises."""
    return wait(asyncio.get_running_loop().run_in_executor(None, function, *args))


def set_result(future: asyncio.Future[bool], result: bool) -> None:
    """Give a future its result, unless it has one."""
    if not future.done():
        future.set_result(result)


def spawned() -> bool:
    """Whether the caller runs in a greenlet of `spawn` or a pool, and may call `wait`."""
    return isinstance(getcurrent(), _Spawned)


def wait(future: asyncio.Future[T]) -> T:
    """Suspend the current greenlet until `future` is done. Returns its result, or raises its exception."""
    parent = getcurrent().parent
    assert parent is not None  # noqa: S101  # see `spawned`
    result: T = parent.switch(future)
    return result
