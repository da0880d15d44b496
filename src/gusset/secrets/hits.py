"""How often values were masked: evidence that a model leaks them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Label(NamedTuple):
    """What a pattern stands for: a secret's name, and the form of its value, as in "base64"."""

    secret: str
    form: str


@dataclass(frozen=True, slots=True, order=True)
class Hit:
    """What was masked where. `channel` is one of `CHANNELS`."""

    secret: str
    form: str
    channel: str


CHANNELS = frozenset(("stdout", "stderr", "log", "response", "metrics"))


class HitCounter:
    """Counts hits. Thread-safe. `total` only grows; `take` gives what was added since the last call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: Counter[Hit] = Counter()
        self._new: Counter[Hit] = Counter()

    def add(self, labels: Iterable[Label], channel: str) -> None:
        """Count one hit for each of `labels`."""
        self.merge(Counter(Hit(secret, form, channel) for secret, form in labels))

    def merge(self, hits: Mapping[Hit, int]) -> None:
        """Add hits that were counted elsewhere."""
        with self._lock:
            self._total.update(hits)
            self._new.update(hits)

    def take(self) -> Mapping[Hit, int]:
        """The hits since the last call."""
        with self._lock:
            taken, self._new = self._new, Counter()
        return taken

    @property
    def total(self) -> Mapping[Hit, int]:
        """All hits."""
        with self._lock:
            return dict(self._total)
