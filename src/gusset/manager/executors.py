"""Where handlers run: in a greenlet on the event loop's thread, or in a thread pool."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from gusset.errors import Unreachable
from gusset.vault.deadline import current, ending_by
from gusset.vault.greenlets import spawn

P = ParamSpec("P")
T = TypeVar("T")


def _run_before(latest: float, deadline: float | None, work: Callable[[], T]) -> T:
    """Call `work`, which must end by `deadline`. Raises Unreachable if it begins after `latest`."""
    if time.monotonic() > latest:
        raise Unreachable("the manager is too slow for all that is requested", hint="try again")
    with ending_by(deadline):
        return work()


class Executors:
    """Runs synchronous code for the event loop. Threads start when they are first needed."""

    def __init__(self, *, longest_queue: float) -> None:
        """What has waited for a thread for more than `longest_queue` seconds fails."""
        self._longest_queue = longest_queue
        self._slow = ThreadPoolExecutor(4, "gusset-slow")
        self._pages = ThreadPoolExecutor(8, "gusset-pages")

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """In a greenlet on the loop's thread: for work of under a millisecond. It may wait for a commit."""
        return spawn(_run_before, math.inf, current(), partial(function, *args, **kwargs))

    def run_slow(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """In a thread: for password hashing and long lists.

        Raises:
            Unreachable: no thread was free in time.
        """
        return self._run_in(self._slow, partial(function, *args, **kwargs))

    def run_page(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """In a thread: for pages, which take some milliseconds to render. Raises as `run_slow` does."""
        return self._run_in(self._pages, partial(function, *args, **kwargs))

    def _run_in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> Awaitable[T]:
        work = partial(_run_before, time.monotonic() + self._longest_queue, current(), work)
        return asyncio.get_running_loop().run_in_executor(threads, work)

    def close(self) -> None:
        """Wait for running work, then end the threads."""
        self._slow.shutdown()
        self._pages.shutdown()
