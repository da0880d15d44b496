"""Passes a program's output on to a terminal, without what could control the terminal.

An index chooses some of the text, such as the reason for which a release was
withdrawn. An escape sequence in it could rename the window, or have the terminal
type something into the shell.
"""

from __future__ import annotations

import codecs
import re

from gusset.printable import printable_lines

# What progress bars are drawn with: colours, moves of the cursor, erasing from it on, hiding it.
_DRAWING = re.compile(r"(\r|\x1b\[(?:[0-9;]*[ABCDGKm]|0?J|\?25[hl]))")
_INCOMPLETE = re.compile(r"\x1b(?:\[[0-9;?]{0,20})?\Z")


class TerminalOutput:
    """The state between two pieces of output."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # the beginning of an escape sequence

    def pass_on(self, data: bytes) -> bytes:
        """The next piece: sequences that draw stay, other control characters are shown as text."""
        text = self._held + self._decoder.decode(data)
        found = _INCOMPLETE.search(text)
        end = found.start() if found else len(text)
        self._held = text[end:]
        parts = _DRAWING.split(text[:end])
        parts[::2] = map(printable_lines, parts[::2])
        return "".join(parts).encode()
