"""Moving a vault between SQLite and PostgreSQL, in both directions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gusset.errors import IntegrityError, UsageError, VaultError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, database_move, open_vault
from gusset.vault.database_move import TABLES, move_vault
from gusset.vault.services.identity_rules import IdentityRule
from gusset.vault.services.issuers import new_issuer
from gusset.vault.storage.database import open_database
from tests.vault.conftest import run_sql


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """Settings of a closed vault with a secret of two versions, and an identity."""
    with open_vault(settings) as vault:
        for value in (b"old", b"\x00new\xff"):
            vault.secrets.writer.set("x", SecretValue(value), actor="älice")
        add_identity(vault)
    return settings


def add_identity(vault: Vault) -> None:
    deployment = vault.deployments.register(vault.teams.all()[0].id, "d", ["x"], actor="älice")[0]
    url = "https://issuer.example"
    vault.identities.add(
        "i",
        IdentityRule(issuer=url, audience="gusset", subject="s", claims={"/ref": "main"}),
        deployment=deployment.id,
        new_issuer=new_issuer(url),
        may_add_issuer=True,
        actor="älice",
    )


@pytest.fixture
def target(filled: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An empty database of the other kind."""
    if filled.database.startswith("postgresql:"):
        return f"sqlite:///{tmp_path / 'moved' / 'vault.db'}"
    make: Callable[[], str] = request.getfixturevalue("new_database")
    return make()


def test_a_moved_vault_has_everything_and_is_used_on(filled: Settings, target: str) -> None:
    """The chain has the same head, values are delivered, and the next write extends it."""
    with open_vault(filled) as vault:
        before = vault.audit.verify()
    move = move_vault(filled, filled.database, target)
    assert (move.records, move.head) == (before.records, str(before.head))
    for table in TABLES:
        count = f"SELECT count(*) FROM {table}"
        assert run_sql(target, count) == run_sql(filled.database, count), table
    with open_vault(replace(filled, database=target), create=False) as vault:
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
    """A second move is refused too; the first one stays."""
    move_vault(filled, filled.database, target)
    with pytest.raises(VaultError, match="is not empty"):
        move_vault(filled, filled.database, target)
    with pytest.raises(UsageError, match="same database"):
        move_vault(filled, filled.database, filled.database)


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


_KILLED = """
import os, signal, sys
from gusset.settings import Settings
from gusset.vault import database_move
copy = database_move._copy_table
def killed(table, *connections):
    if table == list(database_move.TABLES)[-1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(table, *connections)
database_move._copy_table = killed
database_move.move_vault(Settings.load(os.environ), *sys.argv[1:])
"""


def test_a_killed_move_leaves_no_vault_and_can_be_repeated(filled: Settings, target: str) -> None:
    environment = os.environ | {
        "GUSSET_HOME": str(filled.home),
        "GUSSET_ROOT_KEY_FILE": str(filled.root_key_file),
    }
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, filled.database, target], env=environment, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    time.sleep(0.1)  # the server rolls back when it sees the connection end
    with (
        pytest.raises(VaultError, match="there is no vault"),
        open_vault(replace(filled, database=target), create=False),
    ):
        pass
    move_vault(filled, filled.database, target)


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
