"""The schema of a new vault, and which releases may use a database whose schema another one has migrated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from gusset.errors import VaultError, VaultTooNew
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit import log
from gusset.vault.storage import prepared_schema, schema
from gusset.vault.storage.database import open_database
from gusset.vault.storage.tables import OVERLAPS, SIGNED_TABLES
from tests.newer_gusset import BASE, NEWER, OLDEST_COMPATIBLE, migrations

Sql = Callable[..., list[Any]]
VALUE = SecretValue(b"a value")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def upgrade(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Opens the vault by the next release."""

    def upgrading(kind: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(schema, "_MIGRATIONS", migrations(tmp_path, kind))
            patched.setattr(schema, "REVISION", NEWER)
            patched.setattr(schema, "OLDEST_COMPATIBLE", OLDEST_COMPATIBLE[kind])
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


def test_the_prepared_schema_is_up_to_date(tmp_path: Path) -> None:
    """`make newest-schema` would change nothing."""
    subprocess.run([sys.executable, ROOT / "scripts" / "newest-schema", tmp_path], check=True)
    made = {file.name: file.read_text() for file in tmp_path.glob("*.sql")}
    assert made == {file.name: file.read_text() for file in prepared_schema.FOLDER.iterdir()}, (
        "run `make newest-schema`"
    )


def described(url: str) -> dict[str, object]:
    """All that makes up the tables of a database."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with closing(engine.connect()) as connection:
        database = inspect(connection)
        return {
            table: (
                [
                    [column["name"], repr(column["type"]), column["nullable"], column["default"]]
                    for column in database.get_columns(table)
                ],
                database.get_pk_constraint(table),
                database.get_foreign_keys(table),
                database.get_unique_constraints(table),
                database.get_check_constraints(table),
                [
                    each
                    | {
                        "dialect_options": {
                            name: str(value) for name, value in each["dialect_options"].items()
                        }
                    }
                    for each in database.get_indexes(table)
                ],
            )
            for table in database.get_table_names()
        }


def test_a_new_vault_has_the_schema_that_the_migrations_make(
    filled: Settings, tmp_path: Path, request: pytest.FixtureRequest, sql: Sql
) -> None:
    is_file = filled.database.startswith("sqlite")
    url = f"sqlite:///{tmp_path / 'migrated.db'}" if is_file else request.getfixturevalue("new_database")()
    database = open_database(url)
    with closing(database.connect()) as driver:
        database.begin_write(driver)
        with database.for_sqlalchemy(driver) as raw:
            schema._upgrade(schema._alembic_config(), database.migration_url, raw)
        driver.commit()
    migrated = described(url)
    assert {"secrets", "audit", "secret_rotations"} < migrated.keys()
    assert described(filled.database) == migrated
    scripts = ScriptDirectory.from_config(schema._alembic_config()).walk_revisions()
    strictest = max(getattr(script.module, "oldest_beside", script.revision) for script in scripts)
    assert sql("SELECT value FROM meta WHERE key = 'schema'") == [(f"{schema.REVISION} {strictest}",)]
    assert revision(sql) == schema.REVISION


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
    """A gusset that did not say what can work with its schema has migrated the vault since."""
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
    """As the releases before revision 0007. They hold up a migration whose schema they could not work with."""
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
