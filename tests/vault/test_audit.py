"""The audit log: what it records, and what `verify` finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gusset.errors import Conflict, SecretNotFound, UsageError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.events import AuditRecord
from tests.vault.conftest import OlderCopy, settings_in

Sql = Callable[..., list[Any]]

NO_NUMBER = "a record in the log has no number: it was added"
ALTERED = "secrets: the secret x was altered after record 2 (secret.create x) wrote it"
DEEP = "[" * 100_000  # JSON that is nested too deeply to be read


def write(settings: Settings, *values: bytes) -> None:
    """Open the vault, write the values and close it, which adds a checkpoint."""
    with open_vault(settings) as vault:
        for value in values:
            vault.secrets.writer.set("x", SecretValue(value), actor="alice")


def problems(settings: Settings, checkpoint: Path | None = None) -> str:
    with open_vault(settings) as vault:
        return "\n".join(vault.audit.verify(*([checkpoint] if checkpoint else [])).problems)


def test_every_act_and_every_refusal_is_recorded(vault: Vault) -> None:
    """Who, what and with what outcome; deliveries with the versions and what was missing."""
    vault.secrets.writer.set("x", SecretValue(b"1"), actor="alice")
    vault.secrets.writer.set("x", SecretValue(b"2"), actor="alice")
    with pytest.raises(Conflict):
        vault.secrets.writer.set("x", SecretValue(b"3"), actor="bob", expect_version=1)
    with pytest.raises(SecretNotFound):
        vault.secrets.delivery.reveal("y", actor="bob")
    vault.source(actor="serve", deployment="d").read(["x", "z"])
    vault.secrets.delivery.reveal("x", actor="alice")
    vault.secrets.writer.delete("x", actor="alice")
    records = vault.audit.show()
    vault_name, team = records[0].target, vault.secrets.reader.list(include_deleted=True)[0].team_id
    assert [(r.actor, r.action, r.target, r.outcome) for r in records] == [
        ("gusset", "vault.create", vault_name, "ok"),
        ("alice", "secret.create", "x", "ok"),
        ("alice", "secret.write", "x", "ok"),
        ("bob", "secret.write", "x", "version_conflict"),
        ("bob", "secret.reveal", "y", "secret_not_found"),
        ("serve", "secret.deliver", "d", "ok"),
        ("alice", "secret.reveal", "x", "ok"),
        ("alice", "secret.delete", "x", "ok"),
    ]
    [secret_id] = [row.id for row in vault.secrets.reader.list(include_deleted=True)]
    assert json.loads(records[5].details) == {
        "team": team,
        "versions": {"x": 2},
        "ids": {"x": secret_id},
        "missing": ["z"],
    }
    assert vault.audit.verify().problems == ()


def test_records_are_filtered_and_limited(vault: Vault) -> None:
    """The newest that match, oldest first."""
    for name in ("a", "b", "a", "a"):
        vault.secrets.writer.set(name, SecretValue(b"v"), actor="alice")
    assert [record.seq for record in vault.audit.show(target="a", limit=2)] == [4, 5]
    assert [record.seq for record in vault.audit.show(action="secret.create")] == [2, 3]
    assert vault.audit.show(actor="bob") == []
    assert [record.seq for record in vault.audit.show(action="SECRET.CR", substring=True)] == [2, 3]
    assert vault.audit.show(action="%", substring=True) == []
    assert [record.data()["seq"] for record in vault.audit.export()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ["École", "éCOLE", "ÉCOLE", "É"])
def test_records_are_found_by_letters_beyond_ascii(vault: Vault, text: str) -> None:
    """By an actor's address, stored in lower case, however it is written; by a target's name as it is."""
    vault.secrets.writer.set("a", SecretValue(b"v"), actor="marie@école.example")
    assert [record.target for record in vault.audit.show(actor=text, substring=True)] == ["a"]
    vault.teams.create("Team École", actor="ada")
    found = vault.audit.show(target=text, substring=True)
    assert [record.target for record in found] == ([] if text.startswith("é") else ["Team École"])


@pytest.mark.parametrize(
    ("tampering", "problem"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE seq = 2", "record 2 was altered"),
        ("UPDATE audit SET at = '2001-01-01T00:00:00.000Z' WHERE seq = 2", "record 2 was altered"),
        ("""UPDATE audit SET details = '{"version": 9}' WHERE seq = 2""", "record 2 was altered"),
        ("UPDATE audit SET mac = zeroblob(32) WHERE seq = 2", "record 2 was not written with this vault"),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 2", "record 2 was altered"),
        pytest.param(
            "UPDATE audit SET hash = 'text' WHERE seq = 2",
            "record 2 was altered",
            marks=pytest.mark.sqlite("its columns hold any type"),
        ),
        pytest.param(
            "UPDATE audit SET actor = x'00' WHERE seq = 2",
            "record 2 was altered",
            marks=pytest.mark.sqlite("its columns hold any type"),
        ),
        ("UPDATE audit SET details = '[' WHERE seq = 2", "record 2 was altered"),
        (f"UPDATE audit SET details = '{DEEP}' WHERE seq = 6", "record 6 was altered"),
        (f"UPDATE audit SET changes = '{DEEP}' WHERE seq = 2", "record 2 was altered"),
        ("DELETE FROM audit WHERE seq = 1", "records 1 to 1 are missing"),
        ("DELETE FROM audit WHERE seq = 2", "records 2 to 2 are missing"),
        ("DELETE FROM audit WHERE seq > 5", "it was cut short, or this is an older copy"),
        ("DELETE FROM audit", "the log is empty: every record was removed"),
        (
            "UPDATE audit SET seq = CASE seq WHEN 2 THEN -3 WHEN 3 THEN -2 ELSE seq END;"
            "UPDATE audit SET seq = abs(seq)",
            "record 2 was altered or moved",
        ),
        ("UPDATE checkpoints SET signature = zeroblob(64)", "the database: the checkpoint of record"),
        ("UPDATE checkpoints SET hash = zeroblob(32)", "is not signed by this vault"),
    ],
)
def test_tampering_is_found(settings: Settings, sql: Sql, tampering: str, problem: str) -> None:
    """Edited, removed, reordered and cut-off records and forged checkpoints are reported as such."""
    write(settings, b"1", b"2", b"3", b"4", b"5")
    assert problems(settings) == ""
    for statement in tampering.split(";"):
        sql(statement)
    assert problem in problems(settings)


@pytest.mark.sqlite("its columns hold any type")
@pytest.mark.parametrize("column", ["hash", "mac", "details", "changes", "at"])
@pytest.mark.parametrize("value", ["'x'", "7", "x'00'"])
def test_a_newest_record_with_a_column_of_another_type_is_named(
    vault: Vault, sql: Sql, column: str, value: str
) -> None:
    """By `verify`, and by a running manager."""
    vault.secrets.writer.set("x", SecretValue(b"1"), actor="alice")
    [(before,)] = sql(f"SELECT {column} FROM audit WHERE seq = 2")
    sql(f"UPDATE audit SET {column} = {value} WHERE seq = 2")
    verification = vault.verification()
    verification.verify_new_records(lambda: False)
    report = vault.audit.verify()
    sql(f"UPDATE audit SET {column} = ? WHERE seq = 2", before)  # so that the vault closes
    wrong = "was not written with this vault's keyring" if column == "mac" else "was altered or moved"
    assert report.problems[0] == verification.result.problems[0] == f"record 2 {wrong}"
    assert report.head.startswith("2:")


def test_records_before_the_first_one_are_named(vault: Vault, sql: Sql) -> None:
    """Also those with a right hash; they have no part in the chain."""
    vault.secrets.writer.set("x", SecretValue(b"1"), actor="alice")
    record = vault.audit.show()[-1]
    previous = b"h" * 32
    for seq in (-2, -1, 0):
        forged = replace(record, seq=seq)
        hashed = forged.hash_after(previous)
        sql(
            "INSERT INTO audit SELECT ?, at, actor, action, target, outcome, details, ?, mac, changes"
            " FROM audit WHERE seq = 2",
            seq,
            hashed,
        )
        previous = hashed
    verification = vault.verification()
    verification.verify_new_records(lambda: False)
    problems = vault.audit.verify().problems
    assert verification.result.problems == ("record -2 was added: the first one has the number 1",)
    assert problems == tuple(f"record {seq} was added: the first one has the number 1" for seq in (-2, -1, 0))


def test_records_without_a_number_or_with_one_twice_are_named(vault: Vault, sql: Sql) -> None:
    """The table was made anew, without its key: every record is a copy, and two are added."""
    vault.secrets.writer.set("x", SecretValue(b"1"), actor="alice")
    columns = "at, actor, action, target, outcome, details, hash, mac, changes"
    sql("ALTER TABLE audit RENAME TO former")
    sql("CREATE TABLE audit AS SELECT * FROM former")
    sql(f"INSERT INTO audit (seq, {columns}) SELECT NULL, {columns} FROM former WHERE seq = 2")
    sql(f"INSERT INTO audit (seq, {columns}) SELECT seq, {columns} FROM former WHERE seq = 1")
    verification = vault.verification()
    verification.verify_new_records(lambda: False)
    running, problems = verification.result.problems, vault.audit.verify().problems
    sql("DROP TABLE audit")
    sql("ALTER TABLE former RENAME TO audit")
    assert "record 1 is in the log more than once" in problems and problems.count(NO_NUMBER) == 1
    assert "record 1 is in the log more than once" in running


@pytest.mark.parametrize("epoch", ['"x"', "null", "[]", "1e999", "true"])
@pytest.mark.slow
def test_a_forged_acceptance_of_a_loss_is_named(vault: Vault, sql: Sql, epoch: str) -> None:
    """Whatever its details have for the epoch: it begins none."""
    for value in (b"1", b"2"):
        vault.secrets.writer.set("x", SecretValue(value), actor="alice")
    vault.sign_head()
    before = sql("SELECT action, details FROM audit WHERE seq = 2")[0]
    details = f'{{"kept": 1, "epoch": {epoch}}}'
    sql("UPDATE audit SET action = 'audit.accept_loss', details = ? WHERE seq = 2", details)
    assert vault.audit.verify().problems[0] == "record 2 was altered or moved"
    sql("UPDATE audit SET action = ?, details = ? WHERE seq = 2", *before)
    assert vault.audit.verify().problems == ()


@pytest.mark.sqlite("its columns hold any type")
@pytest.mark.parametrize("column", ["at", "hash", "signature", "signing_key", "keyring", "epoch"])
@pytest.mark.parametrize("value", ["'x'", "x'00'", "1.5"])
def test_a_checkpoint_with_a_column_of_another_type_is_named(
    vault: Vault, sql: Sql, column: str, value: str
) -> None:
    """Each column is covered by its signature."""
    vault.secrets.writer.set("x", SecretValue(b"1"), actor="alice")
    vault.sign_head()
    sql(f"UPDATE checkpoints SET {column} = {value} WHERE seq = 2")
    [problem] = vault.audit.verify().problems
    assert problem == "the database: the checkpoint of record 2 is not signed by this vault"


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("table", "what", "others"),
    [("audit", "the records", ()), ("checkpoints", "the checkpoints", (ALTERED,))],
)
def test_a_column_of_another_type_is_named(
    vault: Vault, sql: Sql, table: str, what: str, others: tuple[str, ...]
) -> None:
    """The rows are not compared with records that cannot be read, but checkpoints hide nothing."""
    vault.secrets.writer.set("x", SecretValue(b"1"), actor="alice")
    sql("UPDATE secrets SET note = 'x'")
    sql(f"ALTER TABLE {table} ALTER seq TYPE numeric")
    found = vault.audit.verify().problems
    sql(f"ALTER TABLE {table} ALTER seq TYPE bigint")  # so that the vault closes
    problem = f"{what}: cannot be read (TypeError): the type of a column was altered, or what it holds"
    schema = f"the database has objects that gusset never creates: type of {table}.seq"
    assert found == (problem, *others, schema)


@pytest.mark.parametrize(
    "details",
    [
        "text",
        "7",
        DEEP,
        '{"a":' * 200 + "1" + "}" * 200,
        '{"a": 123456789012345678901234567890}',
        r'{"a": "\ud800"}',
    ],
    ids=["no JSON", "no object", "deep", "not quite as deep", "a large number", "half a character"],
)
@pytest.mark.slow
def test_an_altered_record_is_listed_and_exported_with_the_others(
    settings: Settings, sql: Sql, details: str
) -> None:
    """It keeps nobody from reading the others; the export has it as it is, and is verified as such."""
    write(settings, b"1", b"2")
    sql("UPDATE audit SET details = ?, changes = ? WHERE seq = 2", details, details)
    with open_vault(settings) as vault:
        found = [record.data() for record in vault.audit.show()]
        exported = [orjson.dumps(record.data()) for record in vault.audit.export()]
    assert [each["seq"] for each in found] == [1, 2, 3]
    assert (found[1]["details"], found[1]["changes"]) == (details, details)
    assert AuditRecord.parse(exported[1]).details == details


def test_a_chain_rebuilt_without_the_keyring_is_found(settings: Settings, sql: Sql) -> None:
    """Hashes can be computed by anybody; the record's HMAC cannot."""
    with open_vault(settings) as vault:
        [record] = vault.audit.show()
        genesis = _genesis(sql)
        forged = replace(record, actor="mallory")
        sql("UPDATE audit SET actor = 'mallory', hash = ?", forged.hash_after(genesis))
        sql("DELETE FROM checkpoints")
        settings.witness_file.unlink()
        assert "not written with this vault's keyring" in vault.audit.verify().problems[0]


