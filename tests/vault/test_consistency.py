"""`audit verify` also finds changes of the secrets that are not in the log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gusset.errors import IntegrityError, VaultError, VaultTooNew
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import open_vault
from gusset.vault.audit.log_state import LogState
from gusset.vault.crypto.keyring import KINDS
from tests.vault.conftest import Sql, run_sql


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A vault with every kind of change that the API allows."""
    with open_vault(settings) as vault:
        for name in ("plain", "replaced", "rolled", "deleted", "restored", "destroyed", "partly"):
            vault.secrets.writer.set(name, SecretValue(b"first"), actor="alice")
        for name in ("replaced", "rolled", "partly"):
            vault.secrets.writer.set(name, SecretValue(b"second"), actor="alice")
        vault.secrets.writer.rollback("rolled", 1, actor="alice")
        vault.secrets.writer.delete("deleted", actor="alice")
        vault.secrets.writer.set("deleted", SecretValue(b"anew"), actor="alice")
        vault.secrets.writer.delete("restored", actor="alice")
        vault.secrets.writer.restore("restored", actor="alice")
        vault.secrets.writer.destroy("destroyed", actor="alice")
        vault.secrets.writer.destroy("partly", [2], actor="alice")
        vault.key_rotation.rotate(actor="alice")
    return settings


def problems(settings: Settings) -> tuple[str, ...]:
    with open_vault(settings) as vault:
        return vault.audit.verify().problems


def test_changes_through_the_api_are_consistent_with_the_log(settings: Settings) -> None:
    """Every kind of change leaves rows and log consistent."""
    assert problems(settings) == ()


def test_secrets_may_have_the_names_of_fields_in_audit_details(settings: Settings) -> None:
    """Names in the record of a delivery are not mistaken for the state after a change."""
    with open_vault(settings) as vault:
        vault.secrets.writer.set("deleted-too", SecretValue(b"value"), actor="alice")
        vault.secrets.delivery.deliver(["deleted", "version", "id"], actor="alice", deployment="model")
    assert problems(settings) == ()


def changed(settings: Settings, *statements: str) -> None:
    """Change the database behind the vault's back, as somebody does who has no key."""
    for statement in statements:
        run_sql(settings.database, statement)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE secrets SET current_version = 1 WHERE name = 'replaced'", "the secret replaced was altered"),
        (
            "UPDATE secrets SET deleted_at = NULL WHERE name = 'deleted' AND deleted_at IS NOT NULL",
            "the secret deleted was altered",
        ),
        ("UPDATE secrets SET deleted_at = 'x' WHERE name = 'plain'", "the secret plain was altered"),
        ("UPDATE secrets SET name = 'plane' WHERE name = 'plain'", "the secret plane was altered"),
        ("UPDATE secrets SET folded = 'plane' WHERE name = 'plain'", "the secret plain was altered"),
        ("UPDATE secrets SET note = 'x' WHERE name = 'plain'", "the secret plain was altered"),
        ("UPDATE secrets SET mac = NULL WHERE name = 'plain'", "the secret plain was altered"),
        pytest.param(
            "UPDATE secrets SET changed_seq = 'x' WHERE name = 'plain'",
            "the secret plain was altered",
            marks=pytest.mark.sqlite("its columns hold any type"),
        ),
        pytest.param(
            "UPDATE secrets SET folded = x'00' WHERE name = 'plain'",
            "the secret plain was altered",
            marks=pytest.mark.sqlite("its columns hold any type"),
        ),
        ("UPDATE teams SET name = 'other'", "the team other was altered"),
        ("DELETE FROM secrets WHERE name = 'plain'", "(secret.create plain) is missing"),
        (
            "INSERT INTO secrets SELECT 'other', team_id, 'forged', 'forged', note, expires_at, created_at,"
            " updated_at, NULL, last_version, current_version, revision, NULL, changed_seq, mac"
            " FROM secrets WHERE name = 'plain'",
            "the secret forged is in the database, but no record says that it was written",
        ),
    ],
)
def test_a_row_changed_without_a_record_is_found(settings: Settings, statement: str, expected: str) -> None:
    """Whatever is changed of a row, and however: the log says which row differs."""
    changed(settings, "DROP INDEX secrets_live_name")
    with open_vault(settings) as vault:
        changed(settings, statement)
        found = vault.audit.verify().problems

    assert expected in found[0]


