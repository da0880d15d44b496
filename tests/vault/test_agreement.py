"""`audit verify` also finds what was done to the secrets behind the log's back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

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
            vault.secrets.set(name, SecretValue(b"first"), actor="alice")
        for name in ("replaced", "rolled", "partly"):
            vault.secrets.set(name, SecretValue(b"second"), actor="alice")
        vault.secrets.rollback("rolled", 1, actor="alice")
        vault.secrets.delete("deleted", actor="alice")
        vault.secrets.set("deleted", SecretValue(b"anew"), actor="alice")
        vault.secrets.delete("restored", actor="alice")
        vault.secrets.restore("restored", actor="alice")
        vault.secrets.destroy("destroyed", actor="alice")
        vault.secrets.destroy("partly", [2], actor="alice")
        vault.keys.rotate(actor="alice")
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
        vault.secrets.set("deleted-too", SecretValue(b"value"), actor="alice")
        vault.secrets.deliver(["deleted", "version", "id"], actor="alice", deployment="model")
    assert problems(settings) == ()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE secrets SET current_version = 1 WHERE name = 'replaced'", "at version 1 in the database"),
        ("UPDATE secrets SET deleted_at = NULL WHERE name = 'deleted' AND last_version = 1", None),
        ("UPDATE secrets SET deleted_at = 'x' WHERE name = 'plain'", "deleted in the database"),
        ("UPDATE secrets SET name = 'plane', folded = 'plane' WHERE name = 'plain'", "named plane"),
        ("UPDATE secrets SET folded = 'plane' WHERE name = 'plain'", "named plain"),
        ("DELETE FROM secrets WHERE name = 'plain'", "is gone from the database"),
        (
            "INSERT INTO secrets SELECT 'other', team_id, 'forged', 'forged', note, expires_at, created_at,"
            " updated_at, NULL, last_version, current_version, revision FROM secrets WHERE name = 'plain'",
            "was never written",
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
