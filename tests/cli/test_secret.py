"""`gusset secret ...`, run by a person at a terminal or by a script."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli, leaks_in
from tests.serving.conftest import eventually

VALUE = b"hf_Zx81QqLmN4vTtYbWs93KdPfGhJcR2aXe5u"


def test_a_value_from_standard_input_is_stored(gusset: Cli) -> None:
    """`printf %s "$V" | gusset secret set NAME` stores it and prints name and version, not the value."""
    done = gusset("secret", "set", "hf_access_token", input=VALUE)

    assert b"added hf_access_token (version 1)" in done.stdout
    assert not leaks_in(done.stdout + done.stderr, VALUE)


def test_one_final_newline_is_removed_with_a_note(gusset: Cli) -> None:
    """`echo value | gusset secret set` stores the value without the newline of echo."""
    done = gusset("secret", "set", "a_token", input=b"value-of-echo\n\n")

    assert b"removed one final newline" in done.stderr
    assert _stored(gusset, "a_token") == b"value-of-echo\n"


def test_a_pem_text_keeps_its_final_newline(gusset: Cli) -> None:
    """`ssh-keygen` and others refuse a key whose last line does not end."""
    pem = b"-----BEGIN OPENSSH PRIVATE KEY-----\nYWJj\n-----END OPENSSH PRIVATE KEY-----\n"
    done = gusset("secret", "set", "key", input=pem)

    assert b"final newline" not in done.stderr
    assert _stored(gusset, "key") == pem


@pytest.mark.slow
@pytest.mark.parametrize("value", [b"", b"line\n", b"\n", b"\xff\x00binary", "ünïcode".encode()])
def test_exact_keeps_every_byte(gusset: Cli, value: bytes) -> None:
    """`--exact` stores what was given, even an empty value."""
    gusset("secret", "set", "exact", "--exact", input=value)

    assert _stored(gusset, "exact") == value


def test_from_file_keeps_every_byte(gusset: Cli, tmp_path: Path) -> None:
    """A key file is stored as it is, with its final newline."""
    file = tmp_path / "key.bin"
    file.write_bytes(bytes(range(256)) * 256)

    gusset("secret", "set", "key", "--from-file", str(file))

    assert _stored(gusset, "key") == file.read_bytes()


@pytest.mark.parametrize("empty", [b"", b"\n"])
def test_a_failed_pipe_stores_nothing(gusset: Cli, empty: bytes) -> None:
    """Empty input is refused without --exact, and no secret is added."""
    done = gusset("secret", "set", "token", input=empty, status=2)

    assert b"--exact" in done.stderr
    assert json.loads(gusset("secret", "list", "--output", "json").stdout) == {"secrets": []}


def test_a_value_as_an_argument_is_refused_and_not_repeated(gusset: Cli) -> None:
    """The error explains that the shell's history has it, and does not print it."""
    done = gusset("secret", "set", "token", VALUE.decode(), status=2)

    assert b"history" in done.stderr
    assert not leaks_in(done.stdout + done.stderr, VALUE)


@pytest.mark.parametrize(
    "args",
    [
        ["secret", "set", f"token={VALUE.decode()}"],
        ["secret", "set", "token", "--value", VALUE.decode()],
        ["secret", "set", "token", f"--value={VALUE.decode()}"],
        ["secret", "list", VALUE.decode()],
        ["secret", VALUE.decode()],
        [VALUE.decode()],
        ["serve", ".", "--port", VALUE.decode()],
        ["secret", "history", "token", "--output", VALUE.decode()],
    ],
)
def test_a_value_in_the_wrong_place_is_never_repeated(gusset: Cli, args: list[str]) -> None:
    """No error of the command line repeats an argument: exit status 2, and a hint."""
    done = gusset(*args, status=2)

    assert not leaks_in(done.stdout + done.stderr, VALUE)
    assert done.stderr


