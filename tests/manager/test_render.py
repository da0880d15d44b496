"""The filters and the environment of the templates."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import yaml
from jinja2 import UndefinedError

from gusset.manager.pages.rendering import ago, count_of, day, environment, exact, past, yaml_key

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "never"),
        ("2026-11-23T14:00:00.000Z", "just now"),
        ("2026-11-23T13:59:00.001Z", "just now"),
        ("2026-11-23T14:00:00.400Z", "in a moment"),
        ("2026-11-23T13:59:00.000Z", "1 minute ago"),
        ("2026-11-23T13:00:00.001Z", "59 minutes ago"),
        ("2026-11-23T12:00:00.000Z", "2 hours ago"),
        ("2026-11-22T14:00:00.000Z", "yesterday"),
        ("2026-11-20T14:00:00.000Z", "3 days ago"),
        ("2026-10-01T14:00:00.000Z", "1 month ago"),
        ("2024-10-01T14:00:00.000Z", "2 years ago"),
        ("2026-11-24T14:00:00.000Z", "tomorrow"),
        ("2026-11-29T14:00:00.000Z", "in 6 days"),
    ],
)
def test_a_time_is_shown_relative_to_now(text: str | None, expected: str) -> None:
    """In the largest unit that fits, for the past and the future."""
    assert ago(text, NOW) == expected


def test_exact_times_have_seconds_and_days_have_none() -> None:
    """For tooltips and date inputs."""
    assert exact("2026-01-03T04:05:06.789Z") == "3 January 2026, 04:05:06 UTC"
    assert (day("2026-01-03T04:05:06.789Z"), day(None)) == ("2026-01-03", "")


def test_no_expiry_is_never_past() -> None:
    """An expiry date is past from its exact moment."""
    assert past("2026-11-23T14:00:00.000Z", NOW)
    assert not past("2026-11-23T14:00:00.001Z", NOW)
    assert not past(None, NOW)


def test_a_count_has_a_noun_in_singular_or_plural() -> None:
    """With separators between thousands."""
    assert [count_of(n, "secret") for n in (0, 1, 2104)] == ["0 secrets", "1 secret", "2,104 secrets"]


@pytest.mark.parametrize(
    "name", ["hf_access_token", "a.b-c", "null", "Yes", "1e3", "007", "-x", ".inf", "2026-11-23"]
)
def test_a_name_is_quoted_where_yaml_needs_it(name: str) -> None:
    """The lines to copy declare exactly the name that they show, such as `null` or `1e3`."""
    assert yaml.safe_load(f"secrets:\n  {yaml_key(name)}: null") == {"secrets": {name: None}}


def test_templates_escape_markup_and_refuse_undefined_names() -> None:
    """Markup stays text; a variable missing from the context is an error, not an empty string."""
    made = environment()
    assert made.from_string("{{ x }}").render(x="<b>&'\"") == "&lt;b&gt;&amp;&#39;&#34;"
    with pytest.raises(UndefinedError):
        made.from_string("{{ missing }}").render()
