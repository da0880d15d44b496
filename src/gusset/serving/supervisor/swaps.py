"""Which sets of values were sent to which workers, and which of them each worker uses. Pure: no I/O."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Generic, TypeVar

from gusset.runtime.declared_secrets import Values
from gusset.runtime.secret_watcher import versions_of

LAG_SECONDS = 1.0  # a worker that needs longer is lagging

ReplicaT = TypeVar("ReplicaT")


class Swaps(Generic[ReplicaT]):
    """Numbers the sets of values. A replica that has confirmed a number uses that set or a newer one.

    Its first set is the current one, so it never uses an older one.
    """

    def __init__(self, values: Values) -> None:
        """`values` are set number 0."""
        self.number = 0
        self._confirmed: dict[ReplicaT, int] = {}
        self._versions: dict[int, Mapping[str, int]] = {0: versions_of(values)}
        self._began_at: dict[int, float] = {}  # by number; monotonic

    @property
    def replicas(self) -> Collection[ReplicaT]:
        """Those that values are sent to."""
        return self._confirmed.keys()

    @property
    def oldest(self) -> int:
        """The number of the oldest set that a replica may use."""
        return min(self._confirmed.values(), default=self.number)

    def add(self, replica: ReplicaT) -> None:
        """Begin to follow a replica, whose first values are the current set."""
        self._confirmed[replica] = self.number

    def remove(self, replica: ReplicaT) -> None:
        """Follow a replica no more: nothing is left of it."""
        self._confirmed.pop(replica, None)

    def begin(self, values: Values) -> None:
        """The next set, which is about to be sent."""
        self.number += 1
        self._versions[self.number] = versions_of(values)
        self._began_at[self.number] = time.monotonic()

    def extend(self, values: Values) -> None:
        """Let the current set have these values: more secrets, which the replicas that may use them have."""
        self._versions[self.number] = versions_of(values)

    def confirm(self, replica: ReplicaT, number: int) -> None:
        """The replica uses that set. Numbers that were not sent to it are ignored."""
        if self._confirmed.get(replica, number) < number <= self.number:
            self._confirmed[replica] = number

    def in_use(self) -> Mapping[str, int]:
        """The versions such that no replica uses older ones."""
        oldest = self.oldest
        for number in [number for number in self._versions if number < oldest]:
            del self._versions[number]
            self._began_at.pop(number, None)
        return self._versions[oldest]

    def versions_at(self, number: int, names: Iterable[str]) -> dict[str, int]:
        """The versions of these secrets in that set, as far as they are known."""
        versions = self._versions.get(number, {})
        return {name: versions[name] for name in names if name in versions}

    def lagging(self) -> str | None:
        """How many replicas have not swapped in time, for people; None if none lags."""
        oldest = self.oldest
        began_at = self._began_at.get(oldest + 1)
        if oldest == self.number or began_at is None or time.monotonic() < began_at + LAG_SECONDS:
            return None
        count = sum(number < self.number for number in self._confirmed.values())
        since = datetime.fromtimestamp(time.time() - (time.monotonic() - began_at), UTC)
        return (
            f"{count} of {len(self._confirmed)} workers have not taken the new values of secrets, "
            f"since {since:%Y-%m-%dT%H:%M:%SZ}"
        )
