"""The type of options that are a date: 2031-01-31, or with a time and a zone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click


class _Date(click.ParamType[Any]):
    name = "date, such as 2031-01-31 or 2031-01-31T12:00:00Z"  # for error messages

    def __init__(self, *, never: bool = False) -> None:
        self._never = never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or (self._never and value == "never"):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail("not a date", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


DATE = _Date()
DATE_OR_NEVER = _Date(never=True)