TOKEN = "hf_" + "aB3x" * 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["secret", "set", TOKEN],
        ["secret", "delete", TOKEN],
        ["secret", "restore", TOKEN],
        ["secret", "destroy", TOKEN],
        ["secret", "destroy", TOKEN, "--yes"],
        ["secret", "history", TOKEN],
        ["secret", "rollback", TOKEN, "1"],
        ["secret", "reveal", TOKEN],
        ["secret", "import", "-"],
        ["exec", "--secret", TOKEN, "--", "true"],
        ["exec", "--env", f"X={TOKEN}", "--", "true"],
        ["exec", "--env", TOKEN, "--", "true"],
        ["serve", ".", "--allow-missing", TOKEN],
    ],
    ids=lambda args: "_".join(args[:3]).replace(TOKEN, ""),
)
def test_a_credential_in_place_of_a_name_is_not_repeated_or_recorded(
    gusset: Cli, home: Path, args: list[str], leaking_files: Callable[[list[Path], bytes], list[Path]]
) -> None:
    """Exit status 2, with what to do about the shell's history; no file of gusset contains it."""
    gusset("secret", "set", "token", input=VALUE)

    done = gusset(*args, input=f"{TOKEN}=x\n".encode(), status=2)

    assert b"looks like a credential, not a name" in done.stderr
    assert b"history" in done.stderr
    assert not leaks_in(done.stdout + done.stderr, TOKEN.encode())
    assert leaking_files([home], TOKEN.encode()) == []


def test_a_value_that_is_too_long_is_refused(gusset: Cli) -> None:
    """65,536 bytes are stored; with one byte more, nothing is."""
    gusset("secret", "set", "long", input=b"x" * 65_536)
    done = gusset("secret", "set", "longer", input=b"x" * 65_537, status=2)

    assert b"65,536" in done.stderr
    assert [secret["name"] for secret in _list(gusset)] == ["long"]


def test_the_prompt_hides_what_is_typed(gusset: Cli) -> None:
    """At a terminal gusset prompts for the value, and does not show what is typed."""
    shown = _type_at_a_terminal(gusset, ["secret", "set", "typed"], VALUE)

    assert b"Value of typed" in shown
    assert not leaks_in(shown, VALUE)
    assert _stored(gusset, "typed") == VALUE


def test_reveal_needs_a_terminal(gusset: Cli) -> None:
    """A script cannot read a value back; a person can, and the audit log records it."""
    gusset("secret", "set", "token", input=VALUE)

    refused = gusset("secret", "reveal", "token", status=7)
    shown = _type_at_a_terminal(gusset, ["secret", "reveal", "token"], b"")

    assert not leaks_in(refused.stdout + refused.stderr, VALUE)
    assert VALUE in shown
    assert b"secret.reveal" in gusset("audit", "show").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("audit", "show", "--limit", "1" + "0" * 20),
        ("secret", "rollback", "x", "1" + "0" * 20),
        ("secret", "destroy", "x", "--version", "1" + "0" * 20, "--yes"),
        ("secret", "set", "x", "--expect-version", "1" + "0" * 20),
        ("secret", "annotate", "x", "--expires", "9999-12-31T23:59:59-23:59"),
        ("secret", "annotate", "x", "--expires", "0001-01-01T00:00:00+23:59"),
        ("manager", "--key-rate", "1" + "0" * 400),
    ],
    ids=" ".join,
)
def test_numbers_and_dates_beyond_all_limits_are_refused(gusset: Cli, command: tuple[str, ...]) -> None:
    """Exit status 2 with what is allowed, not a bug."""
    gusset("secret", "set", "x", input=b"some-value")
    assert b"error: " in gusset(*command, input=b"some-value", status=2).stderr


def test_versions_roll_back_and_are_destroyed(gusset: Cli) -> None:
    """A rollback is a new version with an older value; a destroyed version cannot be rolled back to."""
    for value in (b"first-value", b"second-value"):
        gusset("secret", "set", "token", input=value)
    gusset("secret", "rollback", "token", "1")
    assert _stored(gusset, "token") == b"first-value"

    gusset("secret", "destroy", "token", "--version", "2", "--yes")
    done = gusset("secret", "rollback", "token", "2", status=5)

    assert b"2" in done.stderr
    history = json.loads(gusset("secret", "history", "token", "--output", "json").stdout)["versions"]
    assert {version["version"]: version["state"] for version in history}[2] == "destroyed"


