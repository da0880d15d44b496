"""What somebody who can write SQLite's file can do to its schema, so that it shows other rows than it has."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gusset.errors import IntegrityError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from tests.newer_gusset import BASE, NEWER
from tests.vault.conftest import Sql, settings_in, write_older_vault

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

COLUMNS = (
    "team_id, name, folded, note, expires_at, created_at, updated_at, deleted_at, last_version,"
    " current_version, revision, last_read_at, changed_seq, mac, id"
)
# SQLite reads all rows from a smaller index that has all columns it needs, and a single one from the table.
MAKE_INDEX = f"""
ALTER TABLE secrets ADD pad VARCHAR(4000);
CREATE INDEX c ON secrets ({COLUMNS});
ANALYZE;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1 VALUES ('secrets', 'sqlite_autoindex_secrets_1', '1000 1 unordered');
"""


def executed(database: str, script: str) -> None:
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)) as attacker:
        attacker.executescript(script)


@pytest.fixture
def behind_a_stale_index(vault: Vault, database: str, sql: Sql) -> Vault:
    """An open vault in which a secret was rolled back, but an index still has the newer row."""
    vault.secrets.writer.set("x", SecretValue(b"old"), actor="ada")
    [old] = sql("SELECT current_version, last_version, revision, updated_at, changed_seq, mac FROM secrets")
    vault.secrets.writer.set("x", SecretValue(b"new"), actor="ada")
    executed(database, MAKE_INDEX)
    [(root, text)] = sql("SELECT rootpage, sql FROM sqlite_master WHERE name = 'c'")
    executed(database, "PRAGMA writable_schema = ON; DELETE FROM sqlite_master WHERE name = 'c'")
    sql(
        "UPDATE secrets SET current_version = ?, last_version = ?, revision = ?, updated_at = ?,"
        " changed_seq = ?, mac = ?",
        *old,
    )
    insert = f"INSERT INTO sqlite_master VALUES ('index', 'c', 'secrets', {root}, '{text}')"
    executed(database, f"PRAGMA writable_schema = ON; {insert}; CREATE TABLE seen (id); DROP TABLE seen")
    assert vault.secrets.delivery.reveal("x", actor="ada").reveal() == b"old"
    return vault


def verified(vault: Vault) -> tuple[str, ...]:
    return vault.audit.verify().problems


def verified_in_pieces(vault: Vault) -> tuple[str, ...]:
    """As a manager does it."""
    verification = vault.verification()
    verification.verify_new_records(lambda: False)
    verification.verify_rows(lambda: False)
    return verification.result.problems


@pytest.mark.parametrize("verify", [verified, verified_in_pieces])
def test_an_index_that_differs_from_its_table_is_a_problem(
    behind_a_stale_index: Vault, verify: Callable[[Vault], tuple[str, ...]]
) -> None:
    """It hides from all other comparisons that a row was rolled back."""
    assert "secrets: its rows and indexes contradict each other (row 1 missing from index c)" in verify(
        behind_a_stale_index
    )


RENAMED = "UPDATE sqlite_master SET sql = replace(sql, '{}', '{}') WHERE name = '{}'"


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("CREATE INDEX c ON secrets (note)", "index c"),
        (
            "DROP INDEX secrets_live_name; CREATE INDEX secrets_live_name ON secrets (note)",
            "index secrets_live_name",
        ),
        ("ALTER TABLE users ADD pad VARCHAR(4000)", "changed table users"),
        ("ALTER TABLE users DROP COLUMN disabled_at", "changed table users"),
        ("CREATE TABLE Other (id); DROP TABLE meta; ALTER TABLE Other RENAME TO Meta", "changed table Meta"),
        (
            RENAMED.format("role VARCHAR(16)", "role VARCHAR(16) COLLATE NOCASE", "users"),
            "changed table users",
        ),
        (RENAMED.format("role VARCHAR(16)", "role VARCHAR(16) DEFAULT (1)", "users"), "changed table users"),
        (RENAMED.format("email VARCHAR(254) NOT NULL", "email VARCHAR(254)", "users"), "changed table users"),
        ("CREATE VIEW v AS SELECT 1", "view v"),
        ("CREATE TRIGGER t AFTER UPDATE ON secrets BEGIN SELECT 1; END", "trigger t"),
    ],
)
def test_a_schema_that_the_migrations_did_not_make_is_refused(
    settings: Settings, database: str, statement: str, found: str
) -> None:
    with open_vault(settings):
        pass
    executed(database, f"PRAGMA writable_schema = ON; {statement}")
    with pytest.raises(IntegrityError, match=f"gusset never creates: {found}$"), open_vault(settings):
        pass


def test_statistics_are_refused_until_they_are_removed(settings: Settings, database: str) -> None:
    """An administrator may have made them; the message says how to remove them."""
    with open_vault(settings) as vault:
        vault.secrets.writer.set("x", SecretValue(b"v"), actor="ada")
    executed(database, "ANALYZE")
    refused = pytest.raises(IntegrityError, match="gusset never creates: statistics sqlite_stat1")
    with refused as caught, open_vault(settings):
        pass
    assert caught.value.hint is not None
    assert "DROP TABLE sqlite_stat1" in caught.value.hint
    executed(database, "DROP TABLE sqlite_stat1; DROP TABLE IF EXISTS sqlite_stat4")
    with open_vault(settings) as vault:
        assert vault.audit.verify().problems == ()


def test_tables_of_others_and_a_missing_index_are_accepted(settings: Settings, database: str) -> None:
    """Such as those of programs that copy the file elsewhere: gusset reads none of them. SQLite puts the
    name of a table that was renamed in quotes."""
    with open_vault(settings):
        pass
    executed(
        database,
        "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER);"
        "CREATE INDEX theirs ON _litestream_seq (seq); DROP INDEX replicas_of_deployment; VACUUM;"
        "ALTER TABLE masked_values RENAME TO other; ALTER TABLE other RENAME TO masked_values",
    )
    with open_vault(settings) as vault:
        assert vault.audit.verify().problems == ()


@pytest.mark.parametrize("vector", ["vault-0002", "vault-0002-people"])
def test_a_vault_that_was_migrated_has_the_expected_schema(
    tmp_path: Path, settings: Settings, vector: str
) -> None:
    write_older_vault(tmp_path / "older", vector)
    for _ in range(2):
        with open_vault(settings_in(tmp_path / "older")):
            pass


def test_what_a_newer_gusset_has_added_is_accepted_but_no_other_change(
    settings: Settings, database: str, sql: Sql
) -> None:
    """Where it says that this one may go on."""
    with open_vault(settings):
        pass
    sql(f"UPDATE alembic_version SET version_num = '{NEWER}'")
    sql(f"UPDATE meta SET value = '{NEWER} {BASE}' WHERE key = 'schema'")
    executed(database, "ALTER TABLE managers ADD load INTEGER; CREATE INDEX by_host ON managers (host)")
    with open_vault(settings) as vault:
        assert vault.audit.verify().problems == ()
    executed(database, "DROP INDEX secrets_live_name; CREATE INDEX secrets_live_name ON secrets (note)")
    executed(database, "ALTER TABLE users DROP COLUMN disabled_at")
    with (
        pytest.raises(IntegrityError, match=r"creates: index secrets_live_name, changed table users$"),
        open_vault(settings),
    ):
        pass


def test_a_vault_that_says_no_revision_is_verified_all_the_same(vault: Vault, sql: Sql) -> None:
    """Whoever removes it hides nothing else."""
    vault.secrets.writer.set("x", SecretValue(b"v"), actor="ada")
    sql("DELETE FROM alembic_version")
    sql("UPDATE secrets SET note = 'forged'")
    [problem] = vault.audit.verify().problems
    assert problem.startswith("secrets: ")
    verification = vault.verification()
    verification.verify_new_records(lambda: False)
    verification.verify_rows(lambda: False)
    assert verification.result.problems[0].startswith("secrets: ")
