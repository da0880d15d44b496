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

RefusalKind = tuple[str, str | None, Action, str, str]  # actor, address, action, target, outcome
CountedRefusal = tuple[RefusalKind, bool]  # whether it was the first of its kind


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
        self._sums: dict[RefusalKind, _Sum] = {}
        self._targets: Counter[RefusalKind] = Counter()  # kinds of refusal by caller and action

    def admit(
        self, events: Sequence[AuditEvent], counted: list[CountedRefusal] | None = None
    ) -> Sequence[AuditEvent]:
        """Those of `events` to record now: all but refusals that repeat an earlier one.

        `counted` gets what `take_back` needs if the events are not recorded after all.
        """
        if all(_is_recorded(event) for event in events):
            return events
        with self._lock:
            return [event for event in events if _is_recorded(event) or self._is_first(event, counted)]

    def take_back(self, counted: list[CountedRefusal]) -> None:
        """Undo what `admit` has counted, since its transaction was not committed. Empties the list.

        Of several lists take back the last one first: a kind is forgotten once nothing repeats it.
        """
        with self._lock:
            while counted:
                kind, first = counted.pop()
                found = self._sums.get(kind)
                if found is None:
                    continue
                if not first:
                    found.repeated = max(0, found.repeated - 1)
                elif not found.repeated:  # else others were counted meanwhile, and need the sum
                    self._forget(kind)

    def take_due(self, *, all_of_them: bool = False) -> list[AuditEvent]:
        """The sums whose window has ended, each as an event; a new window begins for those."""
        now, events = self._clock(), list[AuditEvent]()
        with self._lock:
            for kind, each in list(self._sums.items()):
                if now < each.began + WINDOW and not all_of_them:
                    continue
                if each.repeated:
                    events.append(_event(kind, each.repeated, now - each.began))
                    self._sums[kind] = _Sum(now)
                else:
                    self._forget(kind)
        return events

    def put_back(self, sums: Sequence[AuditEvent]) -> None:
        """Count these again: they could not be recorded."""
        with self._lock:
            for event in sums:
                kind = self._kind(event)
                if kind not in self._sums:
                    self._start(kind)
                self._sums[kind].repeated += event.details["repeated"]

    def _is_first(self, event: AuditEvent, counted: list[CountedRefusal] | None) -> bool:
        kind = self._kind(event)
        found = self._sums.get(kind)
        if found is not None:
            found.repeated += 1
        else:
            self._start(kind)
        if counted is not None:
            counted.append((kind, found is None))
        return found is None

    def _start(self, kind: RefusalKind) -> None:
        self._sums[kind] = _Sum(self._clock())
        self._targets[_group(kind)] += 1

    def _kind(self, event: AuditEvent) -> RefusalKind:
        address = getattr(event.actor, "address", None)
        kind = (str(event.actor), address, event.action, event.target, event.outcome)
        if kind in self._sums:
            return kind
        if self._targets[_group(kind)] >= MAX_TARGETS:
            kind = (str(event.actor), address, event.action, "several", event.outcome)
        if kind not in self._sums and len(self._sums) >= MAX_SUMS:
            kind = ("several callers", None, event.action, "several", event.outcome)
        return kind

    def _forget(self, kind: RefusalKind) -> None:
        del self._sums[kind]
        group = _group(kind)
        self._targets[group] -= 1
        if self._targets[group] <= 0:
            del self._targets[group]


def _group(kind: RefusalKind) -> RefusalKind:
    actor, address, action, _, outcome = kind
    return actor, address, action, "", outcome


def _is_recorded(event: AuditEvent) -> bool:
    return event.outcome == "ok" or isinstance(event, RefusalSum)


def _event(kind: RefusalKind, repeated: int, seconds: float) -> RefusalSum:
    actor, address, action, target, outcome = kind
    details = {"repeated": repeated, "seconds": ceil(seconds)}
    return RefusalSum(Actor(actor, address), action, target, outcome=outcome, details=details)
