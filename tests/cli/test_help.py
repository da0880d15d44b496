"""The help that is ready before click is imported: it equals click's, and all else is left to click."""

from __future__ import annotations

import io
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from contextlib import redirect_stdout
from fcntl import ioctl
from pathlib import Path

import pytest

from gusset import __version__
from gusset.cli import commands, help_texts, main
from gusset.cli.help_texts import HELP
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]


def click_prints(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        commands.gusset.main(words, prog_name="gusset", standalone_mode=False)
    return printed.getvalue()


def test_the_texts_are_up_to_date() -> None:
    """`make help-texts` would change nothing: each command's help is there as click prints it."""
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "help-texts"], capture_output=True, text=True, check=True
    )
    assert made.stdout == Path(help_texts.__file__).read_text(), "run `make help-texts`"


@pytest.mark.parametrize("columns", ["", "no number", "0", "20", "79", "80", "81", "300"])
def test_help_equals_what_click_prints(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """For every command, and at each width of the terminal: where it is narrow, only click knows."""
    monkeypatch.setenv("COLUMNS", columns)
    for words in HELP:
        expected = click_prints(*words, "--help")
        for option in ("-h", "--help"):
            assert main.ready_text([*words, option]) == (None if columns in ("20", "79") else expected)


def test_the_version_equals_what_click_prints() -> None:
    assert main.ready_text(["--version"]) == click_prints("--version") == f"gusset {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["secret"],
        ["--help", "secret"],
        ["secret", "--output", "json", "--help"],
        ["secret", "set", "--help", "a"],
        ["secret set", "--help"],
        ["no-command", "--help"],
        ["exec", "--", "ls", "--help"],
        ["--version", "--version"],
        ["secret", "--version"],
    ],
    ids=" ".join,
)
def test_other_command_lines_are_left_to_click(words: list[str]) -> None:
    assert main.ready_text(words) is None


def test_completion_is_left_to_click(gusset: Cli) -> None:
    """A shell that completes `gusset --help` wants no help."""
    done = gusset("--help", _GUSSET_COMPLETE="bash_complete", COMP_WORDS="gusset comp", COMP_CWORD="1")
    assert done.stdout.split() == [b"plain,completion"]


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_a_terminal_gets_help_for_its_width(gusset: Cli, columns: int) -> None:
    """The same as from click, whose help is at most 80 columns wide."""
    kernel, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "gusset", "secret", "set", "--help"]
    environ = {name: value for name, value in gusset.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(command, stdout=terminal, env=environ)
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(kernel, 4096):
            shown += data
    except OSError:  # the process has ended
        pass
    os.close(kernel)
    assert process.wait() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        assert shown.decode().replace("\r\n", "\n") == click_prints("secret", "set", "--help")


@pytest.mark.parametrize("columns", [None, "", "no number", "-1", "0", "33", "80", "132"])
def test_the_width_is_that_of_shutil(monkeypatch: pytest.MonkeyPatch, columns: str | None) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert main.terminal_width() == shutil.get_terminal_size().columns


@pytest.mark.parametrize("closed", ["gusset", "click"])
def test_help_with_standard_output_closed_ends_well(gusset: Cli, closed: str) -> None:
    """Nothing is printed, and nothing fails, whether click is used or not."""
    words = "--help" if closed == "gusset" else "--help --help"
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m gusset {words} >&-"], env=gusset.environ, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("words", ["--help", "secret list", "schema"])
def test_output_to_a_full_disk_is_a_failure_of_the_machine(gusset: Cli, words: str) -> None:
    gusset("secret", "set", "a", input=b"a value")
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m gusset {words} > /dev/full"],
        env=gusset.environ,
        capture_output=True,
    )
    assert done.returncode == 11
    assert done.stderr == b"error: the output cannot be written: no space is left where it goes\n"


def test_help_imports_next_to_nothing() -> None:
    """Beside what every Python has: gusset's own modules for it, and nothing that takes longer than them."""
    script = (
        "import sys; before = set(sys.modules); from gusset.cli.main import main\n"
        "try: main(['secret', 'set', '--help'])\n"
        "finally: print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == HELP["secret", "set"]
    assert done.stderr.split() == [
        "__future__",
        "gc",
        "gusset",
        "gusset.cli",
        "gusset.cli.help_texts",
        "gusset.cli.main",
    ]
