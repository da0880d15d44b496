"""Verifies the audit log and all signed rows while the manager runs."""

from __future__ import annotations

import logging
import threading
import time

from gusset.errors import GussetError
from gusset.manager.bugs import log_bug
from gusset.vault.audit.continuous import ContinuousVerification, Integrity

log = logging.getLogger("gusset.manager")

RECORDS_EVERY = 60.0  # seconds
ROWS_EVERY = 3600.0
_BUSY_PAUSE = 50.0  # a busy manager pauses this many times as long as a piece took
_LATE_PAUSE = 10.0  # the same in a run that is late
_LATE = 600.0  # seconds after which a run is late


class IntegrityWatch:
    """A thread that verifies new records each minute, and all rows when it starts and each hour.

    A problem neither makes the manager unready nor stops it: an altered row is refused where it is
    used, and everything else keeps working. Problems are logged once, counted in the metrics, and shown
    to administrators.
    """

    def __init__(self, verification: ContinuousVerification) -> None:
        self._verification = verification
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._logged: frozenset[str] = frozenset()
        self._began = _clocks()  # of the present piece
        self._run_began = 0.0  # by the monotonic clock

    @property
    def result(self) -> Integrity:
        """What was found up to now."""
        return self._verification.result

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="gusset-verification", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the current piece."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        rows_due = 0.0
        while not self._stop.is_set():
            self._began = _clocks()
            self._run_began = time.monotonic()
            try:
                self._verification.verify_new_records(self._pause)
                if time.monotonic() >= rows_due and not self._stop.is_set():
                    self._verification.verify_rows(self._pause)
                    rows_due = time.monotonic() + ROWS_EVERY
            except GussetError as error:
                log.warning("The vault could not be verified: %s", error.message)
            except Exception as error:
                log_bug(error)
            self._log_new()
            self._stop.wait(RECORDS_EVERY)

    def _pause(self) -> bool:
        """Leave time to requests. Returns whether to stop.

        See `pause_seconds`.
        """
        elapsed, own, process = (now - began for now, began in zip(_clocks(), self._began, strict=True))
        busy = min((process - own) / elapsed, 1.0) if elapsed else 0.0
        stops = self._stop.wait(pause_seconds(own, busy=busy, running=time.monotonic() - self._run_began))
        self._began = _clocks()
        return stops

    def _log_new(self) -> None:
        problems = self.result.problems
        for problem in problems:
            if problem not in self._logged:
                log.error("The vault was tampered with or is damaged: %s", problem)
        self._logged = frozenset(problems)


def pause_seconds(piece: float, *, busy: float, running: float) -> float:
    """How long to leave to requests after a piece that took so long.

    As long again if there are none (`busy` 0), and fifty times as long if they take all time (`busy` 1).
    The longer the run takes (`running`, in seconds), the shorter the pause, down to ten times after ten
    minutes: a manager that is always busy must not leave records unverified.
    """
    longest = _BUSY_PAUSE + (_LATE_PAUSE - _BUSY_PAUSE) * min(running / _LATE, 1.0)
    return piece * (1 + (longest - 1) * busy)


def _clocks() -> tuple[float, float, float]:
    """The time, and the processor time of this thread and of all threads, in seconds."""
    return time.monotonic(), time.thread_time(), time.process_time()
