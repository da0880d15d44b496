"""Prompts at a terminal whose encoding is not UTF-8."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_exec_terminal import Terminal
from tests.conftest import Cli

TYPED = "pass-café-w0rd".encode("latin-1")
PASSPHRASE = b"a-passphrase-of-a-test"


@pytest.fixture
def at_terminal(gusset: Cli) -> Iterator[Callable[..., Terminal]]:
    """Runs a command at a new terminal."""
    terminals = []

    # As in most locales: in C.UTF-8, Python reads any bytes from standard input.
    environ = gusset.environ | {"PYTHONIOENCODING": "utf-8:strict"}

    def start(*words: str) -> Terminal:
        terminals.append(Terminal([sys.executable, "-m", "gusset", *words], environ))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.mark.parametrize(
    ("words", "prompt", "hint"),
    [
        (["secret", "set", "token"], b"Value of token:", b"--from-file FILE"),
        (["login", "http://localhost:1"], b"API key:", b"copy the key again"),
        (["manager", "init", "--email", "a@example.com"], b"Password:", b"on standard input"),
        (["key", "passphrase"], b"New passphrase:", b"--file FILE"),
    ],
    ids=["secret-set", "login", "manager-init", "key-passphrase"],
)
def test_a_hidden_text_in_another_encoding_is_refused_and_not_shown(
    gusset: Cli, at_terminal: Callable[..., Terminal], words: list[str], prompt: bytes, hint: bytes
) -> None:
    """Nor a byte of it, with the way to give it otherwise."""
    gusset("secret", "set", "other", input=b"a-value-worth-hiding")
    terminal = at_terminal(*words)
    terminal.until(prompt)
    terminal.type(TYPED + b"\n")

    shown = terminal.rest()

    assert terminal.status() == 2
    lines = shown.splitlines()
    assert b"what was typed is not UTF-8" in lines[1]  # on a line of its own
    assert hint in lines[2]
    assert [text for text in (b"Traceback", b"pass-", b"w0rd", b"xe9", b"\xe9") if text in shown] == []


def test_a_passphrase_in_another_encoding_is_refused_and_not_shown(
    gusset: Cli, at_terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    gusset("secret", "set", "token", input=b"a-value-worth-hiding")
    file = tmp_path / "passphrase"
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
    file.write_bytes(PASSPHRASE)
    gusset("key", "passphrase", "--file", str(file))
    terminal = at_terminal("audit", "verify")
    terminal.until(b"Passphrase of ")
    terminal.type(TYPED + b"\n")

    shown = terminal.rest()

    assert terminal.status() == 2
    assert b"what was typed is not UTF-8" in shown and b"GUSSET_ROOT_KEY_PASSPHRASE_FILE" in shown
    assert [text for text in (b"Traceback", b"pass-", b"w0rd", b"xe9", b"\xe9") if text in shown] == []


def test_an_answer_in_another_encoding_confirms_nothing(
    gusset: Cli, at_terminal: Callable[..., Terminal]
) -> None:
    gusset("secret", "set", "token", input=b"a-value-worth-hiding")
    terminal = at_terminal("secret", "destroy", "token")
    terminal.until(b"[y/N]:")
    terminal.type("é\n".encode("latin-1"))

    shown = terminal.rest()

    assert terminal.status() == 2
    assert b"what was typed is not UTF-8" in shown and b"Traceback" not in shown
    assert b"token\t1\t" in gusset("secret", "list").stdout
