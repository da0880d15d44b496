"""Growing delays between attempts."""

from __future__ import annotations


class Backoff:
    """The delays before the next attempts, in seconds: each is twice the previous one, up to `longest`."""

    def __init__(self, first: float, longest: float = 30.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next_delay(self) -> float:
        """How long to wait before the next attempt."""
        delay = self._next
        self._next = min(delay * 2, self._longest)
        return delay

    def reset(self) -> None:
        """Start over with the first delay: an attempt has succeeded."""
        self._next = self._first
