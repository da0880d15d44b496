"""Whoever owns the tables can have the database find another row than the one that was asked for.

Such a row is sound: it is refused where it is used. What the tables then have is also refused when the vault
is opened; a vault that is open already finds the row.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gusset.errors import IntegrityError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.services.deployments import Grant
from gusset.vault.services.person import Person
from gusset.vault.services.secret_delivery import DeliveredValues
from tests.vault.conftest import Sql

PASSWORD = SecretValue(b"correct horse battery staple")

# A type whose values are all equal, so that each condition of a column finds every row.
ALL_EQUAL = (
    "CREATE DOMAIN all_equal AS {type}",
    "CREATE FUNCTION all_equal(all_equal, all_equal) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'",
    "CREATE OPERATOR = (leftarg = all_equal, rightarg = all_equal, function = all_equal)",
    "ALTER TABLE {table} DROP CONSTRAINT {table}_pkey CASCADE",
    "ALTER TABLE {table} ALTER COLUMN {column} TYPE all_equal",
    # So that a vault that is open connects anew: its sessions have plans for the old type.
    "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
)

CLAIMING_INDEX = """
DROP INDEX secrets_live_name;
CREATE INDEX secrets_live_name ON secrets (team_id, folded);
PRAGMA writable_schema = ON;
UPDATE sqlite_master SET sql = sql || ' WHERE deleted_at IS NULL' WHERE name = 'secrets_live_name';
"""


@dataclass(frozen=True)
class Holder:
    """A member of the team `other`, who also has a token for the secret `mine` of that team."""

    team: str  # its id
    session: str
    token: SecretValue

    def grant(self, vault: Vault) -> Grant:
        return vault.deployments.grant(vault.access_keys.authenticate(self.token, kinds=["token"]))

    def deliver(self, vault: Vault) -> DeliveredValues:
        delivery = vault.secrets_of(self.team, "other").delivery
        return delivery.deliver(["mine"], actor="model", deployment="model")

    def reveal(self, vault: Vault) -> SecretValue:
        return vault.secrets_of(self.team, "other").delivery.reveal("mine", actor="bob")

    def authenticate(self, vault: Vault) -> Person | None:
        return vault.sessions.authenticate(self.session)

    def forge(self, vault: Vault) -> Person | None:
        return vault.sessions.authenticate("a token that is no session's")


@pytest.fixture
def holder(settings: Settings) -> Holder:
    """In a vault that has an administrator, whose team has the same names, and older versions."""
    with open_vault(settings) as vault:
        [default] = vault.teams.all()
        other = vault.teams.create("other", actor="ada")
        admin, _ = vault.people.create_first("ada@example.com", PASSWORD, actor="setup")
        vault.sessions.sign_in(admin.email, PASSWORD)
        _, link = vault.invitations.invite("bob@example.com", role="member", team_ids=[other.id], actor="ada")
        member = vault.invitations.accept(link, PASSWORD)
        _, session = vault.sessions.sign_in(member.email, PASSWORD)
        tokens = []
        for team in (default, other):
            tokens.append(vault.deployments.register(team.id, "model", ["mine"], actor="ada")[2])
            for name, value in (("another", b"another"), ("mine", b"older"), ("mine", b"newer")):
                vault.secrets_of(team.id, team.name).writer.set(name, SecretValue(value), actor="ada")
        return Holder(other.id, session.reveal().decode(), tokens[1])


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("column", "kind", "use"),
    [
        ("sessions.hash", "bytea", Holder.forge),
        ("users.id", "text", Holder.authenticate),
        ("members.user_id", "text", Holder.authenticate),
        ("teams.id", "text", Holder.authenticate),
        ("access_keys.prefix", "text", Holder.grant),
        ("deployments.id", "text", Holder.grant),
        ("secrets.team_id", "text", Holder.deliver),
        ("secrets.folded", "text", Holder.reveal),
        ("secret_versions.version", "integer", Holder.deliver),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
def test_a_row_that_was_not_asked_for_is_refused(
    settings: Settings, sql: Sql, holder: Holder, column: str, kind: str, use: Callable[[Holder, Vault], Any]
) -> None:
    """It gives nobody another session, role, team or grant, nor another secret or an older version."""
    with open_vault(settings) as vault:
        right = use(holder, vault)
        table, name = column.split(".")
        for statement in ALL_EQUAL:
            sql(statement.format(table=table, column=name, type=kind))
        try:
            found = use(holder, vault)
        except IntegrityError as error:
            assert re.search("where another was asked for|do not open", error.message)
        else:  # nothing says which of its equal rows the database returns first
            if isinstance(found, Person):  # others' memberships are noticed, and give nothing
                found = replace(found, has_altered_teams=right.has_altered_teams)
            assert found == right
    with (
        pytest.raises(IntegrityError, match=f"gusset never creates: .*type of {column}"),
        open_vault(settings),
    ):
        pass


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_index_with_other_rows_than_it_claims_delivers_no_deleted_secret(
    settings: Settings, database: str
) -> None:
    """SQLite believes an index that claims to have only secrets that are not deleted."""
    with open_vault(settings) as vault:
        vault.secrets.writer.set("gone", SecretValue(b"value"), actor="ada")
        vault.secrets.writer.delete("gone", actor="ada")
        with closing(sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)) as attacker:
            attacker.executescript(CLAIMING_INDEX)
        assert vault.audit.verify().problems == (
            "secrets: its rows and indexes contradict each other (wrong # of entries in index secrets_live_name)",
            "the database has objects that gusset never creates: index secrets_live_name",
        )
        with pytest.raises(IntegrityError, match="the secret gone where another was asked for"):
            vault.secrets.delivery.deliver(["gone"], actor="model", deployment="model")
    with (
        pytest.raises(IntegrityError, match=r"gusset never creates: index secrets_live_name$"),
        open_vault(settings),
    ):
        pass


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize(("column", "asked"), [("folded", "first"), ("id", "second")])
def test_no_other_deleted_secret_is_restored_than_was_asked_for(
    settings: Settings, sql: Sql, column: str, asked: str
) -> None:
    """By its name, where the one that was deleted last comes first, or by its id."""
    with open_vault(settings) as vault:
        writer = vault.secrets.writer
        ids = {name: writer.set(name, SecretValue(b"value"), actor="ada").id for name in ("first", "second")}
        for name in ids:
            writer.delete(name, actor="ada")
        for statement in ALL_EQUAL:
            sql(statement.format(table="secrets", column=column, type="text"))
        with pytest.raises(IntegrityError, match="where another was asked for"):
            writer.restore(ids[asked] if column == "id" else asked, actor="ada")
