"""Reports to the supervisor which secrets the model has looked up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from gusset.serving.protocol import Used

_BATCH_SECONDS = 0.05


class UseReporter:
    """Reports first look-ups, those of a short while together, on a thread of its own.

    A look-up only puts its name into a queue: that takes no lock, so it may also happen in a
    signal handler. A fork of this process reports nothing.
    """

    def __init__(self, report: Callable[[Used], object]) -> None:
        self._report = report
        self._queue: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gusset-uses", daemon=True)

    def start(self) -> None:
        """Report what has been added so far, and all that is added later."""
        self._thread.start()

    def add(self, number: int, name: str) -> None:
        """Note the first look-up of a secret since the `SetSecrets` of that number. Thread-safe."""
        self._queue.put((number, name))

    def _run(self) -> None:
        while True:
            found = [self._queue.get()]
            time.sleep(_BATCH_SECONDS)
            while not self._queue.empty():
                found.append(self._queue.get())
            for number in sorted({number for number, _ in found}):
                self._report(Used(number, [name for each, name in found if each == number]))
