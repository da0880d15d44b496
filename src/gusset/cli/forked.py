"""Does one thing in a process of its own while this one goes on with another."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ForkedTask(Generic[T]):
    """Calls `work` in a forked process; `result` waits for it.

    For work that is slow for its imports alone, and that gives plain data. To
    be used before this process has threads, locks or values: a fork has them
    too.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._from, to = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid:
            os.close(to)
            return
        try:  # the child: nothing below may return into the caller's code
            with os.fdopen(to, "wb") as pipe:
                pickle.dump(_outcome(work), pipe)
        finally:
            os._exit(0)

    def result(self) -> T:
        """What `work` returned; what it raised is raised here."""
        with os.fdopen(self._from, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self._pid, 0)
        returned, result = pickle.loads(data)  # noqa: S301  # from our own fork, by a pipe nobody else has
        if not returned:
            raise result
        outcome: T = result
        return outcome


def _outcome(work: Callable[[], T]) -> tuple[bool, T | Exception]:
    try:
        return True, work()
    except Exception as error:
        return False, error
