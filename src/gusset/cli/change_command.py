"""Runs the command of `gusset agent --on-change`: once per change, one at a time."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping

from gusset.cli.command_process import Command
from gusset.cli.command_run import DEBOUNCE, GRACE_PERIOD, SILENCE
from gusset.errors import UsageError
from gusset.portable import signal_name

log = logging.getLogger("gusset")

TIMEOUT = 60.0  # seconds for one run
_POLL = 0.05  # seconds


class ChangeCommand:
    """A thread that runs a command after each change.

    Changes in quick succession, and all that come during a run, cause one
    further run. A failure is logged and counted, but not retried.
    """

    def __init__(
        self,
        command: Command,
        environment: Callable[[], Mapping[bytes, bytes]],
        *,
        timeout: float = TIMEOUT,
        grace_period: float = GRACE_PERIOD,
    ) -> None:
        """A run gets SIGTERM after `timeout` seconds, and SIGKILL after `grace_period` more."""
        self._command = command
        self._environment = environment
        self._timeout = timeout
        self._grace_period = grace_period
        self._changed = threading.Event()
        self._stop = threading.Event()
        self.runs = 0
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="gusset-change-command", daemon=True)

    def start(self) -> None:
        """Run the command for changes from now on, and for those that were requested before."""
        self._thread.start()

    def request(self) -> None:
        """Run the command: there was a change. Returns at once."""
        self._changed.set()

    def stop(self) -> None:
        """Run it no more. A run in progress gets SIGTERM, and is waited for."""
        self._stop.set()
        self._changed.set()
        self._thread.join(2 * self._grace_period)

    def _run(self) -> None:
        while True:
            self._changed.wait()
            if self._stop.wait(DEBOUNCE):
                return
            self._changed.clear()
            self._run_once()

    def _run_once(self) -> None:
        self.runs += 1
        try:
            self._command.start(self._environment())
        except UsageError as error:
            self._record_failure(error.message)
            return
        started = time.monotonic()
        status = self._wait()
        self._command.drain(SILENCE)
        if self._stop.is_set():
            return
        if time.monotonic() - started >= self._timeout:
            self._record_failure(f"not finished after {self._timeout:.0f} s")
        elif status:
            self._record_failure(
                f"exit status {status}" if status > 0 else f"ended by {signal_name(-status)}"
            )
        else:
            log.info("The --on-change command has run.")

    def _wait(self) -> int:
        """Wait for its end, and end it if that takes too long; its status, negative for a signal."""
        deadline, number = time.monotonic() + self._timeout, signal.SIGTERM
        while (status := self._command.poll()) is None:
            if time.monotonic() >= deadline or (self._stop.is_set() and number == signal.SIGTERM):
                self._command.send(number)
                deadline, number = time.monotonic() + self._grace_period, signal.SIGKILL
            time.sleep(_POLL)
        return status

    def _record_failure(self, reason: str) -> None:
        self.failures += 1
        log.warning(
            "The --on-change command failed: %s (%d of %d runs failed).", reason, self.failures, self.runs
        )
