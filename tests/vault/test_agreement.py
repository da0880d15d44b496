"""`audit verify` also finds what was done to the secrets behind the log's back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gusset.errors import IntegrityError, RootKeyError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import open_vault


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A vault in which everything has happened that the API allows."""
    settings = Settings.load(
        {"GUSSET_HOME": str(tmp_path / "home"), "GUSSET_SETTINGS": str(tmp_path / "none")}
    )
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


def test_what_was_done_properly_agrees(settings: Settings) -> None:
    """Every kind of change leaves rows and log in agreement."""
    assert problems(settings) == ()


def test_a_secret_may_be_called_as_the_log_calls_things(settings: Settings) -> None:
    """Names in a record of delivery are not taken for what a change led to."""
    with open_vault(settings) as vault:
        vault.secrets.writer.set("deleted-too", SecretValue(b"value"), actor="alice")
        vault.secrets.delivery.deliver(["deleted", "version", "id"], actor="alice", deployment="model")
    assert problems(settings) == ()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE secrets SET current_version = 1 WHERE name = 'replaced'",
            "but in the database it is at version 1",
        ),
        ("UPDATE secrets SET deleted_at = NULL WHERE name = 'deleted' AND last_version = 1", None),
        (
            "UPDATE secrets SET deleted_at = 'x' WHERE name = 'plain'",
            "but in the database it is at version 1, deleted",
        ),
        ("UPDATE secrets SET name = 'plane', folded = 'plane' WHERE name = 'plain'", "named plane"),
        ("UPDATE secrets SET folded = 'plane' WHERE name = 'plain'", "named plain"),
        ("DELETE FROM secrets WHERE name = 'plain'", "is missing from the database"),
        (
            "INSERT INTO secrets SELECT 'other', team_id, 'forged', 'forged', note, expires_at, created_at,"
            " updated_at, NULL, last_version, current_version, revision, NULL FROM secrets WHERE name = 'plain'",
            "no record says that it was created",
        ),
    ],
    ids=["rolled back", "undeleted", "deleted", "renamed", "refolded", "removed", "added"],
)
def test_a_row_changed_behind_the_log_is_found(settings: Settings, statement: str, said: str | None) -> None:
    """Which version is current cannot be turned back in silence."""
    with closing(sqlite3.connect(settings.home / "vault.db")) as database:
        database.execute("DROP INDEX secrets_live_name")
        database.execute(statement)
        database.commit()

    found = problems(settings)

    assert found and (said is None or said in found[0])


def test_a_delivery_of_what_was_turned_back_for_a_while_is_found(settings: Settings) -> None:
    """The row is put right again afterwards; the record of the delivery tells all the same."""
    with closing(sqlite3.connect(settings.home / "vault.db")) as database, open_vault(settings) as vault:
        database.execute("UPDATE secrets SET current_version = 1 WHERE name = 'replaced'")
        database.commit()
        vault.secrets.delivery.deliver(["replaced"], actor="alice", deployment="model")
        database.execute("UPDATE secrets SET current_version = 2 WHERE name = 'replaced'")
        database.commit()
        found = vault.audit.verify().problems

    assert len(found) == 1
    assert "delivered version 1 of replaced, but version 2 was current" in found[0]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE secret_versions SET sealed = x'00' WHERE secret_id ="
            " (SELECT id FROM secrets WHERE name = 'plain')",
            "the stored bytes of plain (version 1) do not open",
        ),
        (
            "UPDATE secret_versions SET sealed = NULL WHERE secret_id ="
            " (SELECT id FROM secrets WHERE name = 'plain')",
            "the stored bytes of plain (version 1) do not open",
        ),
        (
            "UPDATE secret_versions SET sealed = 'text' WHERE secret_id ="
            " (SELECT id FROM secrets WHERE name = 'plain')",
            "the stored bytes of plain (version 1) do not open",
        ),
        (
            "DELETE FROM secret_versions WHERE secret_id = (SELECT id FROM secrets WHERE name = 'plain')",
            "the current version 1 of plain is missing",
        ),
        (
            "UPDATE secret_versions SET sealed = x'00' WHERE version = 2 AND secret_id ="
            " (SELECT id FROM secrets WHERE name = 'partly')",
            "version 2 of partly was destroyed, but is in the database again",
        ),
        ("DELETE FROM audit", "the log is empty"),
    ],
    ids=["damaged", "emptied", "of another type", "removed", "destroyed, put back", "no log"],
)
def test_stored_bytes_are_looked_at(settings: Settings, statement: str, said: str) -> None:
    """Every version that was not destroyed opens in its place, and none that was destroyed is back."""
    (settings.home / "audit.witness").unlink()
    with closing(sqlite3.connect(settings.home / "vault.db")) as database:
        database.execute("DELETE FROM checkpoints")
        database.execute(statement)
        database.commit()
    assert said in "\n".join(problems(settings))


def test_a_renamed_row_does_not_deliver_its_value(settings: Settings) -> None:
    """A value is sealed for its name: another secret's value cannot be slipped under a name."""
    with closing(sqlite3.connect(settings.home / "vault.db")) as database, open_vault(settings) as vault:
        database.execute("UPDATE secrets SET name = 'aside', folded = 'aside' WHERE name = 'plain'")
        database.execute("UPDATE secrets SET name = 'plain', folded = 'plain' WHERE name = 'rolled'")
        database.commit()
        with pytest.raises(IntegrityError, match="plain"):
            vault.secrets.delivery.deliver(["plain"], actor="alice", deployment="model")


@pytest.mark.parametrize("kind", ["kek", "audit", "signing"])
def test_a_keyring_that_lost_a_key_is_said_to_be_altered(settings: Settings, kind: str) -> None:
    """Not a traceback: exit 10 and what to do."""
    with closing(sqlite3.connect(settings.home / "vault.db")) as database:
        database.execute("DELETE FROM keyring WHERE kind = ?", (kind,))
        database.commit()
    with pytest.raises(RootKeyError, match=f"no {kind} key"), open_vault(settings):
        pass


def test_destroyed_bytes_leave_the_files_while_others_have_the_vault_open(settings: Settings) -> None:
    """SQLite keeps old pages in its write-ahead log until the last process closes: not these."""
    with open_vault(settings) as other, open_vault(settings) as vault:
        other.secrets.reader.list()
        vault.secrets.writer.set("gone", SecretValue(b"x" * 4000), actor="alice")
        with closing(sqlite3.connect(settings.home / "vault.db")) as database:
            [(sealed,)] = database.execute(
                "SELECT sealed FROM secret_versions ORDER BY length(sealed) DESC LIMIT 1"
            ).fetchall()
        vault.secrets.writer.destroy("gone", actor="alice")
        for file in settings.home.glob("vault.db*"):
            assert sealed[1000:1100] not in file.read_bytes(), file
