"""`gusset key` and the verification of checkpoints by public keys, as a person runs them."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from gusset.vault.crypto.root_key import parse_root_key
from tests.conftest import Cli, leaks_in
from tests.postgres_server import PostgresServer
from tests.serving.conftest import eventually

pytestmark = pytest.mark.slow

VALUE = b"the value of the secret"


@pytest.fixture
def filled(gusset: Cli) -> Cli:
    gusset("secret", "set", "x", input=VALUE)
    return gusset


def rows(output: bytes) -> list[list[str]]:
    return [line.split("\t") for line in output.decode().splitlines()]


def test_each_key_is_replaced_alone_or_with_all_others(filled: Cli) -> None:
    """`status` lists their numbers; values stay, and the log is whole."""
    filled("key", "rotate")
    filled("key", "rotate", "--audit", "--state")
    rotated = json.loads(filled("key", "rotate", "--signing", "--output", "json").stdout)
    assert rotated == {"signing": 2, "rewrapped": 0}
    newest = {
        kind: number
        for kind, number, _, is_newest in rows(filled("key", "status").stdout)
        if is_newest == "True"
    }
    assert newest == {"kek": "2", "audit": "2", "state": "2", "signing": "2", "idempotency": "1"}
    old = (filled.home / "root.key").read_bytes()
    filled("key", "rotate", "--all")
    assert (filled.home / "root.key").read_bytes() != old
    status = json.loads(filled("key", "status", "--output", "json").stdout)
    assert {key["kind"]: key["number"] for key in status["keys"] if key["newest"]} == {
        "kek": 3,
        "audit": 3,
        "state": 3,
        "signing": 3,
        "idempotency": 2,
    }
    assert status["unfinished"] is None
    assert b"the audit log is intact" in filled("audit", "verify").stdout


def test_finish_without_a_replacement_is_refused(filled: Cli) -> None:
    """And `--finish` goes with nothing but `--root`."""
    assert b"no replacement of the root key" in filled("key", "rotate", "--root", "--finish", status=6).stderr
    filled("key", "rotate", "--kek", "--finish", status=2)
    filled("key", "rotate", "--finish", status=2)
    filled("key", "rotate", "--root", "--finish", "--cancel", status=2)
    assert b"no replacement of the root key" in filled("key", "rotate", "--root", "--cancel", status=6).stderr


def test_a_replacement_in_two_steps_is_reported_until_it_is_finished(filled: Cli, tmp_path: Path) -> None:
    """By `doctor`, `audit verify` and `key status`; nothing prints the key."""
    kept = tmp_path / "kept.key"
    shutil.move(filled.home / "root.key", kept)
    filled.environ["GUSSET_ROOT_KEY_COMMAND"] = f"cat {kept}"
    added = filled("key", "rotate", "--root")
    pending = filled.home / "root.key.new"
    assert str(pending).encode() in added.stdout
    reports = [
        filled("doctor", status=4),
        filled("audit", "verify"),
        filled("key", "status"),
        filled("key", "rotate", status=6),
    ]
    assert all(b"--finish" in each.stderr for each in reports)
    shutil.copy(pending, kept)
    done = filled("key", "rotate", "--root", "--finish")
    for each in [*reports, added, done]:
        assert not leaks_in(each.stdout + each.stderr, parse_root_key(pending.read_bytes(), "").key)
    filled("doctor")


@pytest.mark.slow
def test_doctor_reports_what_is_wrong_with_a_vault_on_a_server(
    gusset: Cli, postgres_server: PostgresServer
) -> None:
    """A root key that is being replaced, and a log that is not whole; a database without a vault is no problem."""
    name = postgres_server.new_database()
    gusset.environ["GUSSET_DATABASE"] = postgres_server.url(name)
    try:
        gusset("doctor")
        gusset("secret", "set", "x", input=VALUE)
        gusset("doctor")
        gusset("key", "rotate", "--root")
        assert b"--finish" in gusset("doctor", status=4).stderr
        shutil.move(gusset.home / "root.key.new", gusset.home / "root.key")
        gusset("key", "rotate", "--root", "--finish")
        gusset("doctor")
        postgres_server.run("DELETE FROM audit WHERE seq = 2", database=name)
        assert b"gusset audit verify" in gusset("doctor", status=4).stderr
    finally:
        postgres_server.drop(name)


def test_checkpoints_and_an_exported_log_are_verified_by_public_keys_alone(
    filled: Cli, tmp_path: Path
) -> None:
    """On a machine without the vault; also after a rotation of the signing key."""
    filled("key", "rotate", "--signing")
    filled("secret", "set", "y", input=VALUE)
    keys, log, witness = tmp_path / "keys.txt", tmp_path / "log.jsonl", tmp_path / "witness"
    keys.write_bytes(filled("audit", "public-key").stdout)
    log.write_bytes(filled("audit", "export").stdout)
    shutil.copy(filled.home / "audit.witness", witness)
    auditor = Cli(tmp_path / "nothing", filled.environ | {"GUSSET_HOME": str(tmp_path / "nothing")})
    verify = ("audit", "verify", "--public-key", str(keys), "--checkpoint", str(witness))

    assert b"signatures of" in auditor(*verify).stdout
    assert b"the log is what they say: 4 records" in auditor(*verify, "--log", str(log)).stdout
    assert not auditor.home.exists()
    assert {line.split(":")[2] for line in keys.read_text().splitlines()} == {"1", "2"}

    records = log.read_bytes().splitlines(keepends=True)
    for forged, problem in [
        ([*records[:1], records[1].replace(b'"x"', b'"z"'), *records[2:]], "record 2 was altered"),
        ([*records[:1], *records[2:]], "records 2 to 2 are missing"),
        (records[:-1], "it was cut short"),
    ]:
        log.write_bytes(b"".join(forged))
        assert problem in auditor(*verify, "--log", str(log), status=10).stderr.decode()
    log.write_bytes(b"nonsense\n")
    assert b"is not an exported audit log" in auditor(*verify, "--log", str(log), status=2).stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [("seq", 1), ("hash", "00" * 32), ("key", 1), ("keyring", 9), ("at", "2030"), ("vault", "other")],
)
def test_a_forged_checkpoint_is_found_by_public_keys(
    filled: Cli, tmp_path: Path, field: str, value: object
) -> None:
    """Each field of it is signed, and so is the number of its key."""
    filled("key", "rotate", "--signing")
    filled("secret", "set", "y", input=VALUE)
    keys, forged = tmp_path / "keys.txt", tmp_path / "forged"
    keys.write_bytes(filled("audit", "public-key").stdout)
    point = json.loads((filled.home / "audit.witness").read_bytes().splitlines()[-1])
    forged.write_text(json.dumps(point | {field: value}) + "\n")
    verify = ("audit", "verify", "--public-key", str(keys), "--checkpoint", str(forged))
    assert b"the checkpoint of record" in filled(*verify, status=10).stderr


def test_several_files_of_checkpoints_are_compared(filled: Cli, tmp_path: Path) -> None:
    """Each machine has a witness; one that knows more than the database shows that this is an older one."""
    copies = [tmp_path / "one", tmp_path / "two"]
    shutil.copy(filled.home / "audit.witness", copies[0])
    old = filled.home.with_name("old")
    shutil.copytree(filled.home, old)
    filled("secret", "set", "y", input=VALUE)
    shutil.copy(filled.home / "audit.witness", copies[1])
    options = [word for copy in copies for word in ("--checkpoint", str(copy))]
    filled("audit", "verify", *options)
    restored = Cli(old, filled.environ | {"GUSSET_HOME": str(old)})
    assert str(copies[1]) in restored("audit", "verify", *options, status=10).stderr.decode()
    restored("audit", "verify", *options[:2])


def test_options_of_verification_that_do_not_go_together_are_refused(filled: Cli, tmp_path: Path) -> None:
    """With words, not with a wrong result."""
    file = tmp_path / "file"
    file.write_text("nonsense\n")
    filled("audit", "verify", "--log", str(file), status=2)
    filled("audit", "verify", "--public-key", str(file), status=2)
    witness = str(filled.home / "audit.witness")
    filled("audit", "verify", "--public-key", str(file), "--checkpoint", witness, status=2)


def test_a_passphrase_is_set_changed_and_removed(filled: Cli, tmp_path: Path) -> None:
    """From files; without one and without a terminal a command fails with what to do."""
    first, second, short = tmp_path / "first", tmp_path / "second", tmp_path / "short"
    for file, text in ((first, "correct horse battery"), (second, "another horse battery"), (short, "short")):
        file.write_text(text + "\n")
        file.chmod(0o600)
    filled("key", "passphrase", "--file", str(short), status=2)
    filled("key", "passphrase", status=2)
    filled("key", "passphrase", "--file", str(first))
    refused = filled("secret", "set", "y", input=VALUE, status=10)
    assert b"GUSSET_ROOT_KEY_PASSPHRASE_FILE" in refused.stderr
    filled.environ["GUSSET_ROOT_KEY_PASSPHRASE_FILE"] = str(first)
    filled("secret", "set", "y", input=VALUE)
    filled("key", "passphrase", "--file", str(second))
    assert b"does not open" in filled("key", "status", status=10).stderr
    filled.environ["GUSSET_ROOT_KEY_PASSPHRASE_FILE"] = str(second)
    filled("key", "rotate", "--root")
    filled("key", "passphrase", "--remove")
    del filled.environ["GUSSET_ROOT_KEY_PASSPHRASE_FILE"]
    filled("audit", "verify")


def test_a_passphrase_is_asked_for_at_a_terminal(filled: Cli, tmp_path: Path) -> None:
    """It is not echoed, and never prompted for where there is no terminal."""
    file = tmp_path / "passphrase"
    file.write_text("correct horse battery\n")
    file.chmod(0o600)
    filled("key", "passphrase", "--file", str(file))
    command = [sys.executable, "-m", "gusset", "key", "status"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=filled.environ,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"Passphrase of" not in shown:
        shown += os.read(ours, 4096)
    eventually(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO, "the terminal does not echo")
    os.write(ours, b"correct horse battery\n")
    output, _ = process.communicate(timeout=60)
    with suppress(OSError):  # the other end is closed
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.returncode == 0 and b"kek\t1" in output
    assert b"correct horse" not in shown
