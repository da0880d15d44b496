"""Runs a model's synchronous code off the event loop, one thread per concurrency slot.

Jobs are handed over in a deque and answers come back in batches, with one
wake-up of the loop for all that are ready: with many requests at once this
costs a few microseconds each, where an executor's future costs tens.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

Answer = Callable[[Any, BaseException | None], None]


class ModelThreads:
    """`count` daemon threads. A job is called there; its `answer` is called on the loop, in order of finishing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self._loop = loop
        self._jobs: deque[tuple[Callable[..., Any], tuple[Any, ...], Answer]] = deque()
        self._ready = threading.Semaphore(0)
        self._answers: deque[tuple[Answer, Any, BaseException | None]] = deque()
        self._waking = False
        for number in range(count):
            threading.Thread(target=self._run, name=f"model-{number}", daemon=True).start()

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...], answer: Answer) -> None:
        self._jobs.append((function, arguments, answer))
        self._ready.release()

    def call(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """The same as a future, for code that awaits."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def answer(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(function, arguments, answer)
        return future

    def _run(self) -> None:
        while True:
            self._ready.acquire()
            function, arguments, answer = self._jobs.popleft()
            try:
                result, error = function(*arguments), None
            except BaseException as raised:  # SystemExit of a model is an error of the model, not our end
                result, error = None, raised
            self._answers.append((answer, result, error))
            if not self._waking:
                self._waking = True
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._waking = False  # before the deque is emptied: an answer that comes now wakes us again
        while self._answers:
            answer, result, error = self._answers.popleft()
            answer(result, error)
