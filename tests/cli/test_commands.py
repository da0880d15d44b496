"""What all commands have in common: help, exit statuses, completion; and the audit, key and doctor commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gusset.cli.commands import COMMANDS
from tests.conftest import Cli

VALUE = b"a-value-worth-hiding"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(gusset: Cli, command: str) -> None:
    """`gusset COMMAND --help` works for every command, and `gusset --help` lists it."""
    assert b"Usage: gusset " + command.encode() in gusset(command, "--help").stdout
    assert command.encode() in gusset("--help").stdout


def test_each_command_is_documented(gusset: Cli) -> None:
    """docs/cli.md names every command."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert [command for command in COMMANDS if f"gusset {command}" not in text] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_valid_for_its_shell(gusset: Cli, shell: str) -> None:
    script = gusset("completion", shell).stdout
    assert b"_GUSSET_COMPLETE" in script
    if interpreter := shutil.which(shell):
        subprocess.run([interpreter, "-n"], input=script, check=True)


def test_bash_completes_commands(gusset: Cli) -> None:
    """The script calls gusset like this when TAB is pressed."""
    done = gusset(_GUSSET_COMPLETE="bash_complete", COMP_WORDS="gusset secret re", COMP_CWORD="2")
    assert {line.split(",")[1] for line in done.stdout.decode().split()} == {"restore", "reveal"}


@pytest.mark.slow
def test_audit_verify_finds_that_an_older_database_was_restored(
    gusset: Cli, home: Path, tmp_path: Path
) -> None:
    """The witness file has a checkpoint that the older database lacks: exit status 10."""
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


@pytest.mark.slow
def test_a_copy_of_the_witness_file_shows_that_database_and_witness_were_restored(
    gusset: Cli, home: Path, tmp_path: Path
) -> None:
    gusset("secret", "set", "token", input=VALUE)
    shutil.copytree(home, tmp_path / "older")
    gusset("secret", "set", "token", input=VALUE + b"2")
    shutil.copy(home / "audit.witness", tmp_path / "kept")
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "older", home)

    gusset("audit", "verify")
    gusset("audit", "verify", "--checkpoint", str(tmp_path / "kept"), status=10)


def test_a_missing_witness_file_gives_a_warning(gusset: Cli, home: Path) -> None:
    """Without the file, a truncated log could not be noticed."""
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
    """A refused write is in the log, with the code of the reason."""
    gusset("secret", "set", "a_name", input=VALUE)
    gusset("secret", "set", "a-name", input=VALUE, status=6)

    assert b"conflict" in gusset("audit", "show", "--action", "secret.write").stdout


@pytest.mark.slow
def test_values_stay_readable_after_a_rotation_of_the_keys(gusset: Cli, home: Path) -> None:
    """After a new KEK and a new root key every value is readable, and the old root key no longer works."""
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


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["lost", "another", "garbage", "readable"])
def test_a_wrong_root_key_is_an_error_that_names_its_path(gusset: Cli, home: Path, damage: str) -> None:
    """Exit status 10; gusset never creates a new key for an existing vault."""
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