def test_destroy_needs_a_confirmation(gusset: Cli) -> None:
    """Without a terminal for the prompt, --yes must be given."""
    gusset("secret", "set", "token", input=VALUE)

    assert b"--yes" in gusset("secret", "destroy", "token", status=2).stderr
    assert _stored(gusset, "token") == VALUE


def test_a_deleted_secret_can_be_restored(gusset: Cli) -> None:
    """Unless its name has been taken by another secret."""
    gusset("secret", "set", "token", input=VALUE)
    gusset("secret", "delete", "token")
    assert _list(gusset) == []
    gusset("secret", "restore", "token")
    assert _stored(gusset, "token") == VALUE

    gusset("secret", "delete", "token")
    gusset("secret", "set", "token", input=b"another-value")
    assert b"token" in gusset("secret", "restore", "token", status=6).stderr


def test_another_spelling_of_a_name_is_a_conflict(gusset: Cli) -> None:
    """`hf-access-token` and `hf_access_token` are the same name; the secret stays as it is."""
    gusset("secret", "set", "hf_access_token", input=VALUE)

    done = gusset("secret", "set", "hf-access-token", input=b"other-value", status=6)

    assert b"hf_access_token" in done.stderr
    assert _stored(gusset, "hf_access_token") == VALUE


def test_another_spelling_overwrites_if_the_settings_allow_it(gusset: Cli) -> None:
    """With `name_collisions = "overwrite"` it becomes a new version of the existing secret."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    gusset("secret", "set", "hf-access-token", input=b"other-value", GUSSET_NAME_COLLISIONS="overwrite")

    assert [(s["name"], s["version"]) for s in _list(gusset)] == [("hf_access_token", 2)]


def test_import_stores_all_values_or_none(gusset: Cli, tmp_path: Path) -> None:
    """With one invalid line in the .env file, nothing is stored, and no value is printed."""
    good, bad = tmp_path / "good.env", tmp_path / "bad.env"
    good.write_bytes(b"A_KEY='first value'\nexport B_KEY=" + VALUE + b"\n")
    bad.write_bytes(b"C_KEY=fine-value\nnot a line " + VALUE + b"\n")

    failed = gusset("secret", "import", str(bad), status=2)
    done = gusset("secret", "import", str(good))

    assert b"bad.env:2" in failed.stderr
    assert not leaks_in(failed.stdout + failed.stderr + done.stdout + done.stderr, VALUE)
    assert sorted(secret["name"] for secret in _list(gusset)) == ["A_KEY", "B_KEY"]
    assert _stored(gusset, "A_KEY") == b"first value"


def test_a_suspicious_value_gives_a_warning_and_is_stored_unchanged(gusset: Cli) -> None:
    """As one with a trailing blank."""
    done = gusset("secret", "set", "token", input=VALUE + b" ")

    assert b"warning" in done.stderr
    assert not leaks_in(done.stdout + done.stderr, VALUE)
    assert _stored(gusset, "token") == VALUE + b" "


def test_errors_are_json_with_output_json(gusset: Cli) -> None:
    """Standard output has code, message and hint, and nothing else."""
    done = gusset("secret", "history", "nowhere", "--output", "json", status=5)

    assert json.loads(done.stdout)["code"] == "secret_not_found"


def test_an_invalid_name_is_refused(gusset: Cli) -> None:
    """As one with a slash, a blank, or a newline at its end."""
    for name in ("../x", "a b", "a\n", "", "..", "ä", "a/b", "x" * 254):
        gusset("secret", "set", name, input=VALUE, status=2)


def test_a_list_in_a_pipe_has_tab_separated_fields(gusset: Cli) -> None:
    """Without a terminal there is no table: one line per secret."""
    gusset("secret", "set", "a", input=VALUE)
    gusset("secret", "set", "b", input=VALUE)

    lines = gusset("secret", "list").stdout.decode().splitlines()

    assert [line.split("\t")[:2] for line in lines] == [["a", "1"], ["b", "1"]]


def _list(gusset: Cli) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(gusset("secret", "list", "--output", "json").stdout)[
        "secrets"
    ]
    return found


def _stored(gusset: Cli, name: str) -> bytes:
    """The exact bytes, as a command of `gusset exec` reads them. It prints them reversed, since output is masked."""
    script = (
        "import os, sys; file = os.environ['GUSSET_SECRETS_DIR'] + '/' + sys.argv[1];"
        "sys.stdout.write(open(file, 'rb').read()[::-1].hex())"
    )
    done = gusset("exec", "--secret", name, "--", sys.executable, "-c", script, name)
    return bytes.fromhex(done.stdout.decode())[::-1]


def _type_at_a_terminal(
    gusset: Cli, args: list[str], line: bytes, *, hidden: bool = True, status: int = 0
) -> bytes:
    """Run a command at a terminal, type a line at its prompt; everything that the terminal showed.

    `hidden`: the prompt turns echo off. `status` is the exit status that the command must have.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "gusset", *args], gusset.environ)
    shown = b""
    if line:
        while b":" not in shown:
            shown += os.read(terminal, 1024)
        if hidden:
            eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO, "echo is turned off")
        os.write(terminal, line + b"\n")
    try:
        while data := os.read(terminal, 1024):
            shown += data
    except OSError:  # the other side of the terminal is closed
        pass
    _, ended = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(ended) == status, shown
    return shown


