"""The vault's clock, and times as the vault stores them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: the format of every stored time."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
