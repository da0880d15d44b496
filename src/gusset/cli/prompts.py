"""Prompts at a terminal: for a text that is not shown while it is typed, and for a confirmation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from gusset.errors import InvalidValue

# A terminal in line mode returns at most this many bytes of one line and drops the rest.
_TERMINAL_LINE = 4095


def prompt_for_value(name: str) -> bytes:
    """Prompt for the value of the secret `name`. It is empty if only Enter was pressed.

    Raises:
        InvalidValue: the value is not UTF-8, or may have been cut off by the terminal.
    """
    hint = f"read it from a file: `gusset secret set {name} --from-file FILE`"
    data = prompt_hidden(f"Value of {name}", hint=hint, default="", show_default=False)
    if len(data) >= _TERMINAL_LINE - 1:
        raise InvalidValue(
            "the value is longer than a line of a terminal can be, so part of it may be lost", hint=hint
        )
    return data


def prompt_hidden(label: str, *, hint: str, **options: Any) -> bytes:
    """Prompt for a text that is not shown. `hint` says how else to give it; for `options` see `click.prompt`.

    Raises:
        InvalidValue: what was typed is not UTF-8.
    """
    with _refusing_other_encodings(hint):
        text: str = click.prompt(label, hide_input=True, err=True, **options)
    return text.encode("utf-8", "surrogateescape")


def confirm(question: str) -> None:
    """Ask a question, and end the command unless the answer is yes.

    Raises:
        InvalidValue: what was typed is not UTF-8.
    """
    with _refusing_other_encodings(hint="type y or n"):
        click.confirm(question, abort=True, err=True)


@contextmanager
def _refusing_other_encodings(hint: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:  # its message has a byte of what was typed
        click.echo(err=True)  # the prompt's line has not ended
        raise InvalidValue("what was typed is not UTF-8", hint=hint) from None
