"""Text from outside, made safe to show: on a terminal, in a log, on a page.

A host name or a label that somebody else chose may hold escape codes, which a
terminal obeys, or characters that reorder or hide the text around them.
"""

from __future__ import annotations

import re

# Control characters but for tab and line feed; line separators; marks of direction; lone surrogates.
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_UNSAFE = f"[{_CONTROL}]"  # compiled when it is used: most texts are printable
_UNSAFE_IN_LINE = f"[\t\n{_CONTROL}]"


def printable(text: str) -> str:
    """The text on one line, with each control character shown as an escape, such as `\\x1b`."""
    return text if text.isprintable() else re.sub(_UNSAFE_IN_LINE, _escape, text)


def printable_lines(text: str) -> str:
    """As `printable`, but tabs and line feeds stay as they are."""
    return text if text.isprintable() else re.sub(_UNSAFE, _escape, text)


def printable_json(text: str) -> str:
    """JSON text that means the same, with each control character in a string as a JSON escape."""
    return text if text.isprintable() else re.sub(_UNSAFE, lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
