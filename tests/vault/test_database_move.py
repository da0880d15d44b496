"""Moving a vault between SQLite and PostgreSQL, in both directions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from gusset.errors import IntegrityError, UsageError, VaultError
from gusset.secrets.hits import Hit
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, database_move, open_vault
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.writer import WriteResult
from gusset.vault.database_move import TABLES, move_vault
from gusset.vault.services.idempotency import RequestId
from gusset.vault.services.identity_rules import IdentityRule
from gusset.vault.services.issuers import new_issuer
from gusset.vault.services.password_attempts import AttemptLimit, PasswordAttempt
from gusset.vault.storage.connection import Transaction
from gusset.vault.storage.database import open_database
from gusset.vault.storage.sql import Statement
from tests.serving.conftest import eventually
from tests.vault.conftest import OlderCopy, run_sql

PASSWORD = SecretValue(b"correct horse battery staple")


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """Settings of a closed vault with a secret of two versions."""
    with open_vault(settings) as vault:
        for value in (b"old", b"\x00new\xff"):
            vault.secrets.writer.set("x", SecretValue(value), actor="älice")
    return settings


@pytest.fixture
def full(filled: Settings, older_copy: OlderCopy) -> Settings:
    """The same, with rows in every table."""
    older_copy.save()
    with open_vault(filled) as vault:
        vault.secrets.writer.set("lost", SecretValue(b"lost"), actor="älice")
    older_copy.restore()
    with open_vault(filled) as vault:
        vault.lost_records.accept(actor="älice")
        vault.secrets.writer.set("z", SecretValue(b"v"), actor="älice", note="ÿ")
        vault.secrets.writer.set("z", SecretValue(b"w"), actor="älice", overlap=timedelta(hours=1))
        add_person(vault)
        add_deployment(vault)
        add_rotation(vault)
        add_request(vault)
        vault.managers.report("host")
    return filled


def add_person(vault: Vault) -> None:
    """With a key, a session, and a wrong password."""
    vault.people.create_first("älice@example.com", PASSWORD, actor="älice")
    vault.sessions.sign_in("älice@example.com", PASSWORD)
    vault.password_attempts.take([PasswordAttempt(AttemptLimit(name="a", burst=5, seconds=60), "client")])


def add_deployment(vault: Vault) -> None:
    """With a token, an identity of an issuer, a replica, and a value that was masked."""
    team = vault.teams.all()[0]
    deployment, token, _ = vault.deployments.register(team.id, "d", ["x"], actor="älice")
    url = "https://issuer.example"
    vault.identities.add(
        "i",
        IdentityRule(issuer=url, audience="gusset", subject="s", claims={"/ref": "main"}),
        deployment=deployment.id,
        new_issuer=new_issuer(url),
        may_add_issuer=True,
        actor="älice",
    )
    grant = vault.deployments.grant(token)

    def write(transaction: Transaction) -> WriteResult[str]:
        return WriteResult(vault.leases.begin(transaction, grant, {"x": 2}), [])

    vault._parts.writer.run(AuditEvent("d", Action.REPLICA_REPORT, "d"), write)
    vault.source(actor="älice", deployment="d").record_hits({Hit("x", "hex", "log"): 2})


def add_rotation(vault: Vault) -> None:
    """An unfinished one, of a secret with a schedule, by a program that knows its credential."""
    vault.secrets.writer.set("db", SecretValue(b"v"), actor="älice")
    vault.secrets.writer.annotate("db", actor="älice", rotate_every=timedelta(days=30))
    team = vault.teams.all()[0]
    rotations = vault.provider_rotations_of(team.id, team.name)
    rotations.begin("db", holder="h", actor="älice", current_handle="key-1")


def add_request(vault: Vault) -> None:
    """One that could be repeated."""
    request = RequestId(caller="c", route="PUT /v1/secrets/y", key="k")
    once = vault.with_writer(vault.idempotency.writer(request, vault.idempotency.digest(b"body")))
    once.secrets.writer.set("y", SecretValue(b"v"), actor="älice")
    vault.idempotency.keep_response(request, {})


def all_rows(url: str) -> dict[str, list[dict[str, object]]]:
    """Every row of every table, with the names of columns."""
    database = open_database(url)
    found: dict[str, list[dict[str, object]]] = {}
    with closing(database.connect()) as driver:
        for table, key in TABLES.items():
            query = Statement(f"SELECT * FROM {table} ORDER BY {', '.join(key)}")
            database.begin_snapshot(driver)
            found[table] = [
                dict(zip([column[0] for column in description], row, strict=True))
                for rows, description in database.pieces(driver, query, ())
                for row in rows
            ]
            driver.rollback()
    return found


@pytest.fixture
def target(filled: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An empty database of the other kind."""
    if filled.database.startswith("postgresql:"):
        return f"sqlite:///{tmp_path / 'moved' / 'vault.db'}"
    make: Callable[[], str] = request.getfixturevalue("new_database")
    return make()


