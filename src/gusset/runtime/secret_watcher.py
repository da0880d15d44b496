"""Follows a source of secrets and delivers each new set of values."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from gusset.backoff import Backoff
from gusset.errors import Denied, GussetError, Unreachable
from gusset.runtime.declared_secrets import Values
from gusset.secrets.sources.source import FollowsReplicas, SecretSource

log = logging.getLogger("gusset")

_FIRST_RETRY, _LONGEST_RETRY = 0.5, 4.0  # seconds
_RECOVERED = {"read": "Secrets can be read again.", "delivered": "Secrets can be delivered again."}


class SecretWatcher:
    """A thread that follows a source and calls `on_values` with each new set of values.

    While the source refuses or cannot be reached, the current values stay in
    use: it warns once, and retries with backoff until it succeeds. When an overlap
    ends it delivers the values without the previous one, also while the source does not respond.
    """

    def __init__(self, source: SecretSource, on_values: Callable[[Values], object]) -> None:
        """`on_values` is called on the watcher's thread; if it raises, that is retried, too."""
        self._source = source
        self._on_values = on_values
        self._lock = threading.RLock()  # guards the fields below, and is held while `on_values` runs
        self._names: Collection[str] = ()
        self._held: Values = {}
        self._read_first = False  # read the values before watching: they may have changed meanwhile
        self._overlap_timer: threading.Timer | None = None
        self._superseded = threading.Event()  # set when other names are followed, or none any more
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="gusset-secret-watcher", daemon=True)

    def start(self, names: Collection[str], held: Values) -> None:
        """Follow these names; `held` are the values just read."""
        self._follow(names, held, read_first=False)

    def follow(self, names: Collection[str], held: Values) -> None:
        """Follow these names from now on. They are read at once: `held` may be out of date."""
        self._follow(names, held, read_first=True)

    def _follow(self, names: Collection[str], held: Values, *, read_first: bool) -> None:
        with self._lock:
            self._names, self._held, self._read_first = names, held, read_first
            self._superseded.set()
            self._superseded = threading.Event()
            self._schedule_overlap_end()
        if names and self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Stop following. Returns when the source is no longer used, or after two seconds."""
        with self._lock:
            self._stopped = True
            self._superseded.set()
            self._schedule_overlap_end()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stopped:
            with self._lock:
                names, superseded = self._names, self._superseded
                read_first, self._read_first = self._read_first, False
            if read_first:
                self._read(names, superseded)
            self._watch(names, superseded)

    def _watch(self, names: Collection[str], superseded: threading.Event) -> None:
        while not superseded.is_set():
            try:
                for _ in self._source.watch(names, superseded):
                    if superseded.is_set():
                        return
                    self._read(names, superseded)
            except Exception as error:  # a source must not raise; if it does, later values must still arrive
                # The type only: a library's message may quote a value.
                log.error("Watching secrets failed and is retried: %s", type(error).__name__)  # noqa: TRY400
            superseded.wait(_FIRST_RETRY)

    def _read(self, names: Collection[str], superseded: threading.Event) -> None:
        """Read and deliver the values; retry until both succeed."""
        backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        failed_step = ""
        while not superseded.is_set():
            step = "read"
            try:
                values = self._source.read(names)
                step = "delivered"
                self._deliver(names, values, superseded)
            except Exception as error:
                if failed_step != step:
                    log.warning(
                        "Secrets could not be %s; the current values stay in use: %s", step, _reason(error)
                    )
                failed_step = step
                # The jitter keeps replicas from returning all at once.
                superseded.wait(random.uniform(0.5, 1.0) * backoff.next_delay())  # noqa: S311  # nothing secret
            else:
                if failed_step:
                    log.info(_RECOVERED[failed_step])
                return

    def _deliver(self, names: Collection[str], values: Values, superseded: threading.Event) -> None:
        with self._lock:
            changed = [name for name in names if values.get(name) != self._held.get(name)]
            if superseded.is_set() or not changed:
                return
            self._on_values(values)
            if not superseded.is_set():  # else `on_values` called `follow`, which has set `_held`
                self._held = values
                self._schedule_overlap_end()
            listed = [name if name in values else f"{name} (removed)" for name in changed]
            log.info("Secrets changed: %s", ", ".join(listed))

    def _schedule_overlap_end(self) -> None:
        """Have `_end_overlaps` called when the next overlap ends; never again once this has stopped."""
        if self._overlap_timer is not None:
            self._overlap_timer.cancel()
            self._overlap_timer = None
        ends = [each.previous.until for each in self._held.values() if each.previous is not None]
        soonest = min((end for end in ends if end is not None), default=None)
        if soonest is not None and not self._stopped:
            self._end_overlaps_after(max(0.0, soonest - time.monotonic()))

    def _end_overlaps_after(self, seconds: float) -> None:
        self._overlap_timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._end_overlaps)
        self._overlap_timer.daemon = True
        self._overlap_timer.start()

    def _end_overlaps(self) -> None:
        with self._lock:
            values = without_ended(self._held, time.monotonic())
            if self._stopped or values == self._held:
                return
            try:
                self._on_values(values)
                self._held = values
            except Exception as error:
                log.warning("A value whose overlap has ended could not be dropped: %s", _reason(error))
                self._end_overlaps_after(_LONGEST_RETRY)
                return
            self._schedule_overlap_end()
        log.info("An overlap has ended: the previous value is no longer accepted.")


def _reason(error: Exception) -> str:
    if not isinstance(error, GussetError):
        return type(error).__name__  # a library's message may quote a value
    kind = {Denied: "denied", Unreachable: "unreachable"}.get(type(error), "failed")
    return f"{kind}: {error.message}"


def versions_of(values: Values) -> dict[str, int]:
    """The versions of those values that have one."""
    return {name: each.version for name, each in values.items() if each.version is not None}


def without_ended(values: Values, now: float) -> Values:
    """The values without the previous ones whose overlap has ended by the monotonic time `now`."""
    return {
        name: replace(each, previous=None)
        if each.previous is not None and each.previous.until is not None and each.previous.until <= now
        else each
        for name, each in values.items()
    }


def acknowledge(source: SecretSource, values: Values) -> None:
    """Let the source know that these values are in use, and no older ones, if it wants to know."""
    if isinstance(source, FollowsReplicas):
        source.acknowledge(versions_of(values))
