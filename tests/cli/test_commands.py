"""What all commands promise: help, exit statuses, completion; and the audit, key and doctor commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gusset.cli.main import COMMANDS
from tests.conftest import Cli

VALUE = b"a-value-worth-hiding"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(gusset: Cli, command: str) -> None:
    """`--help` of every command works and is listed by `gusset --help`."""
    assert b"Usage: gusset " + command.encode() in gusset(command, "--help").stdout
    assert command.encode() in gusset("--help").stdout


def test_each_command_is_documented(gusset: Cli) -> None:
    """docs/cli.md names every command."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert [command for command in COMMANDS if f"gusset {command}" not in text] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(gusset: Cli, shell: str) -> None:
    """The script is what the shell itself accepts."""
    script = gusset("completion", shell).stdout
    assert b"_GUSSET_COMPLETE" in script
    if interpreter := shutil.which(shell):
        subprocess.run([interpreter, "-n"], input=script, check=True)


def test_bash_completes_commands(gusset: Cli) -> None:
    """What the script asks gusset for when TAB is pressed."""
    done = gusset(_GUSSET_COMPLETE="bash_complete", COMP_WORDS="gusset secret re", COMP_CWORD="2")
    assert {line.split(",")[1] for line in done.stdout.decode().split()} == {"restore", "reveal"}


def test_audit_verify_finds_an_older_copy_put_back(gusset: Cli, home: Path, tmp_path: Path) -> None:
    """The witness file remembers what the database has forgotten: exit status 10."""
    gusset("secret", "set", "token", input=VALUE)
    older = tmp_path / "older.db"
    shutil.copy(home / "vault.db", older)
    gusset("secret", "set", "token", input=VALUE + b"2")
    gusset("audit", "verify")
    for file in home.glob("vault.db-*"):
        file.unlink()
    shutil.copy(older, home / "vault.db")

    done = gusset("audit", "verify", status=10)

    assert b"older copy" in done.stderr


def test_a_checkpoint_kept_elsewhere_is_enough(gusset: Cli, home: Path, tmp_path: Path) -> None:
    """With database and witness both put back, a copy of the witness still tells."""
    gusset("secret", "set", "token", input=VALUE)
    shutil.copytree(home, tmp_path / "older")
    gusset("secret", "set", "token", input=VALUE + b"2")
    shutil.copy(home / "audit.witness", tmp_path / "kept")
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "older", home)

    gusset("audit", "verify")
    gusset("audit", "verify", "--checkpoint", str(tmp_path / "kept"), status=10)


def test_a_witness_that_is_gone_is_said(gusset: Cli, home: Path) -> None:
    """Without the file the log may hold and still be cut short: a warning says so."""
    gusset("secret", "set", "token", input=VALUE)
    assert gusset("audit", "verify").stderr == b""
    (home / "audit.witness").unlink()
    assert b"no witness file" in gusset("audit", "verify").stderr


def test_audit_export_is_json_lines(gusset: Cli) -> None:
    """One record a line, oldest first, chained."""
    gusset("secret", "set", "a", input=VALUE)
    gusset("secret", "delete", "a")

    records = [json.loads(line) for line in gusset("audit", "export").stdout.splitlines()]

    assert [(r["seq"], r["action"], r["outcome"]) for r in records] == [
        (1, "vault.create", "ok"),
        (2, "secret.create", "ok"),
        (3, "secret.delete", "ok"),
    ]


def test_refusals_are_recorded(gusset: Cli) -> None:
    """What was tried and refused is in the log, with the reason's code."""
    gusset("secret", "set", "a_name", input=VALUE)
    gusset("secret", "set", "a-name", input=VALUE, status=6)

    assert b"conflict" in gusset("audit", "show", "--action", "secret.write").stdout


def test_keys_rotate_and_values_stay(gusset: Cli, home: Path) -> None:
    """After a new KEK and a new root key every value is there, and the old root key opens nothing."""
    gusset("secret", "set", "token", input=VALUE)
    old = (home / "root.key").read_bytes()

    gusset("key", "rotate")
    gusset("key", "rotate", "--root")
    gusset(
        "exec",
        "--secret",
        "token",
        "--",
        "sh",
        "-c",
        f'test "$(cat $GUSSET_SECRETS_DIR/token)" = {VALUE.decode()}',
    )

    (home / "root.key").write_bytes(old)
    assert b"root key" in gusset("audit", "verify", status=10).stderr


