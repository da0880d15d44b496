"""One rotation of keys at a time over all processes that use a PostgreSQL database, also where the lock is lost."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gusset.errors import Conflict, Unreachable
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.crypto.root_key_sources import write_pending
from gusset.vault.services import root_key_rotation
from gusset.vault.services.root_key_rotation import RootKeyRotation
from gusset.vault.storage.postgres import Postgres
from tests.serving.conftest import eventually
from tests.vault.conftest import Sql

ROTATIONS: dict[str, Callable[[Vault], object]] = {
    "keys": lambda vault: vault.key_rotation.rotate(actor="alice"),
    "root key": lambda vault: vault.root_key_rotation.rotate(actor="alice"),
}
SESSION_LOCKS = "FROM pg_locks JOIN pg_database d ON d.oid = database WHERE datname = current_database() "
SESSION_LOCKS += "AND locktype = 'advisory' AND mode = 'ExclusiveLock'"


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def vault(settings: Settings) -> Iterator[Vault]:
    with open_vault(settings) as opened:
        opened.secrets.writer.set("x", SecretValue(b"kept"), actor="alice")
        yield opened


@pytest.fixture
def other(settings: Settings, vault: Vault, tmp_path: Path) -> Iterator[Vault]:
    """The same vault as a process on another machine has it open, with its own copy of the root key."""
    file = tmp_path / "there.key"
    file.write_bytes(settings.root_key_file.read_bytes())
    file.chmod(0o600)
    with open_vault(replace(settings, root_key_file=file, witness_file=tmp_path / "there")) as opened:
        yield opened


def rotations(vault: Vault) -> list[Any]:
    records = vault.audit.show(limit=50)
    return [each for each in records if each.action in ("key.rotate", "key.add_root", "key.rotate_root")]


@pytest.mark.parametrize("what", ROTATIONS)
def test_a_rotation_waits_for_the_one_that_runs(
    settings: Settings, vault: Vault, sql: Sql, what: str
) -> None:
    """It begins when that has ended."""
    thread = threading.Thread(target=ROTATIONS[what], args=(vault,))
    with Postgres(settings.database).exclusive_lock():
        thread.start()
        eventually(lambda: sql(f"SELECT count(*) {SESSION_LOCKS} AND NOT granted") == [(1,)])
        assert rotations(vault) == []
    thread.join()
    assert len(rotations(vault)) == 1


@pytest.mark.parametrize("what", ROTATIONS)
def test_a_rotation_whose_wait_ends_says_so_in_words(
    settings: Settings, vault: Vault, sql: Sql, what: str
) -> None:
    """Such as when the database is stopped meanwhile: it is out of reach, and nothing was changed."""
    failures: list[BaseException] = []

    def rotate() -> None:
        try:
            ROTATIONS[what](vault)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=rotate)
    with Postgres(settings.database).exclusive_lock():
        thread.start()
        waiting = f"{SESSION_LOCKS} AND NOT granted"
        eventually(lambda: sql(f"SELECT count(pg_terminate_backend(pid)) {waiting}") == [(1,)])
        thread.join()
    assert [type(each) for each in failures] == [Unreachable]
    assert rotations(vault) == []


def lose_lock_and_rotate(sql: Sql, other: Vault) -> None:
    """End the session that holds the lock, as a restart does; another process then replaces the root key."""
    assert sql(f"SELECT count(pg_terminate_backend(pid, 5000)) {SESSION_LOCKS} AND granted") == [(1,)]
    other.root_key_rotation.rotate(actor="bob")


def test_replacements_of_the_root_key_never_interleave(
    settings: Settings, vault: Vault, other: Vault, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two have begun, since the lock was lost: one is refused, and the other's new root key opens the vault."""

    def write_late(*args: Any) -> Path:
        monkeypatch.undo()
        lose_lock_and_rotate(sql, other)
        return write_pending(*args)

    monkeypatch.setattr(root_key_rotation, "write_pending", write_late)
    with pytest.raises(Conflict, match="is being replaced"):
        vault.root_key_rotation.rotate(actor="alice")
    replaced_by_the_other(settings, other)


def test_a_rotation_of_keys_does_not_run_into_a_replacement_of_the_root_key(
    settings: Settings, vault: Vault, other: Vault, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new root key would lack the new keys."""
    finish_interrupted = RootKeyRotation.finish_interrupted

    def finish_early(self: RootKeyRotation, *, actor: str) -> bool:
        monkeypatch.undo()
        finished = finish_interrupted(self, actor=actor)
        lose_lock_and_rotate(sql, other)
        return finished

    monkeypatch.setattr(RootKeyRotation, "finish_interrupted", finish_early)
    with pytest.raises(Conflict, match="is being replaced"):
        vault.key_rotation.rotate(actor="alice")
    replaced_by_the_other(settings, other)


def replaced_by_the_other(settings: Settings, other: Vault) -> None:
    """The replacement that the other process has begun can be finished, and the vault is whole."""
    other.root_key_rotation.finish(actor="bob")
    shutil.copy(other._parts.settings.root_key_file, settings.root_key_file)
    assert other.root_key_rotation.unfinished is None
    assert other.secrets.delivery.reveal("x", actor="bob").reveal() == b"kept"
    assert other.audit.verify().problems == ()
    actions = [(each.actor, each.action, each.outcome) for each in rotations(other)]
    assert ("bob", "key.rotate_root", "ok") in actions
    assert [outcome for actor, _, outcome in actions if actor == "alice"] == ["conflict"]
