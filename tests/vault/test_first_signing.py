"""The first opening of a vault that a release before signed rows wrote: what agrees with its log is signed.

Such releases had no database but SQLite. `vault-0002-people` has people who were invited, disabled and
moved between teams, keys that were revoked, and a deployment that was removed and registered anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gusset.errors import IntegrityError, NotSignedIn, RecordsLost, SecretNotFound
from gusset.secrets.hits import Hit
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.events import chain_hash
from gusset.vault.audit.older_log import NOT_COMPARED
from gusset.vault.storage.tables import (
    ACCESS_KEYS,
    DEPLOYMENTS,
    MEMBERS,
    SECRET_VERSIONS,
    SECRETS,
    TEAMS,
    USERS,
)
from tests.vault.conftest import Sql, write_older_vault

pytestmark = pytest.mark.sqlite("older releases had no other database")

KEY = SecretValue(b"gusset_key_nrdoem2d_df6W8G8IWpcLP5htWkbCJe8mSTX45MtPdagsqiW-Quk")
SIGNED = (TEAMS, USERS, MEMBERS, DEPLOYMENTS, ACCESS_KEYS, SECRETS, SECRET_VERSIONS)
ADDED = {"gives", "write_id"}  # columns that the migration adds


@pytest.fixture
def older(settings: Settings) -> Settings:
    write_older_vault(settings.home)
    return settings


@pytest.fixture
def peopled(settings: Settings) -> Settings:
    write_older_vault(settings.home, "vault-0002-people")
    return settings


def shown(vault: Vault, name: str, version: int | None = None) -> bytes:
    return vault.secrets.delivery.reveal(name, actor="alice", version=version).reveal()


def differences(vault: Vault) -> list[str]:
    """What the record of the signing says that was left unsigned, or is missing."""
    [record] = vault.audit.show(action="vault.sign")
    found: list[str] = json.loads(record.details).get("differences", [])
    return found


def unsigned(sql: Sql) -> dict[str, int]:
    """The number of unsigned rows of each table that has any."""
    counts = {
        table.name: sql(f"SELECT count(*) FROM {table.name} WHERE mac IS NULL")[0][0] for table in SIGNED
    }
    return {name: count for name, count in counts.items() if count}


def test_a_vault_of_an_older_release_is_migrated(older: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Values, versions, people and keys stay; every row is signed, and what later schemas add is there."""
    with open_vault(older) as vault:
        assert shown(vault, "plain") == b"first value of plain"
        assert shown(vault, "replaced", version=1) == b"first value of replaced"
        assert [info.name for info in vault.secrets.reader.list()] == ["partly", "plain", "replaced"]
        key = vault.access_keys.authenticate(KEY, kinds=("key",))
        assert key.gives == ("*",)  # as before, it may give every secret to deployments
        assert vault.people.get(key.user_id or "").email == "alice@example.com"
        vault.secrets.writer.set("replaced", SecretValue(b"third"), actor="alice")
        assert shown(vault, "replaced") == b"third"
        source = vault.source(actor="alice", deployment="d")
        source.record_hits({Hit("plain", "hex", "log"): 2, Hit("other", "hex", "log"): 1})
        assert vault.audit.verify().problems == ()
        assert differences(vault) == []
    assert not caplog.text


