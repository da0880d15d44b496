"""Background tasks that are not awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class TaskSet:
    """Starts tasks and holds them until they end: the event loop itself keeps only weak references."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