@pytest.mark.parametrize("damage", ["lost", "another", "garbage", "readable"])
def test_a_root_key_that_is_not_right(gusset: Cli, home: Path, damage: str) -> None:
    """Exit status 10, with the path; never a new key for an old vault."""
    gusset("secret", "set", "token", input=VALUE)
    key = home / "root.key"
    if damage == "lost":
        key.unlink()
    elif damage == "another":
        key.write_bytes(b"gusset-root-key-1:" + b"A" * 43 + b"=\n")
    elif damage == "garbage":
        key.write_bytes(b"hello")
    else:
        key.chmod(0o644)

    done = gusset("secret", "set", "token", input=VALUE, status=10)

    assert str(key).encode() in done.stderr
    assert key.exists() is (damage != "lost")


def test_a_vault_from_a_newer_gusset_is_left_alone(gusset: Cli, home: Path) -> None:
    """Refused before anything is touched."""
    import sqlite3

    gusset("secret", "set", "token", input=VALUE)
    with sqlite3.connect(home / "vault.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()

    assert b"newer gusset" in gusset("secret", "list", status=10).stderr


def test_a_damaged_database_is_said(gusset: Cli, home: Path) -> None:
    """A file that is no database: exit status 10, and the file stays for a look at it."""
    gusset("secret", "set", "token", input=VALUE)
    (home / "vault.db").write_bytes(b"this is not a database" * 1000)

    done = gusset("secret", "list", status=10)

    assert b"damaged" in done.stderr and b"Traceback" not in done.stderr


def test_doctor_finds_files_open_to_others(gusset: Cli, home: Path) -> None:
    """Exit status 4 with the command that mends it."""
    gusset("secret", "set", "token", input=VALUE)
    gusset("doctor")
    (home / "vault.db").chmod(0o644)

    done = gusset("doctor", status=4)

    assert f"chmod go= {home / 'vault.db'}".encode() in done.stderr


def test_a_folder_that_others_may_write_to_is_refused(gusset: Cli, home: Path) -> None:
    """Every way in ends with exit status 10 and the command that mends it; doctor says it once."""
    gusset("secret", "set", "token", input=VALUE)
    home.chmod(0o770)

    for args in (["secret", "list"], ["secret", "set", "token"], ["audit", "show"], ["key", "rotate"]):
        done = gusset(*args, input=VALUE, status=10)
        assert f"chmod go-w {home}".encode() in done.stderr
    assert gusset("doctor", status=4).stderr.count(b"can write to") == 1

    home.chmod(0o750)
    gusset("secret", "list")


def test_settings_come_from_file_and_environment(gusset: Cli, tmp_path: Path) -> None:
    """The environment beats the file; an unknown key in the file is an error that names it."""
    settings = tmp_path / "settings.toml"
    settings.write_text(f'home = "{tmp_path / "elsewhere"}"\n')
    environ = {name: text for name, text in gusset.environ.items() if name != "GUSSET_HOME"}
    subprocess.run(
        [sys.executable, "-m", "gusset", "secret", "set", "a"],
        input=VALUE,
        env=environ,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "elsewhere" / "vault.db").exists()

    settings.write_text("hom = 'x'\n")
    assert b"'hom'" in gusset("secret", "list", status=2).stderr


def test_a_closed_pipe_is_not_an_error_to_speak_of(gusset: Cli) -> None:
    """`gusset ... | head -1` leaves no traceback behind."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "gusset", "--help"], stdout=write, stderr=subprocess.PIPE, env=gusset.environ
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


def test_a_number_out_of_range_is_told_its_range(gusset: Cli) -> None:
    """The bounds are said, not what was typed."""
    assert (
        b"--port must be a whole number from 0 to 65535"
        in gusset("serve", ".", "--port", "99999", status=2).stderr
    )
    assert (
        b"--limit must be a whole number from 1" in gusset("audit", "show", "--limit", "0", status=2).stderr
    )


def test_without_an_argument_there_is_help(gusset: Cli) -> None:
    """Bare `gusset` says what it can do."""
    done = gusset(status=2)
    assert b"Commands:" in done.stdout + done.stderr
