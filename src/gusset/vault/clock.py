"""The vault's clock, and times as the vault stores them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from gusset.errors import UsageError

Clock = Callable[[], datetime]


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: the format of every stored time.

    Raises:
        UsageError: in UTC the time is outside of the years 1 to 9999.
    """
    try:
        in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError:
        raise UsageError("the date must be within the years 1 to 9999 in UTC") from None
    text = in_utc.isoformat()  # with `timespec="milliseconds"` it takes twice as long
    return f"{text[:23]}Z" if in_utc.microsecond else f"{text[:19]}.000Z"
