"""Each row of each signed table, attacked by somebody who can write the database but has no root key.

Verification names the table and the row, and says how it differs: `audit verify`, and a running manager's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gusset.errors import IntegrityError
from gusset.rotation.state import Step
from gusset.secrets.value import SecretValue
from gusset.vault import Vault, open_vault
from gusset.vault.services.identity_rules import IdentityRule
from gusset.vault.services.issuers import new_issuer
from gusset.vault.storage.signed_rows import SignedTable
from gusset.vault.storage.tables import (
    ACCESS_KEYS,
    CREDENTIALS,
    DEPLOYMENTS,
    EPOCHS,
    IDENTITIES,
    ISSUERS,
    MEMBERS,
    OVERLAPS,
    ROTATIONS,
    SCHEDULES,
    SECRET_VERSIONS,
    SECRETS,
    SESSIONS,
    SIGNED_TABLES,
    TEAMS,
    USERS,
)
from tests.vault.conftest import run_sql, settings_in

HOUR = timedelta(hours=1)
CARL = "carl@example.com"
ISSUER = "https://issuer.example"
PASSWORD = SecretValue(b"correct horse battery staple")

# Their rows are written once, and never changed or removed: they have no older state.
WRITTEN_ONCE = {EPOCHS.name, TEAMS.name}

# Their rows are added and removed, but never changed.
NEVER_CHANGED = {*WRITTEN_ONCE, MEMBERS.name, SESSIONS.name}

# What no two rows may share, besides the key: a copy of a row needs other values.
UNIQUE = {
    "epochs": "first_seq",
    "teams": "name",
    "users": "email",
    "secrets": "folded",
    "deployments": "name",
    "identities": "name",
}

OF_ROWS = ("the epoch ", *(f"{table.name}: " for table in SIGNED_TABLES))  # how problems of rows begin

Row = Mapping[str, Any]


class Attacker:
    """Somebody who can write the database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.changed: set[SignedTable] = set()  # since the last `undo`

    def run(self, statement: str, *values: Any) -> list[Any]:
        return run_sql(self._url, statement, *values)

    def rows(self, table: SignedTable) -> list[Row]:
        """Every row, by its key."""
        columns, order = ", ".join(table.all_columns), ", ".join(table.key)
        found = self.run(f"SELECT {columns} FROM {table.name} ORDER BY {order}")
        return [dict(zip(table.all_columns, row, strict=True)) for row in found]

    def insert(self, table: SignedTable, row: Row) -> None:
        self.changed.add(table)
        places = ", ".join("?" * len(row))
        self.run(f"INSERT INTO {table.name} ({', '.join(row)}) VALUES ({places})", *row.values())

    def remove(self, table: SignedTable, row: Row) -> None:
        self.changed.add(table)
        same = " AND ".join(f"{name} = ?" for name in table.key)
        self.run(f"DELETE FROM {table.name} WHERE {same}", *key_of(table, row))

    def put(self, table: SignedTable, rows: list[Row]) -> None:
        """Let the table have just these rows."""
        self.run(f"DELETE FROM {table.name}")
        self.changed.add(table)
        for row in rows:
            self.insert(table, row)

    def undo(self, right: Mapping[str, list[Row]]) -> None:
        """Let the tables that were changed have the rows that they should have."""
        for table in list(self.changed):
            self.put(table, right[table.name])
        self.changed.clear()


@dataclass(frozen=True)
class Attacked:
    """A vault with rows in every signed table, and those that it had before its newest records."""

    vault: Vault
    attacker: Attacker
    older: Mapping[str, list[Row]]  # by table
    rows: Mapping[str, list[Row]]  # those that it has now
    last: int  # the audit record after which they changed

    def problems(self) -> list[str]:
        """What `audit verify` finds; a manager's verification must find the same."""
        found = self.attempt(lambda: self.vault.audit.verify().problems)
        about_rows = {each for each in found if each.startswith(OF_ROWS) and "do not open" not in each}
        running = self.vault.verification()

        def verify_all() -> tuple[str, ...]:
            running.verify_new_records(lambda: False)
            running.verify_rows(lambda: False)
            return running.result.problems

        assert about_rows <= set(self.attempt(verify_all))
        return found

    @staticmethod
    def attempt(verify: Any) -> list[str]:
        try:
            return list(verify())
        except IntegrityError as error:
            return [error.message]


def key_of(table: SignedTable, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in table.key)


def key_text(table: SignedTable, row: Row) -> str:
    return "/".join(str(each.hex() if isinstance(each, bytes) else each) for each in key_of(table, row))


def named(table: SignedTable, row: Row) -> str:
    """How a problem begins that is about this row."""
    return f"{table.name}: {table.describe(table.row_type(**row))} "