def test_a_moved_vault_has_everything_and_is_used_on(full: Settings, target: str) -> None:
    """The chain has the same head, values are delivered, and the next write extends it."""
    with open_vault(full) as vault:
        before = vault.audit.verify()
    move = move_vault(full, full.database, target)
    assert (move.records, move.head) == (before.records, str(before.head))
    rows = all_rows(full.database)
    assert [table for table in TABLES if not rows[table]] == []
    assert all_rows(target) == rows
    assert move.rows == sum(map(len, rows.values()))
    with open_vault(replace(full, database=target), create=False) as vault:
        assert vault.secrets.delivery.reveal("x", actor="a").reveal() == b"\x00new\xff"
        vault.secrets.writer.set("y", SecretValue(b"more"), actor="a")
        assert not vault.audit.verify().problems


def test_every_table_of_the_database_is_copied(filled: Settings) -> None:
    """The list has the tables of the newest schema, with their primary keys' columns."""
    database = open_database(filled.database)
    with closing(database.connect()) as driver:
        assert set(database.tables(driver)) == {*TABLES, "alembic_version"}


def test_a_table_that_would_be_forgotten_is_refused(filled: Settings, target: str) -> None:
    run_sql(filled.database, "CREATE TABLE unknown_rows (id INTEGER)")
    with pytest.raises(IntegrityError, match="unknown_rows"):
        move_vault(filled, filled.database, target)


def test_a_vault_in_use_is_not_moved(filled: Settings, target: str) -> None:
    """An open vault is enough: its process could write to the old database afterwards."""
    with open_vault(filled) as vault:
        vault.secrets.reader.list()
        with pytest.raises(VaultError, match="another process uses"):
            move_vault(filled, filled.database, target)
    move_vault(filled, filled.database, target)


def test_a_database_that_is_not_empty_is_refused(filled: Settings, target: str) -> None:
    move_vault(filled, filled.database, target)
    before = all_rows(target)
    with open_vault(filled) as vault:
        vault.secrets.writer.set("x", SecretValue(b"newer"), actor="älice")
    with pytest.raises(VaultError, match="is not empty"):  # it has the same vault, but an older one
        move_vault(filled, filled.database, target)
    assert all_rows(target) == before
    with pytest.raises(UsageError, match="same database"):
        move_vault(filled, filled.database, filled.database)


def test_a_moved_vault_that_is_used_already_is_not_taken_for_the_copy(filled: Settings, target: str) -> None:
    """Whoever moves again would believe that both are the same."""
    move_vault(filled, filled.database, target)
    with open_vault(replace(filled, database=target)) as vault:
        vault.managers.report("another host")  # no audit record tells of it
    with pytest.raises(VaultError, match="is not empty"):
        move_vault(filled, filled.database, target)


def test_an_altered_vault_is_not_moved(filled: Settings, target: str) -> None:
    run_sql(filled.database, "UPDATE audit SET actor = 'eve' WHERE seq = 2")
    with pytest.raises(IntegrityError, match="was not moved"):
        move_vault(filled, filled.database, target)


