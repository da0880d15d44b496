"""Text from outside is shown without what a terminal would obey."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gusset.printable import printable, printable_json, printable_lines
from gusset.runtime.logs import JsonFormatter, ReadableFormatter


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gpu-7.example.com", "gpu-7.example.com"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("Zoë 東京 🙂", "Zoë 東京 🙂"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    """Whatever the text; of those, `printable_lines` leaves line feeds and tabs."""
    for shown in (printable(text), printable_lines(text).replace("\n", "").replace("\t", "")):
        assert not any(
            ord(each) < 32 or 127 <= ord(each) < 160 or 0xD800 <= ord(each) < 0xE000 for each in shown
        )


@given(st.dictionaries(st.text(), st.text()))
def test_json_means_the_same(data: dict[str, str]) -> None:
    assert json.loads(printable_json(json.dumps(data, ensure_ascii=False))) == data


@pytest.mark.parametrize("formatter", [ReadableFormatter(), JsonFormatter()])
def test_a_log_record_has_no_control_characters(formatter: logging.Formatter) -> None:
    """Such as a message of a server elsewhere; and values are masked before they could be escaped."""
    record = logging.LogRecord(
        "gusset", logging.WARNING, "", 0, "%s", ("gpu\x1b]0;owned\x07\x9b31m\u202e7",), None
    )
    line = formatter.format(record)
    assert "owned" in line and line.isprintable()


@pytest.mark.parametrize("kind", [ReadableFormatter, JsonFormatter])
def test_a_log_record_is_masked_before_it_is_escaped(
    kind: Callable[[Callable[[str], str]], logging.Formatter],
) -> None:
    value = "s3cret\x1bvalue"
    record = logging.LogRecord("gusset", logging.WARNING, "", 0, "it is %s", (value,), None)
    assert "it is ***" in kind(lambda text: text.replace(value, "***")).format(record)