def other_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    return value + 100 if isinstance(value, int) else f"{value or ''}x"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def new_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], str]]:
    """Makes databases, and returns their URLs."""
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    made: list[str] = []

    def make() -> str:
        if server is None:
            return f"sqlite:///{tmp_path_factory.mktemp('attacked') / 'vault.db'}"
        made.append(server.new_database())
        return str(server.url(made[-1]))

    yield make
    for name in made:
        server.drop(name)


@pytest.fixture(scope="module")
def shared(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """For the attacks that can be undone."""
    with attacked_vault(new_database(), tmp_path_factory.mktemp("home")) as attacked:
        yield attacked


@pytest.fixture(scope="module")
def lasting(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """For the attacks that leave a contradiction in the log."""
    with attacked_vault(new_database(), tmp_path_factory.mktemp("home")) as attacked:
        yield attacked


@contextmanager
def attacked_vault(database: str, home: Path) -> Iterator[Attacked]:
    with open_vault(settings_in(home, database=database)) as vault:
        attacker = Attacker(database)
        lose_a_record(vault, attacker)
        write_every_table(vault)
        older = {table.name: attacker.rows(table) for table in SIGNED_TABLES}
        [(last,)] = attacker.run("SELECT max(seq) FROM audit")
        change_every_table(vault)
        vault.sign_head()
        rows = {table.name: attacker.rows(table) for table in SIGNED_TABLES}
        yield Attacked(vault, attacker, older, rows, last)


@pytest.fixture
def attacked(shared: Attacked) -> Iterator[Attacked]:
    """The vault, of which all rows are restored after the test."""
    yield shared
    shared.attacker.undo(shared.rows)


def lose_a_record(vault: Vault, attacker: Attacker) -> None:
    """A standby took over without the newest record; that begins an epoch."""
    vault.secrets.writer.set("lost", SecretValue(b"value"), actor="ada")
    for table in ("secret_versions", "secrets"):
        attacker.run(f"DELETE FROM {table}")
    attacker.run("DELETE FROM audit WHERE seq > 1")
    attacker.run("DELETE FROM checkpoints WHERE seq > 1")
    vault.lost_records.accept(actor="ada")


def write_every_table(vault: Vault) -> None:
    team = vault.teams.all()[0].id
    person, _ = vault.people.create_first("ada@example.com", PASSWORD, actor="setup")
    invited, _ = vault.invitations.invite("bob@example.com", role="member", team_ids=[team], actor="ada")
    vault.teams.add_member(vault.teams.create("other", actor="ada").id, invited.id, actor="ada")
    vault.invitations.invite(CARL, role="member", team_ids=[team], actor="ada")
    for _ in range(2):
        vault.sessions.sign_in(person.email, PASSWORD)
    vault.access_keys.create(person.id, "second", scopes=["secrets:read"], gives=["*"], actor="ada")
    vault.issuers.add(new_issuer(ISSUER, f"{ISSUER}/keys"), actor="ada")
    deployment, *_ = vault.deployments.register(team, "model", ["plain"], actor="ada")
    for name, maker in (("first", "ada"), ("second", CARL)):
        vault.identities.add(
            name,
            IdentityRule(issuer=ISSUER, audience="gusset", subject=name, claims={}),
            deployment=deployment.id,
            new_issuer=new_issuer(ISSUER, f"{ISSUER}/keys"),
            may_add_issuer=True,
            actor=maker,
        )
    writer, rotations = vault.secrets.writer, vault.provider_rotations_of(team, "default")
    for name in ("plain", "db", "deleted", "twice"):
        writer.set(name, SecretValue(b"first value"), actor="ada")
    writer.annotate("plain", note="a note", rotate_every=HOUR, actor="ada")
    writer.set("twice", SecretValue(b"second value"), overlap=HOUR, actor="ada")
    rotations.begin("db", holder="h", actor="ada", current_handle="key-1")
    rotations.set("db", SecretValue(b"second"), handle="key-2", overlap=HOUR, holder="h", actor="ada")


def change_every_table(vault: Vault) -> None:
    """Change or remove a row of each table, except of those that are written once."""
    team, other = vault.teams.all()
    ada, bob, _ = vault.people.all()
    vault.people.update(bob.id, role="admin", actor="ada")
    vault.teams.remove_member(other.id, bob.id, actor="ada")
    vault.sessions.change_password(ada, PASSWORD, PASSWORD, keep="none", actor="ada")
    vault.sessions.sign_in(ada.email, PASSWORD)
    for key in vault.access_keys.of_user(ada.id)[:1]:
        vault.access_keys.revoke(key.prefix, actor="ada", allowed=lambda _: True)
    vault.deployments.register(team.id, "model", ["plain", "db"], actor="ada")
    vault.issuers.add(new_issuer(ISSUER), replace=True, actor="ada")
    vault.identities.remove(team.id, "second", actor="ada")
    writer, rotations = vault.secrets.writer, vault.provider_rotations_of(team.id, team.name)
    writer.annotate("plain", note="another note", rotate_every=2 * HOUR, actor="ada")
    writer.delete("deleted", actor="ada")
    writer.destroy("twice", [1], actor="ada")
    rotations.advance("db", Step.USE, holder="h", actor="ada")
    rotations.advance("db", Step.REVOKE, holder="h", actor="ada")
    rotations.revoked("db", "key-1", holder="h", actor="ada")


every_table = pytest.mark.parametrize("table", SIGNED_TABLES, ids=lambda table: table.name)


@every_table
def test_a_sound_vault_has_rows_in_every_signed_table(attacked: Attacked, table: SignedTable) -> None:
    """Else the tests below would pass without a look. Of those that change, there is an older state."""
    rows = attacked.rows[table.name]
    assert rows and attacked.problems() == []
    assert (rows == attacked.older[table.name]) is (table.name in WRITTEN_ONCE)


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column) for table in SIGNED_TABLES for column in (*table.columns, "changed_seq", "mac")],
    ids=lambda each: each.name if isinstance(each, SignedTable) else each,
)
def test_a_changed_column_is_named(attacked: Attacked, table: SignedTable, column: str) -> None:
    """Every column with authority or meaning is covered, the key as well."""
    rows = attacked.rows[table.name]
    row = next((each for each in rows if each[column] is not None), rows[0])
    changed = {**row, column: other_value(row[column])}
    attacked.attacker.remove(table, row)
    attacked.attacker.insert(table, changed)

    problems = attacked.problems()

    if table is EPOCHS and column == "number":  # nothing can be verified by such an epoch
        assert problems == [f"the epoch {changed[column]} was altered in the database: it is not used"]
    elif column in table.key:
        assert (
            f"{named(table, changed)}is in the database, but no record says that it was written" in problems
        )
        assert any(each.startswith(f"{table.name}: the row {key_text(table, row)} of") for each in problems)
    else:
        assert any(each.startswith(f"{named(table, changed)}was altered after record") for each in problems)


