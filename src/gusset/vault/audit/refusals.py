"""Repeated refusals, recorded in sums, so that nobody can fill the audit log by being refused."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import Actor
from gusset.vault.audit.events import AuditEvent

WINDOW = 60.0  # seconds that one sum covers
MAX_TARGETS = 64  # of one caller and action in a window; further ones share a sum
MAX_SUMS = 1024  # in all; the refusals of further callers share a sum for each action

Key = tuple[str, str | None, Action, str, str]  # actor, address, action, target, outcome


class RefusalSum(AuditEvent):
    """How often a refusal was repeated; recorded as it is."""


@dataclass(slots=True)
class _Sum:
    began: float
    repeated: int = 0


class RefusalSums:
    """Passes on the first of each kind of refusal, and counts those that repeat it. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sums: dict[Key, _Sum] = {}
        self._targets: Counter[Key] = Counter()  # kinds of refusal by caller and action

    def admit(self, events: Sequence[AuditEvent]) -> Sequence[AuditEvent]:
        """Those of `events` to record now: all but refusals that repeat an earlier one."""
        if all(_is_recorded(event) for event in events):
            return events
        with self._lock:
            return [event for event in events if _is_recorded(event) or self._is_first(event)]

    def take_due(self, *, all_of_them: bool = False) -> list[AuditEvent]:
        """The sums whose window has ended, each as an event; a new window begins for those."""
        now, events = self._clock(), list[AuditEvent]()
        with self._lock:
            for key, each in list(self._sums.items()):
                if now < each.began + WINDOW and not all_of_them:
                    continue
                if each.repeated:
                    events.append(_event(key, each.repeated, now - each.began))
                    self._sums[key] = _Sum(now)
                else:
                    self._forget(key)
        return events

    def put_back(self, sums: Sequence[AuditEvent]) -> None:
        """Count these again: they could not be recorded."""
        with self._lock:
            for event in sums:
                key = self._key(event)
                if key not in self._sums:
                    self._start(key)
                self._sums[key].repeated += event.details["repeated"]

    def _is_first(self, event: AuditEvent) -> bool:
        key = self._key(event)
        if (found := self._sums.get(key)) is not None:
            found.repeated += 1
            return False
        self._start(key)
        return True

    def _start(self, key: Key) -> None:
        self._sums[key] = _Sum(self._clock())
        self._targets[_group(key)] += 1

    def _key(self, event: AuditEvent) -> Key:
        address = getattr(event.actor, "address", None)
        key = (str(event.actor), address, event.action, event.target, event.outcome)
        if key in self._sums:
            return key
        if self._targets[_group(key)] >= MAX_TARGETS:
            key = (str(event.actor), address, event.action, "several", event.outcome)
        if key not in self._sums and len(self._sums) >= MAX_SUMS:
            key = ("several callers", None, event.action, "several", event.outcome)
        return key

    def _forget(self, key: Key) -> None:
        del self._sums[key]
        group = _group(key)
        self._targets[group] -= 1
        if self._targets[group] <= 0:
            del self._targets[group]


def _group(key: Key) -> Key:
    actor, address, action, _, outcome = key
    return actor, address, action, "", outcome


def _is_recorded(event: AuditEvent) -> bool:
    return event.outcome == "ok" or isinstance(event, RefusalSum)


def _event(key: Key, repeated: int, seconds: float) -> RefusalSum:
    actor, address, action, target, outcome = key
    details = {"repeated": repeated, "seconds": ceil(seconds)}
    return RefusalSum(Actor(actor, address), action, target, outcome=outcome, details=details)