def test_a_failed_move_leaves_no_vault_and_can_be_repeated(
    filled: Settings, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails at the last table, when all others are filled."""
    copy = database_move._copy_table

    def failing(table: str, *connections: object) -> int:
        if table == list(TABLES)[-1]:
            raise VaultError("stopped")
        return copy(table, *connections)  # type: ignore[arg-type]

    monkeypatch.setattr(database_move, "_copy_table", failing)
    with pytest.raises(VaultError, match="stopped"):
        move_vault(filled, filled.database, target)
    monkeypatch.undo()
    with (
        pytest.raises(VaultError, match="there is no vault"),
        open_vault(replace(filled, database=target), create=False),
    ):
        pass
    move_vault(filled, filled.database, target)


# Dies when a function of the module is called with an argument that begins with the text that is given.
_KILLED = """
import os, signal, sys
from gusset.settings import Settings
from gusset.vault import database_move
name, begin = sys.argv[1:3]
function = getattr(database_move, name)
def killed(*arguments):
    if any(isinstance(each, str) and each.startswith(begin) for each in arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)
setattr(database_move, name, killed)
database_move.move_vault(Settings.load(os.environ), *sys.argv[3:])
"""


def move_killed(settings: Settings, target: str, function: str, argument: str) -> None:
    """Move the vault in a process that is killed when `function` is called with that argument."""
    words = [function, argument, settings.database, target]
    environ = {"GUSSET_HOME": str(settings.home), "GUSSET_ROOT_KEY_FILE": str(settings.root_key_file)}
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, *words], env=os.environ | environ, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL


def sessions_of_others(url: str) -> int:
    """How many other connections a database on a server has."""
    if url.startswith("sqlite:"):
        return 0
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(url) as connection:
        [[count]] = connection.execute(query).fetchall()
    return int(count)


def test_a_killed_move_leaves_no_vault_and_can_be_repeated(filled: Settings, target: str) -> None:
    move_killed(filled, target, "_copy_table", list(TABLES)[-1])
    eventually(lambda: sessions_of_others(target) == 0, "the server has seen the connection end")
    with (
        pytest.raises(VaultError, match="there is no vault"),
        open_vault(replace(filled, database=target), create=False),
    ):
        pass
    move_vault(filled, filled.database, target)


def test_a_move_that_is_killed_after_its_commit_is_finished_by_the_next(full: Settings, target: str) -> None:
    """That one finds all rows in the target, and verifies them."""
    move_killed(full, target, "_verify", "the copy is not intact")
    rows = all_rows(target)
    assert rows == all_rows(full.database)
    move = move_vault(full, full.database, target)
    assert (move.rows, move.records) == (sum(map(len, rows.values())), len(rows["audit"]))
    assert all_rows(target) == rows
    run_sql(target, "UPDATE audit SET actor = 'eve' WHERE seq = 2")
    with pytest.raises(VaultError, match="is not empty"):
        move_vault(full, full.database, target)


def test_the_command_moves_a_vault_and_names_what_it_needs(filled: Settings, target: str) -> None:
    """Root key and witness file are named: without them the copy cannot be opened or fully verified."""
    done = _gusset(filled, "--from", filled.database, "--to", target)
    assert done.returncode == 0, done.stderr
    assert "audit records, verified" in done.stdout
    for part in ("GUSSET_DATABASE", "root.key", "audit.witness"):
        assert part in done.stderr


@pytest.mark.sqlite("a URL of PostgreSQL is refused before anything is opened")
def test_a_password_in_an_argument_is_refused(filled: Settings) -> None:
    """The message has the reason, but not the password."""
    done = _gusset(filled, "--from", filled.database, "--to", "postgresql://me:hunter2@db.example.com/vault")
    assert done.returncode == 2
    assert "has a password" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def _gusset(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gusset", "migrate-database", *arguments],
        env=os.environ | {"GUSSET_HOME": str(settings.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
