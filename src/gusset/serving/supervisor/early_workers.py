"""Workers that are started before it is known what they will serve."""

from __future__ import annotations

import contextlib
from types import TracebackType

from gusset.errors import HostError
from gusset.serving.supervisor.worker_process import WorkerOptions, WorkerProcess


class EarlyWorkers:
    """Processes that wait for their plan. Those that nobody has taken end with the context."""

    def __init__(self, options: WorkerOptions, count: int) -> None:
        self._options = options
        self._count = count
        self._python: str | None = None
        self._waiting: list[WorkerProcess] = []

    def __enter__(self) -> EarlyWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandon()

    def start(self, python: str) -> None:
        """Start them on a Python that is likely to be the model's. One that cannot be started is ignored."""
        with contextlib.suppress(HostError):
            self._start(python)

    def take(self, python: str) -> list[WorkerProcess]:
        """The processes, on this Python: started again if it is another one.

        Raises:
            HostError: the Python cannot be started.
        """
        if python != self._python:
            self._abandon()
            self._start(python)
        taken, self._waiting = self._waiting, []
        return taken

    def _start(self, python: str) -> None:
        while len(self._waiting) < self._count:
            self._waiting.append(WorkerProcess.start(self._options, python))
        self._python = python

    def _abandon(self) -> None:
        while self._waiting:
            self._waiting.pop().abandon()