def test_people_and_what_they_may_do_stay(
    peopled: Settings, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that an older release has written is taken for a forgery."""
    with open_vault(peopled) as vault:
        assert {
            person.email: (person.role, person.disabled_at is None, [team.name for team in person.teams])
            for person in vault.people.all()
        } == {
            "alice@example.com": ("admin", True, ["Research"]),
            "bob@example.com": ("member", True, ["default"]),
            "carol@example.com": ("admin", False, ["Research"]),
            "dave@example.com": ("member", True, ["Research"]),
            "eve@example.com": ("member", True, []),
        }
        keys = [key for person in vault.people.all() for key in vault.access_keys.of_user(person.id)]
        assert {(key.name, key.revoked_at is None, key.gives) for key in keys} == {
            ("first key", True, ("*",)),
            ("ci", True, ("*",)),
            ("old", False, ("*",)),
            ("carol's", False, ("*",)),
        }
        assert shown(vault, "plain") == b"first value of plain"  # rolled back
        assert (vault.audit.verify().problems, differences(vault)) == ((), [])
    assert (unsigned(sql), caplog.text) == ({}, "")


def test_links_to_choose_a_password_by_end_like_sessions(peopled: Settings, sql: Sql) -> None:
    """The log cannot know which link is genuine; an administrator makes a new one."""
    assert sql("SELECT count(*) FROM access_keys WHERE kind = 'link' AND revoked_at IS NULL") == [(1,)]
    with open_vault(peopled) as vault:
        assert sql("SELECT count(*) FROM access_keys WHERE kind = 'link'") == [(0,)]
        [eve] = [person for person in vault.people.all() if person.email == "eve@example.com"]
        link = vault.invitations.new_link(eve.id, actor="alice@example.com")
        assert vault.invitations.check_link(link).user_id == eve.id
        assert vault.audit.verify().problems == ()


ALICE = "(SELECT id FROM users WHERE email = 'alice@example.com')"
BOB = "(SELECT id FROM users WHERE email = 'bob@example.com')"
RESEARCH = "(SELECT id FROM teams WHERE name = 'Research')"
UNKNOWN = "no record tells of its creation"

FORGERIES = {
    "an administrator": (
        "INSERT INTO users VALUES ('m', 'mallory@example.com', 'm', 'hash', 'admin', 'now', NULL)",
        f"users: the account mallory@example.com: {UNKNOWN}",
    ),
    "a role": (
        "UPDATE users SET role = 'admin' WHERE email = 'bob@example.com'",
        "its role is member and not admin",
    ),
    "a disabled person who is back": (
        "UPDATE users SET disabled_at = NULL WHERE email = 'carol@example.com'",
        "its disabled_at is set and not empty",
    ),
    "a password of somebody who has chosen none": (
        "UPDATE users SET password = 'hash' WHERE email = 'eve@example.com'",
        "its password is empty and not set",
    ),
    "a membership": (f"INSERT INTO members VALUES ({RESEARCH}, {BOB})", UNKNOWN),
    "a team": ("INSERT INTO teams VALUES ('t', 'forged', 'now')", f"teams: the team forged: {UNKNOWN}"),
    "a team's name": ("UPDATE teams SET name = 'R' WHERE name = 'Research'", "its name is Research"),
    "a key": (
        "INSERT INTO access_keys SELECT 'aaaaaaaa', hash, kind, user_id, deployment_id, name, allows, "
        "created_at, created_by, expires_at, last_used_at, revoked_at FROM access_keys WHERE name = 'ci'",
        f"access_keys: the key aaaaaaaa: {UNKNOWN}",
    ),
    "a key that was revoked": (
        "UPDATE access_keys SET revoked_at = NULL WHERE name = 'old'",
        "its revoked_at is set and not empty",
    ),
    "a token that was revoked with the key that made it": (
        "UPDATE access_keys SET revoked_at = NULL WHERE name = 'tagger'",
        "its revoked_at is set and not empty",
    ),
    "a token of a removed deployment": (
        "UPDATE access_keys SET revoked_at = NULL WHERE name = 'retired' AND allows = '[\"plain\"]'",
        "its revoked_at is set and not empty",
    ),
    "a key's scopes": (
        "UPDATE access_keys SET allows = '[\"admin\"]' WHERE name = 'ci'",
        'its allows is ["deployments", "secrets:read"] and not ["admin"]',
    ),
    "a key's end": (
        "UPDATE access_keys SET expires_at = NULL WHERE name = 'ci'",
        "and not empty",
    ),
    "a key's owner": (
        f"UPDATE access_keys SET user_id = {ALICE} WHERE name = 'ci'",
        "its user_id is bob@example.com and not alice@example.com",
    ),
    "a key's maker": (
        "UPDATE access_keys SET created_by = 'root' WHERE name = 'tagger'",
        "and not root",
    ),
    "what a token reads": (
        "UPDATE access_keys SET allows = '[\"back\", \"plain\"]' WHERE name = 'tagger'",
        'its allows is ["plain"]',
    ),
    "a deployment": (
        f"INSERT INTO deployments VALUES ('d', {RESEARCH}, 'forged', '[]', 'now', 'root', 'now', NULL)",
        f"deployments: the deployment forged: {UNKNOWN}",
    ),
    "what a deployment declares": (
        "UPDATE deployments SET secrets = '[\"other\"]' WHERE name = 'ranker'",
        'its secrets is ["back", "plain"] and not ["other"]',
    ),
    "a deployment's removal": (
        "UPDATE deployments SET deleted_at = 'now' WHERE name = 'ranker'",
        "its deleted_at is empty and not set",
    ),
    "a secret": (
        "INSERT INTO secrets SELECT 's', team_id, 'forged', 'forged', note, expires_at, created_at, "
        "updated_at, deleted_at, last_version, current_version, revision, last_read_at FROM secrets "
        "WHERE name = 'back'",
        f"secrets: the secret forged: {UNKNOWN}",
    ),
    "a secret's version": (
        "UPDATE secrets SET current_version = 2 WHERE name = 'plain' AND current_version = 4",
        "its current_version is 4 and not 2",
    ),
    "a secret that was deleted": (
        "UPDATE secrets SET deleted_at = NULL WHERE name = 'gone'",
        "its deleted_at is set and not empty",
    ),
    "a version": (
        "INSERT INTO secret_versions SELECT secret_id, 9, sealed, created_at, created_by, destroyed_at "
        "FROM secret_versions WHERE version = 4",
        "secret_versions: version 9 of the secret ",
    ),
    "a version that was destroyed": (
        "UPDATE secret_versions SET destroyed_at = NULL, sealed = x'00' WHERE version = 3",
        "its sealed is empty and not set, its destroyed_at is set and not empty",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_contradicts_the_log_is_not_signed(
    peopled: Settings, sql: Sql, forgery: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in a warning and in the log, `audit verify` finds it, and all the rest goes on."""
    statement, text = FORGERIES[forgery]
    sql(statement)
    with open_vault(peopled) as vault:
        [difference] = differences(vault)
        assert text in difference
        assert difference in caplog.text
        assert shown(vault, "back") == b"back"
        [problem] = [each for each in vault.audit.verify().problems if "do not open" not in each]
        assert problem.endswith("is in the database, but no record says that it was written")
    assert unsigned(sql) == {difference.split(":")[0]: 1}


def test_a_token_is_bound_to_its_deployment(peopled: Settings, sql: Sql) -> None:
    """One that was passed to a deployment of another team would read what that one may."""
    sql(
        "UPDATE access_keys SET deployment_id = (SELECT id FROM deployments WHERE name = 'ranker') "
        "WHERE name = 'tagger'"
    )
    [(prefix,)] = sql("SELECT prefix FROM access_keys WHERE name = 'tagger'")
    with open_vault(peopled) as vault:
        assert f"access_keys: the key {prefix}: by record 40 its deployment_id is {prefix}" in "".join(
            differences(vault)
        )
    assert unsigned(sql) == {"access_keys": 1, "deployments": 1}  # without its token, the other is not known


def test_another_default_team_is_not_signed(peopled: Settings, sql: Sql) -> None:
    """The record that made it has no id, but those of its members and secrets have."""
    sql("UPDATE teams SET id = 'forged' WHERE name = 'default'")
    with pytest.raises(IntegrityError, match="the team default was altered"), open_vault(peopled):
        pass


COMPARED = [
    (table.name, column)
    for table in SIGNED
    for column in table.columns
    if column not in {*NOT_COMPARED[table.name], *ADDED}
]


@pytest.mark.parametrize(("table", "column"), COMPARED, ids=map(".".join, COMPARED))
def test_every_column_is_compared_or_named_as_one_that_the_log_does_not_know(
    peopled: Settings, sql: Sql, table: str, column: str
) -> None:
    which = "name = 'Research'" if table == "teams" else f"rowid = (SELECT min(rowid) FROM {table})"
    value = 77 if column in {"version", "current_version", "last_version"} else "forged"
    sql(f"UPDATE {table} SET {column} = ? WHERE {which}", value)
    with open_vault(peopled) as vault:
        assert [each for each in differences(vault) if each.startswith(f"{table}: ")]
        [record] = vault.audit.show(action="vault.sign")
        assert json.loads(record.details)["not_compared"].get(table, []) == list(NOT_COMPARED[table])
    assert unsigned(sql)[table] == 1


def test_the_decision_names_the_columns_that_the_log_does_not_know() -> None:
    documents = Path(__file__).parents[2] / "docs"
    text = (documents / "decisions" / "0005-signed-rows.md").read_text()
    for table, columns in NOT_COMPARED.items():
        if columns:
            assert f"`{table}`: {', '.join(f'`{column}`' for column in columns)}" in " ".join(text.split())


@pytest.mark.parametrize(
    ("table", "which", "text"),
    [
        ("users", "email = 'dave@example.com'", "users: dave@example.com of record 42 is missing"),
        (
            "members",
            f"team_id = {RESEARCH} AND user_id = {ALICE}",
            "/alice@example.com of record 11 is missing",
        ),
        ("teams", "name = 'Research'", " of record 4 is missing"),
        ("access_keys", "name = 'old'", " of record 17 is missing"),
        ("deployments", "name = 'tagger'", " of record 37 is missing"),
        ("secrets", "name = 'back'", " of record 28 is missing"),
        ("secret_versions", "version = 2", "/2 of record 19 is missing"),
    ],
)
def test_a_row_that_was_removed_is_named(
    peopled: Settings, sql: Sql, table: str, which: str, text: str
) -> None:
    sql(f"DELETE FROM {table} WHERE {which}")
    with open_vault(peopled) as vault:
        assert [each for each in differences(vault) if each.startswith(f"{table}: ") and text in each]


def test_two_rows_for_one_person_are_both_left_unsigned(peopled: Settings, sql: Sql) -> None:
    """SQLite's schema is in the file, too: whoever can write that can take a constraint away."""
    columns = "email TEXT, name TEXT, password TEXT, role TEXT, created_at TEXT, disabled_at TEXT"
    sql(f"CREATE TABLE copy (id TEXT PRIMARY KEY, {columns})")
    sql("INSERT INTO copy SELECT * FROM users")
    sql("DROP TABLE users")
    sql("ALTER TABLE copy RENAME TO users")
    sql("INSERT INTO users SELECT 'm', email, name, 'hash', role, created_at, NULL FROM users LIMIT 1")
    with open_vault(peopled) as vault:
        found = [each for each in differences(vault) if each.startswith("users: ")]
        assert found == ["users: the account alice@example.com: record 2 knows one, but there are 2"] * 2


def add_forged_record(sql: Sql) -> None:
    """What somebody without the audit key can write: the hash is right, the HMAC is not."""
    [(seq, previous, mac)] = sql("SELECT seq, hash, mac FROM audit ORDER BY seq DESC LIMIT 1")
    fields = ("now", "root", "person.create", "mallory@example.com", "ok", '{"role": "admin"}')
    hashed = chain_hash(previous, seq + 1, *fields)
    sql("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", seq + 1, *fields, hashed, mac)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("UPDATE audit SET target = 'mallory@example.com' WHERE seq = 5", "record 5 was altered or moved"),
        ("DELETE FROM audit WHERE seq = 17", "records 17 to 17 are missing"),
        ("DELETE FROM audit", "every record was removed"),
        (None, "record 46 was not written with this vault's keyring"),
    ],
)
def test_with_a_log_that_is_not_intact_nothing_is_signed(
    peopled: Settings, sql: Sql, change: str | None, text: str
) -> None:
    """The vault stays as it was, so that the release that wrote it can still open it."""
    if change is None:
        add_forged_record(sql)
    else:
        sql(change)
    before = sql("SELECT * FROM audit"), sql("SELECT * FROM users")
    with pytest.raises(IntegrityError, match=text), open_vault(peopled):
        pass
    assert sql("SELECT version_num FROM alembic_version") == [("0002",)]
    assert before == (sql("SELECT * FROM audit"), sql("SELECT * FROM users"))


