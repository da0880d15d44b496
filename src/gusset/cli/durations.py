"""The type of options that are a duration: 30s, 15m, 1h, 7d."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class _Duration(click.ParamType[Any]):
    name = "duration, as 30s, 15m, 1h or 7d"  # for error messages

    def __init__(self, *, never: bool = False) -> None:
        self._never = never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or (self._never and value == "never"):
            return value
        found = _DURATION.fullmatch(value)
        if found is None or not int(found[1]):
            self.fail("not a duration", param, ctx)
        try:
            return timedelta(**{_UNITS[found[2]]: int(found[1])})
        except OverflowError:
            self.fail("too long", param, ctx)


DURATION = _Duration()
DURATION_OR_NEVER = _Duration(never=True)
