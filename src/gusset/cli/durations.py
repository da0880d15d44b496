"""The types of options that are a duration: 30s, 15m, 1h, 7d, or a number of seconds."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

import click

_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class _Duration(click.ParamType[Any]):
    name = "duration, such as 30s, 15m, 1h or 7d"  # for error messages

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


class _Seconds(click.ParamType[Any]):
    name = "number of seconds, 0 or more"  # for error messages

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:  # false for NaN, too
            self.fail("not a number of seconds", param, ctx)
        return seconds


DURATION = _Duration()
DURATION_OR_NEVER = _Duration(never=True)
SECONDS = _Seconds()