AWKWARD = {
    "A": b"plain",
    "B": b'it\'s $HOME `id` "q" \\\\n \\',
    "C": b"two\nlines # no comment\n",
    "D": b"",
    "E": "\u00fc\r\n'".encode(),
}


@pytest.mark.slow
def test_exported_lines_are_read_back_exactly_by_a_shell_and_by_import(gusset: Cli, tmp_path: Path) -> None:
    for name, value in AWKWARD.items():
        gusset("secret", "set", name, "--exact", input=value)

    done = gusset("secret", "export", "--yes")

    file = tmp_path / "exported.env"
    file.write_bytes(done.stdout)
    for name, value in AWKWARD.items():
        script = f'. {file}; printf %s "${name}"'
        assert subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout == value
    gusset("secret", "import", str(file), GUSSET_HOME=str(tmp_path / "other"))
    for name, value in AWKWARD.items():
        assert (
            _stored(Cli(tmp_path / "other", gusset.environ | {"GUSSET_HOME": str(tmp_path / "other")}), name)
            == value
        )
    assert gusset("audit", "show", "--action", "secret.reveal").stdout.count(b"secret.reveal") == len(AWKWARD)


def test_export_needs_a_confirmation_and_refuses_binary_values_by_name(gusset: Cli) -> None:
    """All or none is printed."""
    gusset("secret", "set", "token", input=VALUE)
    assert b"--yes" in gusset("secret", "export", status=2).stderr
    gusset("secret", "set", "blob", "--exact", input=b"\xff\x00")

    refused = gusset("secret", "export", "--yes", status=2)

    assert b"blob" in refused.stderr and not refused.stdout
    [record] = json.loads(gusset("audit", "show", "--action", "secret.reveal", "--output", "json").stdout)[
        "records"
    ]
    assert (record["target"], record["outcome"]) == (
        "several",
        "invalid_value",
    )  # none is recorded as revealed
    assert gusset("secret", "export", "token", "--yes").stdout == b"token='" + VALUE + b"'\n"
    gusset("secret", "export", "--yes", status=7, GUSSET_MANAGER="http://127.0.0.1:9")


@pytest.mark.parametrize("agrees", [True, False])
def test_export_at_a_terminal_prompts_before_it_prints(gusset: Cli, agrees: bool) -> None:
    gusset("secret", "set", "token", input=VALUE)

    shown = _type_at_a_terminal(
        gusset,
        ["secret", "export", "token"],
        b"y" if agrees else b"n",
        hidden=False,
        status=0 if agrees else 130,
    )

    assert b"Print the values of token in plain text?" in shown
    assert (VALUE in shown) is agrees
    assert (b"secret.reveal" in gusset("audit", "show").stdout) is agrees
