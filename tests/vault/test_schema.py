"""Which releases may use a database whose schema another one has migrated."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from gusset.errors import VaultError, VaultTooNew
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit import log
from gusset.vault.storage import schema
from gusset.vault.storage.tables import OVERLAPS, SIGNED_TABLES
from tests.newer_gusset import BASE, NEWER, migrations

Sql = Callable[..., list[Any]]
VALUE = SecretValue(b"a value")


@pytest.fixture
def upgrade(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Opens the vault by the next release."""

    def upgrading(kind: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(schema, "_MIGRATIONS", migrations(tmp_path, kind))
            patched.setattr(schema, "REVISION", NEWER)
            patched.setattr("gusset.vault.wiring.REVISION", NEWER)
            with open_vault(settings):
                pass

    return upgrading


def revision(sql: Sql) -> str:
    return str(sql("SELECT version_num FROM alembic_version")[0][0])


@pytest.fixture
def filled(settings: Settings) -> Settings:
    with open_vault(settings):
        return settings


def test_a_compatible_schema_of_a_newer_gusset_is_used(
    filled: Settings, upgrade: Callable[[str], None], sql: Sql
) -> None:
    upgrade("compatible")
    assert revision(sql) == NEWER
    with open_vault(filled) as vault:
        assert vault.schema() == (NEWER, BASE)
        vault.managers.report("host")


def test_a_vault_that_is_open_writes_on_beside_a_compatible_schema_only(
    filled: Settings, upgrade: Callable[[str], None], sql: Sql
) -> None:
    with open_vault(filled) as vault:
        upgrade("compatible")
        vault.secrets.writer.set("a", VALUE, actor="alice")
        sql(f"UPDATE meta SET value = '{NEWER} {NEWER}' WHERE key = 'schema'")
        before = sql("SELECT max(seq) FROM audit")
        with pytest.raises(VaultTooNew, match=f"schema {NEWER}"):
            vault.secrets.writer.set("a", VALUE, actor="alice")
        with pytest.raises(VaultTooNew):
            vault.secrets.delivery.reveal("a", actor="alice")
        assert sql("SELECT max(seq) FROM audit") == before
        sql(f"UPDATE meta SET value = '{NEWER} {BASE}' WHERE key = 'schema'")


def test_another_schema_of_a_newer_gusset_is_refused(
    filled: Settings, upgrade: Callable[[str], None]
) -> None:
    upgrade("incompatible")
    with pytest.raises(VaultTooNew, match=f"schema {NEWER}"), open_vault(filled):
        pass


def test_a_migration_that_the_database_refuses_is_an_error_and_changes_nothing(
    filled: Settings, upgrade: Callable[[str], None], sql: Sql
) -> None:
    """As when the disk is full, or the account may not change the schema."""
    sql("CREATE TABLE of_the_next_release (id INTEGER)")
    with pytest.raises(VaultError, match="the database refused the statement"):
        upgrade("compatible")
    assert revision(sql) == BASE
    with open_vault(filled) as vault:
        vault.secrets.writer.set("a", VALUE, actor="alice")


def test_what_is_known_of_another_schema_does_not_count(
    filled: Settings, upgrade: Callable[[str], None], sql: Sql
) -> None:
    """A gusset that did not say what may go on beside its schema has migrated the vault since."""
    upgrade("compatible")
    sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(VaultTooNew), open_vault(filled):
        pass


def test_a_running_manager_holds_up_a_migration_only_if_it_is_too_old(
    vault: Vault, upgrade: Callable[[str], None], sql: Sql
) -> None:
    vault.managers.report("old.example.com")
    with pytest.raises(VaultError, match=r"old\.example\.com"):
        upgrade("incompatible")
    assert revision(sql) == BASE


def test_a_running_manager_does_not_hold_up_a_compatible_migration(
    vault: Vault, upgrade: Callable[[str], None], sql: Sql
) -> None:
    vault.managers.report("old.example.com")
    upgrade("compatible")
    assert revision(sql) == NEWER


def test_managers_that_do_not_report_a_revision_have_that_of_the_database(
    vault: Vault, upgrade: Callable[[str], None], sql: Sql
) -> None:
    """As the releases before revision 0007. They hold up what they could not go on beside."""
    vault.managers.report("old.example.com")
    for statement in (
        "DROP TABLE password_attempts",
        "ALTER TABLE managers DROP COLUMN revision",
        "UPDATE alembic_version SET version_num = '0006'",
    ):
        sql(statement)
    with pytest.raises(VaultError, match=r"old\.example\.com"):
        upgrade("incompatible")
    assert revision(sql) == "0006"


def test_a_release_that_does_not_know_a_signed_table_takes_its_rows_for_missing(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a migration that makes one must not let older managers go on: they would raise a false alarm."""
    vault.secrets.writer.set("a", VALUE, actor="alice")
    vault.secrets.writer.set("a", SecretValue(b"another"), actor="alice", overlap=timedelta(hours=1))
    monkeypatch.setattr(log, "SIGNED_TABLES", [each for each in SIGNED_TABLES if each is not OVERLAPS])
    [problem] = vault.audit.verify().problems
    assert problem.startswith("secret_overlaps: ") and problem.endswith(" is missing")


def test_a_migration_that_changes_a_signed_table_lets_no_older_manager_go_on(tmp_path: Path) -> None:
    config = schema._alembic_config()
    scripts = [*ScriptDirectory.from_config(config).walk_revisions()][::-1]
    known = dict[str, set[str]]()
    with create_engine(f"sqlite:///{tmp_path / 'vault.db'}").begin() as connection:
        config.attributes["connection"] = connection
        for script in scripts:
            command.upgrade(config, script.revision)
            database = inspect(connection)
            columns = {
                table: {column["name"] for column in database.get_columns(table)}
                for table in database.get_table_names()
            }
            signed = {table: names for table, names in columns.items() if "mac" in names}
            if signed != known:
                oldest = getattr(script.module, "oldest_beside", script.revision)
                assert oldest == script.revision, f"{script.revision} lets {oldest} go on"
            known = signed
    assert {"secret_overlaps", "issuers", "secret_schedules"} < known.keys()