def test_a_row_that_was_rolled_back_with_its_signature_is_found(settings: Settings, sql: Sql) -> None:
    """An older row is valid by itself, but the log has a newer one; a removed row that is back, too."""
    with open_vault(settings) as vault:
        [old] = sql("SELECT * FROM secrets WHERE name = 'plain'")
        [version] = sql("SELECT version FROM secret_versions WHERE secret_id = ?", old[0])
        vault.secrets.writer.set("plain", SecretValue(b"second"), actor="alice")
        places = ", ".join("?" * len(old))
        [new] = sql("SELECT * FROM secrets WHERE name = 'plain'")
        sql("DELETE FROM secrets WHERE name = 'plain'")
        sql(f"INSERT INTO secrets VALUES ({places})", *old)

        found = vault.audit.verify().problems
        delivered = vault.secrets.delivery.deliver(["plain"], actor="alice", deployment="model")

        assert "the secret plain was rolled back to its state of record" in found[0]
        assert delivered.values["plain"].version == version[0] == 1

        sql("DELETE FROM secrets WHERE name = 'plain'")
        sql(f"INSERT INTO secrets VALUES ({places})", *new)
        [later] = vault.audit.verify().problems

    assert "delivered version 1 of plain, but version 2 was current" in later


# The rows of all secrets with the name x, and of their versions.
NAMED_X = {
    "secrets": "secrets WHERE folded = 'x'",
    "secret_versions": "secret_versions WHERE secret_id IN (SELECT id FROM secrets WHERE folded = 'x')",
}


def exchange(sql: Sql, rows: Mapping[str, list[Any]]) -> Mapping[str, list[Any]]:
    """Replace the rows of all secrets with the name x. Returns those that there were."""
    found = {table: sql(f"SELECT * FROM {named}") for table, named in NAMED_X.items()}
    for table in reversed(NAMED_X):
        sql(f"DELETE FROM {NAMED_X[table]}")
    for table, wanted in rows.items():
        for row in wanted:
            sql(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    return found


def newest(sql: Sql) -> int:
    return int(sql("SELECT max(seq) FROM audit")[0][0])


def test_a_delivery_of_another_secret_with_the_same_name_and_version_is_found(
    settings: Settings, sql: Sql
) -> None:
    """One that was deleted, put in the place of its successor for a while."""
    with open_vault(settings) as vault:
        first = vault.secrets.writer.set("x", SecretValue(b"of the first"), actor="alice").id
        older = exchange(sql, {})
        exchange(sql, older)
        vault.secrets.writer.delete("x", actor="alice")
        second = vault.secrets.writer.set("x", SecretValue(b"of the second"), actor="alice").id
        right = exchange(sql, older)

        delivered = vault.secrets.delivery.deliver(["x"], actor="alice", deployment="model")
        exchange(sql, right)

        problem = (
            f"record {newest(sql)} delivered x of the secret {first}, "
            f"but the secret with that name was {second}"
        )
        verification = vault.verification()
        verification.verify_new_records(lambda: False)
        assert delivered.values["x"].value.reveal() == b"of the first"
        assert vault.audit.verify().problems == verification.result.problems == (problem,)


def test_two_secrets_with_one_name_are_found_and_not_delivered(settings: Settings, sql: Sql) -> None:
    """One was hidden until somebody set the other: both agree with their newest records."""
    with open_vault(settings) as vault:
        vault.secrets.writer.set("x", SecretValue(b"of the first"), actor="alice")
        before = newest(sql)
        hidden = exchange(sql, {})
        second = vault.secrets.writer.set("x", SecretValue(b"of the second"), actor="alice").id
        problem = (
            f"record {newest(sql)} (secret.create x) wrote the secret {second}, "
            f"but the one of record {before} had its name: that had been removed"
        )
        sql("DROP INDEX secrets_live_name")
        both = exchange(sql, hidden)
        for table, rows in both.items():
            hidden[table].extend(rows)
        exchange(sql, hidden)

        with pytest.raises(IntegrityError, match="two secrets with one name"):
            vault.secrets.delivery.deliver(["x"], actor="alice", deployment="model")

        verification = vault.verification()
        verification.verify_new_records(lambda: False)
        assert problem in vault.audit.verify().problems
        assert verification.result.problems == (problem,)


def test_what_an_older_gusset_wrote_is_not_compared_and_is_the_newest_state(settings: Settings) -> None:
    """During a rolling upgrade it writes beside this one, without what a row replaced."""
    state = LogState()
    with open_vault(settings) as vault:
        for number, record in enumerate(vault.audit.export()):
            changes = record.changes
            if changes is not None and number % 2:  # 44 characters are an HMAC
                entries = [[table, key, macs and macs[:44]] for table, key, macs in json.loads(changes)]
                changes = json.dumps(entries)
            state.follow(replace(record, changes=changes))
    assert state.rows and state.problems == []


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "UPDATE secret_versions SET sealed = x'00' WHERE secret_id ="
            " (SELECT id FROM secrets WHERE name = 'plain')",
            "the bytes of plain (version 1) do not open",
        ),
        (
            "UPDATE secret_versions SET sealed = NULL WHERE secret_id ="
            " (SELECT id FROM secrets WHERE name = 'plain')",
            "version 1 of the secret ",
        ),
        (
            "UPDATE secret_versions SET sealed = 'text' WHERE secret_id ="
            " (SELECT id FROM secrets WHERE name = 'plain')",
            "the bytes of plain (version 1) do not open",
        ),
        (
            "DELETE FROM secret_versions WHERE secret_id = (SELECT id FROM secrets WHERE name = 'plain')",
            " is missing",
        ),
        (
            "UPDATE secret_versions SET sealed = x'00' WHERE version = 2 AND secret_id ="
            " (SELECT id FROM secrets WHERE name = 'partly')",
            "(secret.destroy partly) wrote it",
        ),
        ("DELETE FROM audit", "the log is empty"),
    ],
    ids=["damaged", "emptied", "of another type", "removed", "destroyed, rolled back", "no log"],
)
def test_damaged_missing_and_restored_bytes_are_found(
    settings: Settings, statement: str, expected: str
) -> None:
    """Every version that was not destroyed must open, and no destroyed version may be back."""
    (settings.home / "audit.witness").unlink()
    changed(settings, "DELETE FROM checkpoints", statement)
    assert expected in "\n".join(problems(settings))


