"""Text from outside is shown without what a terminal would obey."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gusset.printable import printable, printable_json, printable_lines


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
