"""Reports to the source of the secrets what was masked, in sums."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

from gusset.errors import GussetError, Unreachable
from gusset.secrets.hits import Hit, HitCounter
from gusset.secrets.sources.source import RecordsHits, SecretSource

log = logging.getLogger("gusset")

INTERVAL = 60.0  # seconds between two reports; the first is sent at once
_POLL = 1.0  # seconds
_LAST_REPORT = 2.0  # seconds for the last one, at the end


class HitReporter:
    """Follows a counter, and reports to the source if that records hits."""

    def __init__(self, counter: HitCounter, source: SecretSource) -> None:
        self._counter = counter
        self._source = source
        self._pending: Counter[Hit] = Counter()
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gusset-hits", daemon=True)

    @classmethod
    def start(cls, counter: HitCounter, source: SecretSource) -> HitReporter:
        """A reporter whose thread runs."""
        reporter = cls(counter, source)
        reporter._thread.start()
        return reporter

    def stop(self) -> None:
        """Report what is left, and stop."""
        self._stop.set()
        self._thread.join(_LAST_REPORT)

    def _run(self) -> None:
        next_report = 0.0
        while not self._stop.wait(_POLL):
            if self._collect() and time.monotonic() >= next_report:
                self._send()
                next_report = time.monotonic() + INTERVAL
        if self._collect():
            self._send()

    def _collect(self) -> bool:
        self._pending.update({hit: times for hit, times in self._counter.take().items() if hit.secret})
        return bool(self._pending)

    def _send(self) -> None:
        if isinstance(self._source, RecordsHits):
            try:
                self._source.record_hits(dict(self._pending))
            except Unreachable:
                return  # the next report has these, too
            except GussetError as error:
                if not self._warned:
                    log.warning("Masked values could not be reported: %s", error.message)
                self._warned = True
        self._pending.clear()