def _genesis(sql: Sql) -> bytes:
    import hashlib

    [(vault,)] = sql("SELECT value FROM meta WHERE key = 'vault'")
    return hashlib.sha256(json.dumps(["gusset audit 1", vault], separators=(",", ":")).encode()).digest()


def test_an_older_copy_of_the_database_is_found(settings: Settings, older_copy: OlderCopy) -> None:
    """An old database is restored: the witness file shows that the log was longer."""
    write(settings, b"1")
    older_copy.save()
    write(settings, b"2")
    older_copy.restore()
    assert "older copy" in problems(settings)


def test_an_older_copy_that_has_grown_again_is_found(
    settings: Settings, older_copy: OlderCopy, tmp_path: Path
) -> None:
    """Also after new records have replaced the missing ones: their hashes differ."""
    write(settings, b"1")
    older_copy.save()
    write(settings, b"2")
    older_copy.restore()
    write(replace(settings, witness_file=tmp_path / "other"), b"other", b"more")
    assert "is not the same as at" in problems(settings)


def test_a_checkpoint_kept_elsewhere_finds_what_the_witness_cannot(
    settings: Settings, older_copy: OlderCopy, tmp_path: Path
) -> None:
    """Database and witness rolled back together are found by a copy of the witness file."""
    kept = tmp_path / "kept"
    write(settings, b"1")
    older_copy.save()
    older_witness = settings.witness_file.read_bytes()
    write(settings, b"2")
    shutil.copy(settings.witness_file, kept)
    older_copy.restore()
    settings.witness_file.write_bytes(older_witness)
    assert problems(settings) == ""
    assert "older copy" in problems(settings, kept)


