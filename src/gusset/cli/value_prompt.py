"""The prompt for a secret value at a terminal, which shows nothing of what is typed."""

from __future__ import annotations

import click

from gusset.errors import InvalidValue

# A terminal in line mode returns at most this many bytes of one line and drops the rest.
_TERMINAL_LINE = 4095


def prompt_for_value(name: str) -> bytes:
    """Prompt for the value of the secret `name`. It is empty if only Enter was pressed.

    Raises:
        InvalidValue: the value may have been cut off by the terminal.
    """
    text: str = click.prompt(f"Value of {name}", hide_input=True, default="", show_default=False, err=True)
    data = text.encode("utf-8", "surrogateescape")
    if len(data) >= _TERMINAL_LINE - 1:
        raise InvalidValue(
            "the value is longer than a line of a terminal can be, so part of it may be lost",
            hint=f"read it from a file: `gusset secret set {name} --from-file FILE`",
        )
    return data