@every_table
def test_an_inserted_row_is_named(attacked: Attacked, table: SignedTable) -> None:
    """A copy of a row with another key has no valid HMAC, and no record."""
    row = attacked.rows[table.name][0]
    others = {name: other_value(row[name]) for name in (table.key[-1], UNIQUE.get(table.name, table.key[-1]))}
    attacked.attacker.insert(table, row | others)

    problems = attacked.problems()

    if table is EPOCHS:  # nothing can be verified by such an epoch
        assert problems == [f"the epoch {others['number']} was altered in the database: it is not used"]
    else:
        assert problems[0] == (
            f"{named(table, row | others)}is in the database, but no record says that it was written"
        )


@every_table
def test_a_removed_row_is_named(attacked: Attacked, table: SignedTable) -> None:
    """By its key: the log has it, and the record that wrote it."""
    row = attacked.rows[table.name][0]
    attacked.attacker.remove(table, row)
    text = f"{table.name}: the row {key_text(table, row)} of record {row['changed_seq']} "
    assert [each for each in attacked.problems() if each.startswith(text) and each.endswith(" is missing")]


@pytest.mark.parametrize(
    "table", [each for each in SIGNED_TABLES if each.name not in WRITTEN_ONCE], ids=lambda table: table.name
)
def test_a_row_that_was_rolled_back_is_named(attacked: Attacked, table: SignedTable) -> None:
    """With the HMAC that it had: a row that was changed since, and one that was removed."""
    now = {key_of(table, row): row for row in attacked.rows[table.name]}
    older = [row for row in attacked.older[table.name] if now.get(key_of(table, row)) != row]
    attacked.attacker.put(table, attacked.older[table.name])

    problems = attacked.problems()

    for row in older:
        if key_of(table, row) in now:
            begin = f"{named(table, row)}was rolled back to its state of record {row['changed_seq']}; record "
        else:
            begin = f"{named(table, row)}was removed by record "
        assert [each for each in problems if each.startswith(begin)], (begin, problems)


@pytest.fixture
def cut_short(attacked: Attacked) -> Iterator[Attacked]:
    """The vault without its newest audit records and their checkpoints, which are restored after the test."""
    attacker, removed = attacked.attacker, {}
    for table in ("audit", "checkpoints"):
        removed[table] = attacker.run(f"SELECT * FROM {table} WHERE seq > ?", attacked.last)
        attacker.run(f"DELETE FROM {table} WHERE seq > ?", attacked.last)
    yield attacked
    for table, rows in removed.items():
        for row in rows:
            attacker.run(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)