def test_a_vault_from_a_newer_gusset_is_refused(gusset: Cli, home: Path) -> None:
    import sqlite3

    gusset("secret", "set", "token", input=VALUE)
    with sqlite3.connect(home / "vault.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()

    assert b"newer gusset" in gusset("secret", "list", status=10).stderr


def test_a_damaged_database_is_an_error_without_a_traceback(gusset: Cli, home: Path) -> None:
    """A file that is not a database: exit status 10."""
    gusset("secret", "set", "token", input=VALUE)
    (home / "vault.db").write_bytes(b"this is not a database" * 1000)

    done = gusset("secret", "list", status=10)

    assert b"damaged" in done.stderr and b"Traceback" not in done.stderr


def test_doctor_finds_files_that_others_can_access(gusset: Cli, home: Path) -> None:
    """Exit status 4, with the command that fixes it."""
    gusset("secret", "set", "token", input=VALUE)
    gusset("doctor")
    (home / "vault.db").chmod(0o644)

    done = gusset("doctor", status=4)

    assert f"chmod go= {home / 'vault.db'}".encode() in done.stderr


def test_a_folder_that_others_may_write_to_is_refused(gusset: Cli, home: Path) -> None:
    """Every command ends with exit status 10 and the command that fixes it; doctor reports it once."""
    gusset("secret", "set", "token", input=VALUE)
    home.chmod(0o770)

    for args in (["secret", "list"], ["secret", "set", "token"], ["audit", "show"], ["key", "rotate"]):
        done = gusset(*args, input=VALUE, status=10)
        assert f"chmod go-w {home}".encode() in done.stderr
    assert gusset("doctor", status=4).stderr.count(b"can write to") == 1

    home.chmod(0o750)
    gusset("secret", "list")


def test_settings_come_from_file_and_environment(gusset: Cli, tmp_path: Path) -> None:
    """The environment overrides the file; an unknown key in the file is an error that names it."""
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


def test_a_closed_pipe_causes_no_traceback(gusset: Cli) -> None:
    """As in `gusset ... | head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "gusset", "--help"], stdout=write, stderr=subprocess.PIPE, env=gusset.environ
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


def closing(stream: str, gusset: Cli, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run `gusset` with a closed standard stream: `<`, `>` or `2>`."""
    shell = ["sh", "-c", f'exec "$@" {stream}&-', "sh", sys.executable, "-m", "gusset", *words]
    return subprocess.run(
        shell, stdin=subprocess.DEVNULL, capture_output=True, env=gusset.environ, timeout=120
    )


@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        (["secret", "set", "token"], 2, b"standard input is empty"),
        (["secret", "reveal", "token"], 7, b"only to a person at a terminal"),
        (["secret", "export"], 2, b"confirm with --yes"),
        (["login", "http://localhost:1"], 2, b"standard input has no API key"),
        (["predict", "http://localhost:1"], 2, b"the input is not JSON"),
        (["scan", "-", "--secrets-dir", "secrets"], 9, b"it is truncated"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_closed_standard_input_is_an_empty_one(
    gusset: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, shown: bytes
) -> None:
    """As in `gusset ... <&-`, and where a daemon starts gusset."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_bytes(VALUE)
    done = closing("<", gusset, *words)
    assert (done.returncode, shown in done.stderr) == (status, True), done.stderr


def test_a_folder_is_served_with_a_closed_standard_input(gusset: Cli, tmp_path: Path) -> None:
    """The missing secret is an error, and not prompted for."""
    gusset("init", str(tmp_path / "model"))
    done = closing("<", gusset, "serve", str(tmp_path / "model"), "--port", "0")
    assert (done.returncode, b"gusset secret set api_key" in done.stderr) == (5, True), done.stderr


@pytest.mark.parametrize("stream", [">", "2>"])
def test_a_command_does_its_work_without_a_standard_output_or_error(gusset: Cli, stream: str) -> None:
    """Also one that prints a table, and `--help`; with the other stream as always."""
    gusset("secret", "set", "token", input=VALUE)
    for words in (["secret", "list"], ["secret", "list", "--output", "json"], ["secret", "--help"]):
        expected = gusset(*words)
        done = closing(stream, gusset, *words)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == (b"" if stream == ">" else expected.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "http://localhost:1", "-d"],
        ["secret", "set", "token", "--note"],
        ["secret", "annotate", "token", "--note"],
        ["audit", "show", "--action"],
        ["deployment", "show"],
        ["scan", "--secrets-dir", "."],
    ],
    ids=lambda words: "-".join(words[:2]).removesuffix("-http://localhost:1"),
)
def test_an_argument_that_is_not_utf_8_is_refused_and_not_repeated(
    gusset: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """It may be a value in the wrong place."""
    gusset("secret", "set", "token", input=VALUE)
    gusset("init", str(tmp_path / os.fsdecode(b"caf\xe9")))
    gusset("init", str(tmp_path / "model"))
    token = tmp_path / "manager-token"
    token.write_bytes(b"gst_a-token")
    token.chmod(0o600)
    login = {"GUSSET_MANAGER": "http://localhost:1", "GUSSET_TOKEN_FILE": str(token)}
    monkeypatch.chdir(tmp_path)

    done = gusset(
        *words,
        os.fsdecode(b"caf\xe9"),
        input=VALUE + b"2",
        status=2,
        **(login if words[0] == "deployment" else {}),
    )

    assert b"not UTF-8" in done.stderr
    assert [text for text in (b"caf", b"xe9", b"dce9", b"Traceback") if text in done.stderr] == []
    assert gusset("secret", "list").stdout.startswith(b"token\t1\t")


@pytest.mark.parametrize("host", ["a..b", "é..b", os.fsdecode(b"caf\xe9")], ids=ascii)
def test_a_host_that_cannot_be_one_is_an_error(gusset: Cli, tmp_path: Path, host: str) -> None:
    """With status 11, as for an address that this machine does not have."""
    gusset("init", str(tmp_path / "model"))
    gusset("secret", "set", "api_key", input=VALUE)
    done = gusset("serve", str(tmp_path / "model"), "--port", "0", "--host", host, status=11)
    assert b"cannot listen on" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "both"),
    [
        (["serve", ".", "--manager", "https://h.test", "--secrets-dir", "."], b"--manager and --secrets-dir"),
        (["check", ".", "--manager", "https://h.test", "--secrets-dir", "."], b"--manager and --secrets-dir"),
        (["build", ".", "--manager", "https://h.test", "--secrets-dir", "."], b"--manager and --secrets-dir"),
        (["predict", ".", "--caller", "app", "--caller-file", "config.yaml"], b"--caller and --caller-file"),
        (["exec", "--all", "--secret", "token", "--", "true"], b"--all and --secret"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_options_that_exclude_each_other_are_refused(
    gusset: Cli, tmp_path: Path, arguments: list[str], both: bytes
) -> None:
    """Before anything else is read."""
    (tmp_path / "config.yaml").write_text("{}")
    words = [str(tmp_path / word) if word in (".", "config.yaml") else word for word in arguments]
    assert both + b" cannot be used together" in gusset(*words, status=2).stderr


def test_the_error_for_a_number_out_of_range_names_the_range(gusset: Cli) -> None:
    """It names the bounds, and does not repeat what was typed."""
    assert (
        b"--port must be a whole number from 0 to 65535"
        in gusset("serve", ".", "--port", "99999", status=2).stderr
    )
    assert (
        b"--limit must be a whole number from 1" in gusset("audit", "show", "--limit", "0", status=2).stderr
    )


def test_gusset_without_arguments_prints_help(gusset: Cli) -> None:
    done = gusset(status=2)
    assert b"Commands:" in done.stdout + done.stderr


def test_a_vault_folder_that_cannot_be_made_is_named(gusset: Cli, tmp_path: Path) -> None:
    """With status 11, and what to do."""
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    done = gusset("secret", "set", "a", input=b"12345678", status=11, GUSSET_HOME=str(home))
    assert str(home).encode() in done.stderr and b"GUSSET_HOME" in done.stderr


def test_a_folder_can_be_checked_where_no_vault_can_be_made(gusset: Cli, tmp_path: Path) -> None:
    """As in CI with a read-only home: a warning, and the folder's other problems are found."""
    (tmp_path / "file").write_text("")
    gusset("init", str(tmp_path / "model"))
    done = gusset("check", str(tmp_path / "model"), GUSSET_HOME=str(tmp_path / "file" / "home"))
    assert b"could not check whether the secrets exist" in done.stderr
