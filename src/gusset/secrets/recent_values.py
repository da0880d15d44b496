"""The values of the last changes, which a process that runs for months masks, and no older ones."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from gusset.secrets.masking import Masker
from gusset.secrets.value import SecretValue

REMEMBERED = 16  # changes


@dataclass(slots=True)
class _Change:
    number: int  # the last one with which these values were added
    values: frozenset[SecretValue]


class RecentValues:
    """Has `masker` know the values of at least the last `REMEMBERED` changes, and forget older ones.

    Each value costs memory, and time at each change. What is forgotten is so even if the masker has
    also learned it otherwise. Thread-safe.
    """

    def __init__(self, masker: Masker) -> None:
        self.masker = masker
        self._lock = threading.Lock()
        self._changes: list[_Change] = []

    def add(
        self, *groups: Mapping[str, SecretValue], number: int = 0, in_use: int | None = None
    ) -> frozenset[SecretValue]:
        """Mask all values that are current now, by the names of their secrets. Returns what is forgotten.

        It is a change if one of them was not current before. `number` grows with the changes. Those
        from the number `in_use` on are kept, however many follow: somebody may still use their values.
        """
        values = frozenset(value for group in groups for value in group.values())
        with self._lock:
            for group in groups:
                self.masker.learn(group)
            if self._changes and values <= self._changes[-1].values:
                self._changes[-1].number = max(number, self._changes[-1].number)
                return frozenset()
            self._changes.append(_Change(number, values))
            return self._forget(in_use)

    def _forget(self, in_use: int | None) -> frozenset[SecretValue]:
        """Forget what only changes before the last ones had: of several at once, since that takes long."""
        old: list[_Change] = []
        kept: list[_Change] = []
        for change in self._changes[:-REMEMBERED]:
            (old if in_use is None or change.number < in_use else kept).append(change)
        if len(old) < REMEMBERED:
            return frozenset()
        self._changes = kept + self._changes[-REMEMBERED:]
        forgotten = _values_of(old) - _values_of(self._changes)
        if forgotten:  # else all patterns would be made anew
            self.masker.forget(forgotten)
        return forgotten


def _values_of(changes: list[_Change]) -> frozenset[SecretValue]:
    return frozenset().union(*(change.values for change in changes))
