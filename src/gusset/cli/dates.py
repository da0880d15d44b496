"""A date on the command line: 2031-01-31, or with a time and a zone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click


class _When(click.ParamType[Any]):
    name = "date (2031-01-31, or with a time: 2031-01-31T12:00:00Z)"

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


WHEN = _When()
WHEN_OR_NEVER = _When(never=True)
