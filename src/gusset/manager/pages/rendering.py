"""Makes HTML of templates: the environment they run in, and how times read. Knows nothing of requests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
STATIC = HERE / "static"
MINUTE, HOUR, DAY = 60, 3600, 86_400
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_UNITS = ((365 * DAY, "year"), (30 * DAY, "month"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"))


def moment(text: str) -> datetime:
    """A time as the vault writes it: RFC 3339 in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def ago(text: str | None, now: datetime) -> str:
    """How a time reads beside `now`: "just now", "3 minutes ago", "in 6 days"; "never" for none."""
    if text is None:
        return "never"
    seconds = (now - moment(text)).total_seconds()
    size = abs(seconds)
    if size < MINUTE:
        return "just now" if seconds >= 0 else "in a moment"
    length, unit = next(each for each in _UNITS if size >= each[0])
    count = int(size // length)
    if (count, unit) == (1, "day"):
        return "yesterday" if seconds > 0 else "tomorrow"
    spoken = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{spoken} ago" if seconds > 0 else f"in {spoken}"


def exact(text: str) -> str:
    """A time to the second, as it is shown on hover: "23 November 2026, 14:00:05 UTC"."""
    at = moment(text)
    return f"{at.day} {at:%B %Y, %H:%M:%S} UTC"


def day(text: str | None) -> str:
    """The day of a time, as a date field takes it; empty for none."""
    return f"{moment(text):%Y-%m-%d}" if text else ""


def past(text: str | None, now: datetime) -> bool:
    """Whether a time is over. One that is not set never is."""
    return text is not None and moment(text) <= now


def count_of(number: int, noun: str) -> str:
    """ "1 secret", "3 secrets", "2,104 secrets"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def yaml_key(name: str) -> str:
    """The name of a secret as a key of YAML: quoted where YAML would read something else."""
    plain = _PLAIN_KEY.fullmatch(name) and name.lower() not in _YAML_WORDS
    return name if plain else f'"{name}"'


@cache
def fingerprint(name: str) -> str:
    """Changes with the bytes of a static file, so that browsers may keep the file for ever."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def static_url(name: str) -> str:
    """The address of a file under `static/`."""
    return f"/static/{name}?v={fingerprint(name)}"


def environment() -> Environment:
    """What the pages' templates run in: everything is escaped, and a name that is not given is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    filters: tuple[Callable[..., object], ...] = (ago, exact, day, past, count_of, yaml_key)
    made.filters.update({each.__name__: each for each in filters})
    made.globals["static"] = static_url
    return made
