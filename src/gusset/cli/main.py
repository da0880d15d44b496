"""The `gusset` command.

The version and the help of each command are printed from texts that were made before: importing click takes
three times as long as starting Python, so this module imports neither click nor anything else that is slow.
"""

from __future__ import annotations

import gc
import os
import sys

from gusset import __version__

TYPE_CHECKING = False  # as in `typing`, which is slow to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# click folds help to the width of the terminal, but makes it no wider than this.
WIDEST_HELP = 80


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status (docs/cli.md lists them)."""
    words = sys.argv[1:] if args is None else list(args)
    _open_closed_streams()
    if _print_ready_text(words):
        sys.exit(0)
    _notice_ended_processes()
    from gusset.cli.commands import run  # all of click

    status = run(words)
    if args is None:
        gc.freeze()  # the process ends, so Python need not look for garbage: that takes as long as a command
    sys.exit(status)


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed (`gusset ... <&-`).

    Else the next file or pipe would get its number: what is written to the stream, here or by a process that
    is started, would go into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free one: the stream's own
            os.set_inheritable(number, True)
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)  # for the time of the process


def _notice_ended_processes() -> None:
    """End the ignoring of SIGCHLD, which a program may pass on to those that it starts.

    Else the kernel drops the exit status of each process that is started here: all would seem to succeed.
    """
    import signal  # not for a text that is ready

    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _print_ready_text(words: list[str]) -> bool:
    """Print what this command line prints, if that is ready; whether it is printed."""
    text = ready_text(words)
    if text is None:
        return False
    try:
        print(text, end="", flush=True)  # noqa: T201
    except OSError:  # click meets the same failure, and it is handled there
        return False
    return True


def ready_text(words: list[str]) -> str | None:
    """What `gusset --version` or the `--help` of a command prints; None if only click knows."""
    if os.environ.get("_GUSSET_COMPLETE"):  # a shell wants completions instead
        return None
    if words == ["--version"]:
        return f"gusset {__version__}\n"
    if words[-1:] not in (["--help"], ["-h"]) or terminal_width() < WIDEST_HELP:
        return None
    from gusset.cli.help_texts import HELP  # only for this

    return HELP.get(tuple(words[:-1]))


def terminal_width() -> int:
    """As `shutil.get_terminal_size`, whose import takes as long as the help."""
    try:
        columns = int(os.environ.get("COLUMNS", "0"))
    except ValueError:
        columns = 0
    if columns > 0:
        return columns
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or WIDEST_HELP  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # closed, or no terminal
        return WIDEST_HELP
