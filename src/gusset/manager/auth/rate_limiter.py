"""Rate limits per client: an address, an account, a key."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict


class RateLimiter:
    """A token bucket for each client: `burst` at once, then one each `seconds / burst`.

    In memory, and bounded: beyond `clients` clients, the longest unseen are forgotten. Thread-safe.
    """

    def __init__(self, burst: float, seconds: float, *, clients: int = 10_000) -> None:
        """`burst` is also how many a client may have in each `seconds`, in the long run."""
        self._burst = burst
        self._rate = burst / seconds
        self._clients = clients
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> level, as of when

    def take(self, client: str) -> float:
        """Take one from the client's bucket. Returns 0.0 or, if it is empty, the seconds until it has one."""
        now = time.monotonic()
        with self._lock:
            level = self._level(client, now)
            if level < 1.0:
                return (1.0 - level) / self._rate
            self._levels[client] = (level - 1.0, now)
            self._levels.move_to_end(client)
            if len(self._levels) > self._clients:
                self._levels.popitem(last=False)
            return 0.0

    def give_back(self, client: str) -> None:
        """Undo one `take`: what it was taken for does not count."""
        now = time.monotonic()
        with self._lock:
            self._levels[client] = (min(self._level(client, now) + 1.0, self._burst), now)

    def exhaust(self, client: str, seconds: float) -> None:
        """Let the client take nothing for that time, and then one."""
        now = time.monotonic()
        with self._lock:
            self._levels[client] = (min(self._level(client, now), 1.0 - seconds * self._rate), now)

    def _level(self, client: str, now: float) -> float:
        level, at = self._levels.get(client, (self._burst, now))
        return min(self._burst, level + (now - at) * self._rate)