def test_a_renamed_row_does_not_deliver_its_value(settings: Settings) -> None:
    """A value is sealed for its name: another secret's value cannot be delivered under it."""
    changed(
        settings,
        "UPDATE secrets SET name = 'aside', folded = 'aside' WHERE name = 'plain'",
        "UPDATE secrets SET name = 'plain', folded = 'plain' WHERE name = 'rolled'",
    )
    with open_vault(settings) as vault, pytest.raises(IntegrityError, match="plain"):
        vault.secrets.delivery.deliver(["plain"], actor="alice", deployment="model")


@pytest.mark.parametrize("kind", KINDS)
def test_a_keyring_without_one_of_its_keys_is_reported_as_altered(settings: Settings, kind: str) -> None:
    """The error names the kind of the missing key."""
    run_sql(settings.database, "DELETE FROM keyring WHERE kind = ?", kind)
    with pytest.raises(IntegrityError, match=f"lacks {KINDS[kind]} 1"), open_vault(settings):
        pass


@pytest.mark.parametrize(
    "change", ["UPDATE meta SET value = 'other' WHERE key = 'vault'", "DELETE FROM meta WHERE key = 'vault'"]
)
def test_a_vault_with_another_id_does_not_open(settings: Settings, change: str) -> None:
    """All keys are bound to it."""
    changed(settings, change)
    with pytest.raises(VaultError, match=r"its root key does not open it|its id or its default team"):
        problems(settings)


@pytest.mark.parametrize("key", ["access", "schema", "write_probe"])
@pytest.mark.parametrize("change", ["UPDATE meta SET value = 'x'", "DELETE FROM meta"])
def test_the_other_rows_of_meta_give_no_right(settings: Settings, change: str, key: str) -> None:
    """Nothing is read by them but what others have changed, and which releases may use the database."""
    with open_vault(settings) as vault:
        vault.check_writable()
        changed(settings, f"{change} WHERE key = '{key}'")
        vault.secrets.writer.set("plain", SecretValue(b"second"), actor="alice")
        vault.check_writable()
    assert problems(settings) == ()


def test_a_schema_that_claims_to_be_newer_stops_writes(settings: Settings) -> None:
    """Of managers that run; what they read goes on."""
    changed(settings, "UPDATE meta SET value = '9999 9999' WHERE key = 'schema'")
    with pytest.raises(VaultTooNew), open_vault(settings) as vault:
        assert len(vault.secrets.reader.list()) == 7
        vault.secrets.writer.set("plain", SecretValue(b"second"), actor="alice")


@pytest.mark.sqlite("on PostgreSQL it is VACUUM's business")
def test_destroyed_bytes_leave_the_files_while_others_have_the_vault_open(
    settings: Settings, sql: Sql
) -> None:
    """SQLite keeps old pages in its write-ahead log until the last process closes; these are removed at once."""
    with open_vault(settings) as other, open_vault(settings) as vault:
        other.secrets.reader.list()
        vault.secrets.writer.set("gone", SecretValue(b"x" * 4000), actor="alice")
        [(sealed,)] = sql("SELECT sealed FROM secret_versions ORDER BY length(sealed) DESC LIMIT 1")
        vault.secrets.writer.destroy("gone", actor="alice")
        for file in settings.home.glob("vault.db*"):
            assert sealed[1000:1100] not in file.read_bytes(), file