def test_a_log_that_was_cut_short_before_is_found_by_the_witness_file(peopled: Settings, sql: Sql) -> None:
    """A whole older copy agrees with its log; nothing is written until an administrator accepts the loss."""
    sql("DELETE FROM audit WHERE seq > 42")
    sql("DELETE FROM users WHERE email = 'eve@example.com'")
    with open_vault(peopled) as vault:
        assert differences(vault) == []
        assert any("audit.witness" in each for each in vault.audit.verify().problems)
        with pytest.raises(RecordsLost):
            vault.secrets.writer.set("new", SecretValue(b"v"), actor="alice")


def test_a_forged_row_is_refused_wherever_it_is_used(peopled: Settings, sql: Sql) -> None:
    sql("UPDATE access_keys SET revoked_at = NULL WHERE name = 'old'")
    sql("UPDATE secrets SET current_version = 2 WHERE name = 'plain' AND current_version = 4")
    with open_vault(peopled) as vault:
        [(prefix,)] = sql("SELECT prefix FROM access_keys WHERE name = 'old'")
        forged = SecretValue(f"gusset_key_{prefix}_{'A' * 43}".encode())
        with pytest.raises((IntegrityError, NotSignedIn)):
            vault.access_keys.authenticate(forged, kinds=("key",))
        with pytest.raises((IntegrityError, SecretNotFound)):
            shown(vault, "plain")