def test_rows_of_removed_records_are_named(cut_short: Attacked) -> None:
    """Each row that they wrote or removed, in every table; and the witness file names what was cut off."""
    problems = cut_short.problems()

    assert [each for each in problems if "audit.witness: the log had" in each]
    for table in SIGNED_TABLES:
        now = {key_of(table, row): row for row in cut_short.rows[table.name]}
        for row in now.values():
            text = f"{named(table, row)}was written by record {row['changed_seq']}, but the log has no record of that"
            assert (text in problems) is (row["changed_seq"] > cut_short.last)
        for row in cut_short.older[table.name]:
            if key_of(table, row) not in now:
                begin = f"{table.name}: the row {key_text(table, row)} of record {row['changed_seq']} "
                assert [each for each in problems if each.startswith(begin) and each.endswith("is missing")]


@every_table
def test_older_rows_without_the_newer_records_are_named_by_the_witness_file(
    cut_short: Attacked, table: SignedTable
) -> None:
    """A table that was rolled back agrees with what is left of the log: the witness file names the records."""
    cut_short.attacker.put(table, cut_short.older[table.name])

    problems = cut_short.problems()

    assert not [each for each in problems if each.startswith(f"{table.name}: ")]
    assert [each for each in problems if "audit.witness: the log had" in each]


def change_again(vault: Vault, table: SignedTable) -> None:
    """Change the row of `table` that `change_every_table` has changed or removed, and that was put back."""
    team = vault.teams.all()[0]
    ada, bob, carl = vault.people.all()
    writer, rotations = vault.secrets.writer, vault.provider_rotations_of(team.id, team.name)
    if table is USERS:
        vault.people.update(bob.id, role="admin", actor="ada")
    elif table is DEPLOYMENTS:
        vault.deployments.register(team.id, "model", ["plain", "db"], actor="ada")
    elif table is ACCESS_KEYS:
        for key in vault.access_keys.of_user(ada.id):
            vault.access_keys.revoke(key.prefix, actor="ada", allowed=lambda _: True)
    elif table is ISSUERS:
        vault.issuers.add(new_issuer(ISSUER), replace=True, actor="ada")
    elif table is IDENTITIES:
        vault.people.update(carl.id, disabled=True, tokens="pass", actor="ada")
    elif table is SECRETS:
        writer.annotate("plain", note="yet another note", actor="ada")
    elif table is SECRET_VERSIONS:
        vault.key_rotation.rotate(actor="ada")
    elif table is OVERLAPS:
        writer.set("twice", SecretValue(b"third value"), overlap=HOUR, actor="ada")
    elif table is ROTATIONS:
        rotations.advance("db", Step.USE, holder="h", actor="ada")
        rotations.advance("db", Step.REVOKE, holder="h", actor="ada")
    elif table is CREDENTIALS:
        rotations.revoked("db", "key-1", holder="h", actor="ada")
    elif table is SCHEDULES:
        writer.annotate("plain", rotate_every=3 * HOUR, actor="ada")


@pytest.mark.parametrize(
    "table", [each for each in SIGNED_TABLES if each.name not in NEVER_CHANGED], ids=lambda table: table.name
)
@pytest.mark.slow
def test_an_act_on_a_row_that_was_rolled_back_is_named(lasting: Attacked, table: SignedTable) -> None:
    """It signs the older state anew, so that row and newest record agree: the record of the act shows it."""
    now = {key_of(table, row): row for row in lasting.rows[table.name]}
    older = [row for row in lasting.older[table.name] if now.get(key_of(table, row)) != row]
    for row in older:
        lasting.attacker.remove(table, row)
        lasting.attacker.insert(table, row)
    [(last,)] = lasting.attacker.run("SELECT max(seq) FROM audit")

    change_again(lasting.vault, table)

    keys = "|".join(re.escape(key_text(table, row)) for row in older)
    ends = "had written it: it had been rolled back to an older state|had removed it: it had been put back"
    named = re.compile(
        rf"{table.name}: record (\d+) \(.+\) changed the row ({keys})(, which was not as|, but) record \d+ \(.+\) ({ends})"
    )
    found = [match for each in lasting.problems() if (match := named.fullmatch(each))]
    assert found and all(int(match[1]) > last for match in found)


def test_a_row_that_is_added_over_a_removed_one_is_named(lasting: Attacked) -> None:
    """As a membership that was removed behind the log's back, and then given again."""
    row = lasting.rows[MEMBERS.name][0]
    lasting.attacker.remove(MEMBERS, row)

    lasting.vault.teams.add_member(row["team_id"], row["user_id"], actor="ada")

    [(last,)] = lasting.attacker.run("SELECT max(seq) FROM audit")
    begin = f"members: record {last} (team.add_member "
    [found] = [each for each in lasting.problems() if each.startswith(begin)]
    assert f" added the row {key_text(MEMBERS, row)}, but record " in found
    assert found.endswith("had written it: it had been removed")
