"""Where handlers run: in a greenlet on the event loop's thread, or in a thread pool."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from gusset.vault.greenlets import spawn

P = ParamSpec("P")
T = TypeVar("T")


class Executors:
    """Runs synchronous code for the event loop. Threads start when they are first needed."""

    def __init__(self) -> None:
        self._slow = ThreadPoolExecutor(4, "gusset-slow")
        self._pages = ThreadPoolExecutor(8, "gusset-pages")

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """In a greenlet on the loop's thread: for work of under a millisecond. It may wait for a commit."""
        return spawn(function, *args, **kwargs)

    def run_slow(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """In a thread: for password hashing and long lists."""
        return asyncio.get_running_loop().run_in_executor(self._slow, partial(function, *args, **kwargs))

    def run_page(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """In a thread: for pages, which take some milliseconds to render."""
        return asyncio.get_running_loop().run_in_executor(self._pages, partial(function, *args, **kwargs))

    def close(self) -> None:
        """Wait for running work, then end the threads."""
        self._slow.shutdown()
        self._pages.shutdown()
