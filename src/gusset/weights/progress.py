"""Shows how far a download is: a line that is rewritten on a terminal, else a log record now and then."""

from __future__ import annotations

import logging
import sys
import threading
import time

from gusset.printable import printable

log = logging.getLogger("gusset")

_BAR_INTERVAL = 0.2  # seconds
_LOG_INTERVAL = 15.0
_RETRY_INTERVAL = 0.1
_SILENT = 1.0  # shorter downloads show no progress
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Progress:
    """The progress of one download. Thread-safe."""

    def __init__(self, label: str, *, bar: bool) -> None:
        self._label = printable(label)
        self._bar = bar
        self._lock = threading.Lock()
        self._done = 0
        self._fetched = 0
        self._total: int | None = None
        self._started = time.monotonic()
        self._next = self._started + _SILENT
        self._next_retry = 0.0

    def expect(self, total: int | None, *, present: int = 0) -> None:
        """Of `total` bytes, `present` are here already."""
        with self._lock:
            self._total, self._done = total, present

    def skip(self, count: int) -> None:
        """Count bytes that were here already."""
        with self._lock:
            self._done += count

    def advance(self, count: int) -> None:
        """Count bytes that have arrived."""
        with self._lock:
            self._done += count
            self._fetched += count
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + (_BAR_INTERVAL if self._bar else _LOG_INTERVAL)
            text = f"Downloading {self._label}: {self._amount()}"
        if self._bar:
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()
        else:
            log.info("%s", text)

    def retry(self, reason: str, delay: float) -> None:
        """A request failed, and is sent again after `delay` seconds. Logs it."""
        with self._lock:
            now = time.monotonic()
            is_logged = now >= self._next_retry  # many files may fail at once
            self._next_retry = now + _RETRY_INTERVAL if is_logged else self._next_retry
        if is_logged:
            self._clear_bar()
            log.warning("%s: %s; trying again in %.1f s.", self._label, printable(reason), delay)

    def finish(self) -> None:
        """The download is complete. Logs it if anything was fetched."""
        self._clear_bar()
        if self._fetched:
            log.info("Downloaded %s (%s).", self._label, size_text(self._done))

    def _clear_bar(self) -> None:
        if self._bar and time.monotonic() - self._started > _SILENT:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def _amount(self) -> str:
        if not self._total:
            return size_text(self._done)
        percent = min(100, 100 * self._done // self._total)
        return f"{size_text(self._done)} of {size_text(self._total)} ({percent}%)"


def size_text(size: float) -> str:
    """`3.4 GB`, for people."""
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"
