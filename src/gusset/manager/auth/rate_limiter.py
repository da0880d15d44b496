"""Rate limits for failed attempts to authenticate."""

from __future__ import annotations

import time
from collections import OrderedDict


class RateLimiter:
    """Counts recent failures per client, an IP address or an email address. In memory, bounded in size."""

    def __init__(self, *, limit: int = 20, seconds: float = 60.0, clients: int = 10_000) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clients = clients
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def count(self, client: str) -> bool:
        """Count one failure. False once the client is over the limit."""
        recent = self._recent(client)
        recent.append(time.monotonic())
        self._failures[client] = recent[-self._limit - 1 :]
        self._failures.move_to_end(client)
        while len(self._failures) > self._clients:
            self._failures.popitem(last=False)
        return len(recent) <= self._limit

    def blocked(self, client: str) -> bool:
        """Whether the client has reached the limit."""
        return len(self._recent(client)) >= self._limit

    def reset(self, client: str) -> None:
        """Forget the client's failures, after a success."""
        self._failures.pop(client, None)

    def _recent(self, client: str) -> list[float]:
        since = time.monotonic() - self._seconds
        return [moment for moment in self._failures.get(client, ()) if moment > since]