def test_a_checkpoint_of_another_vault_is_reported_as_such(settings: Settings, tmp_path: Path) -> None:
    """A witness file of another vault proves nothing about this one."""
    other = settings_in(tmp_path / "other")
    write(settings, b"1")
    write(other, b"1")
    assert "from another vault" in problems(settings, other.witness_file)


def test_a_file_without_checkpoints_is_no_checkpoint(settings: Settings, tmp_path: Path) -> None:
    """Verifying against nothing would seem to succeed; it is refused."""
    write(settings, b"1")
    (tmp_path / "empty").write_text("nothing\n")
    with pytest.raises(UsageError):
        problems(settings, tmp_path / "empty")


def test_a_torn_witness_line_costs_no_later_checkpoint(settings: Settings) -> None:
    """After a power failure in the middle of a line, verify skips it and reads the later lines."""
    write(settings, b"1")
    with settings.witness_file.open("ab") as file:
        file.write(b'{"vault": "cut')
    write(settings, b"2")
    newest = settings.witness_file.read_bytes().splitlines()[-1]
    assert json.loads(newest)["seq"] == 3
    assert problems(settings) == ""


def test_the_witness_file_stays_small(settings: Settings) -> None:
    """A long file is cut down to its newest lines, and the log still verifies."""
    write(settings, b"1")
    line = settings.witness_file.read_bytes()
    settings.witness_file.write_bytes(line * (300_000 // len(line)))
    write(settings, b"2")
    assert settings.witness_file.stat().st_size < 100_000
    assert settings.witness_file.stat().st_mode & 0o777 == 0o600
    assert problems(settings) == ""
