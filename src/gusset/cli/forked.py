"""Runs a function in a forked process while this process does something else."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ForkedTask(Generic[T]):
    """Calls `work` in a forked process; `result` waits for it.

    Use it for work that is slow because of its imports and returns plain data,
    before this process has threads, locks or secret values, since a fork gets
    copies of them.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._read_fd, write_fd = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid:
            os.close(write_fd)
            return
        try:  # in the child: never return into the caller's code
            with os.fdopen(write_fd, "wb") as pipe:
                pickle.dump(_call(work), pipe)
        finally:
            os._exit(0)

    def result(self) -> T:
        """What `work` returned. Raises what it raised."""
        returned, result = self._outcome
        if not returned:
            raise result
        value: T = result
        return value

    @cached_property
    def _outcome(self) -> tuple[bool, Any]:
        with os.fdopen(self._read_fd, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self._pid, 0)
        outcome: tuple[bool, Any] = pickle.loads(data)  # noqa: S301  # from our own fork
        return outcome


def _call(work: Callable[[], T]) -> tuple[bool, T | Exception]:
    try:
        return True, work()
    except Exception as error:
        return False, error
