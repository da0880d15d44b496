"""Runs functions in a forked process: in parallel, or to keep what they use out of this process."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import IO, Any, Generic, TypeVar

T = TypeVar("T")


class ForkedProcess:
    """A forked process that calls functions for this one, one after the other.

    Functions, arguments and results are pickled. Fork before this process has
    threads, locks or secret values, since a forked process gets copies of them.
    """

    def __init__(self, pid: int, requests: IO[bytes], results: IO[bytes]) -> None:
        self._pid = pid
        self._requests = requests
        self._results = results

    @classmethod
    def start(cls, *, wakes_parent: bool = False) -> ForkedProcess:
        """Fork. The process ends on `close`, or when this one ends.

        With `wakes_parent` it sends SIGCHLD to this process for each result.
        """
        parent = os.getpid() if wakes_parent else None
        request_r, request_w = os.pipe()
        result_r, result_w = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            os.close(request_r)
            os.close(result_w)
            return cls(pid, os.fdopen(request_w, "wb"), os.fdopen(result_r, "rb"))
        try:  # in the child, which never returns into the caller's code
            os.close(request_w)
            os.close(result_r)
            with os.fdopen(request_r, "rb") as requests, os.fdopen(result_w, "wb") as results:
                _call_all(requests, results, parent)
        finally:
            os._exit(0)

    def submit(self, function: Callable[..., object], *args: object) -> None:
        """Start a call of `function`. Fetch its result before the next call."""
        pickle.dump((function, args), self._requests)
        self._requests.flush()

    def has_result(self) -> bool:
        """Whether `result` returns at once; also when the process has ended, and `result` raises EOFError."""
        return bool(select.select([self._results], [], [], 0)[0])

    def result(self) -> Any:
        """What the submitted function returned. Raises what it raised."""
        returned, result = pickle.load(self._results)  # noqa: S301  # from our own fork
        if not returned:
            raise result
        return result

    def kill(self) -> None:
        """End the process, even while it calls a function. `close` must follow."""
        os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Tell the process to end, and wait for it."""
        # Closing the pipe is not enough, since a process that was forked later also has its write end open.
        with suppress(BrokenPipeError):  # it has ended already
            pickle.dump(None, self._requests)
            self._requests.flush()
        with suppress(BrokenPipeError):
            self._requests.close()
        self._results.close()
        os.waitpid(self._pid, 0)


def _call_all(requests: IO[bytes], results: IO[bytes], parent: int | None) -> None:
    while True:
        try:
            request = pickle.load(requests)  # noqa: S301  # from our own parent
        except EOFError:
            return
        if request is None:
            return
        function, args = request
        try:
            outcome = True, function(*args)
        except Exception as error:
            outcome = False, error
        pickle.dump(outcome, results)
        results.flush()
        if parent is not None and os.getppid() == parent:
            os.kill(parent, signal.SIGCHLD)


class ForkedTask(Generic[T]):
    """Calls `work`, which is slow because of its imports, in a forked process; `result` waits for it."""

    def __init__(self, process: ForkedProcess) -> None:
        self._process = process

    @classmethod
    def start(cls, work: Callable[[], T]) -> ForkedTask[T]:
        """Fork, and call `work` in the child process."""
        process = ForkedProcess.start()
        process.submit(work)
        return cls(process)

    def result(self) -> T:
        """What `work` returned. Raises what it raised."""
        returned, result = self._outcome
        if not returned:
            raise result
        value: T = result
        return value

    @cached_property
    def _outcome(self) -> tuple[bool, Any]:
        try:
            return True, self._process.result()
        except Exception as error:
            return False, error
        finally:
            self._process.close()
