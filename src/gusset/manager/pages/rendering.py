"""The Jinja environment of the templates, and its filters. Knows nothing of requests."""

# Jinja is imported in a function: it takes 2 MB, and not all managers show pages.

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from gusset.printable import printable_lines

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
STATIC = HERE / "static"
MINUTE, HOUR, DAY = 60, 3600, 86_400
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_UNITS = ((365 * DAY, "year"), (30 * DAY, "month"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"))


def parse_time(text: str) -> datetime:
    """Parse a time as the vault stores it: RFC 3339 in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def ago(text: str | None, now: datetime) -> str:
    """A time relative to `now`: "just now", "3 minutes ago", "in 6 days"; "never" for None.

    A text that is no time stays as it is: not every row that a page shows is signed.
    """
    if text is None:
        return "never"
    try:
        seconds = (now - parse_time(text)).total_seconds()
    except (ValueError, OverflowError):
        return text
    size = abs(seconds)
    if size < MINUTE:
        return "just now" if seconds >= 0 else "in a moment"
    length, unit = next(each for each in _UNITS if size >= each[0])
    count = int(size // length)
    if (count, unit) == (1, "day"):
        return "yesterday" if seconds > 0 else "tomorrow"
    relative = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{relative} ago" if seconds > 0 else f"in {relative}"


def exact(text: str) -> str:
    """A time to the second, for tooltips: "23 November 2026, 14:00:05 UTC". See `ago` for other texts."""
    try:
        at = parse_time(text)
    except (ValueError, OverflowError):
        return text
    return f"{at.day} {at:%B %Y, %H:%M:%S} UTC"


def day(text: str | None) -> str:
    """The date of a time, as a date input takes it; empty for None."""
    return f"{parse_time(text):%Y-%m-%d}" if text else ""


def past(text: str | None, now: datetime) -> bool:
    """Whether a time has passed; False for None."""
    return text is not None and parse_time(text) <= now


def count_of(number: int, noun: str) -> str:
    """ "1 secret", "3 secrets", "2,104 secrets"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def yaml_key(name: str) -> str:
    """A secret's name as a YAML key, quoted if YAML would not read it as that string."""
    plain = _PLAIN_KEY.fullmatch(name) and name.lower() not in _YAML_WORDS
    return name if plain else f'"{name}"'


@cache
def fingerprint(name: str) -> str:
    """A short hash of a static file: its URL changes with its content, so browsers may cache it forever."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def static_url(name: str) -> str:
    """The URL of a file in `static/`, with its fingerprint."""
    return f"/static/{name}?v={fingerprint(name)}"


def _without_control_characters(value: object) -> object:
    """A text without control characters; other values, and gusset's own `Markup`, as they are."""
    return printable_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def environment() -> Environment:
    """The environment for the templates: everything is escaped, and an undefined name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_control_characters,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    filters: tuple[Callable[..., object], ...] = (ago, exact, day, past, count_of, yaml_key)
    templates.filters.update({each.__name__: each for each in filters})
    templates.globals["static"] = static_url
    return templates
