"""A newest audit record that no process of the vault wrote: nothing is added to it, and nobody signs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gusset.errors import IntegrityError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.crypto.keyring import AUDIT
from tests.vault.conftest import Sql, settings_in

COLUMNS = "at, actor, action, target, outcome, details, changes"
ANY_HASH = b"1" * 32


def write(vault: Vault, name: str = "x") -> None:
    vault.secrets.writer.set(name, SecretValue(b"value"), actor="ada")


def deliver(vault: Vault) -> None:
    vault.secrets.delivery.deliver(["x"], actor="model", deployment="model")


def newest(sql: Sql) -> int:
    [(seq,)] = sql("SELECT max(seq) FROM audit")
    return int(seq)


def add_record(sql: Sql, seq: int, hash: bytes = ANY_HASH, mac: bytes = ANY_HASH) -> None:
    """A record with the texts of the newest one."""
    sql(
        f"INSERT INTO audit (seq, {COLUMNS}, hash, mac) SELECT ?, {COLUMNS}, ?, ? FROM audit WHERE seq = ?",
        seq,
        hash,
        mac,
        newest(sql),
    )


def signed(settings: Settings, sql: Sql) -> tuple[object, object]:
    """What could show that a checkpoint was made: those in the database, and the witness file."""
    return sql("SELECT * FROM checkpoints ORDER BY seq"), settings.witness_file.read_bytes()


@pytest.fixture
def running(vault: Vault) -> Vault:
    """A vault whose newest record is signed."""
    write(vault)
    vault.sign_head()
    return vault


@pytest.mark.parametrize("place", ["next", "later", "last"])
@pytest.mark.parametrize("act", [write, deliver, Vault.sign_head])
@pytest.mark.slow
def test_a_forged_newest_record_is_neither_extended_nor_signed(
    settings: Settings, running: Vault, sql: Sql, place: str, act: Callable[[Vault], None]
) -> None:
    """By a running process, and by one that starts; once the record is removed, all goes on."""
    seq = {"next": newest(sql) + 1, "later": newest(sql) + 1000, "last": 2**63 - 1}[place]
    add_record(sql, seq)
    before = signed(settings, sql)

    with open_vault(settings) as starting:
        for vault in (running, starting):
            with pytest.raises(IntegrityError, match=f"the newest record of the audit log, {seq}, "):
                act(vault)
        assert signed(settings, sql) == before and newest(sql) == seq
        sql("DELETE FROM audit WHERE seq = ?", seq)
        for vault in (running, starting):
            act(vault)
            write(vault)

    assert running.audit.verify().problems == ()


def test_a_copy_of_the_newest_record_is_not_its_successor(running: Vault, sql: Sql) -> None:
    """Its hash and HMAC are right for the number that it had."""
    [(hashed, mac)] = sql("SELECT hash, mac FROM audit WHERE seq = ?", newest(sql))
    seq = newest(sql) + 1
    add_record(sql, seq, hashed, mac)
    with pytest.raises(IntegrityError, match="the newest record of the audit log"):
        write(running)
    sql("DELETE FROM audit WHERE seq = ?", seq)


def test_a_forged_record_with_a_forged_checkpoint_gets_into_no_witness_file(
    settings: Settings, running: Vault, sql: Sql
) -> None:
    """A process believes that another one has signed the record."""
    seq = newest(sql) + 1
    add_record(sql, seq)
    names = "at, hash, signature, signing_key, keyring, epoch"
    sql(
        f"INSERT INTO checkpoints (seq, {names}) SELECT ?, {names} FROM checkpoints WHERE seq = ?",
        seq,
        seq - 1,
    )
    before = signed(settings, sql)

    with pytest.raises(IntegrityError, match="the newest record of the audit log"):
        running.sign_head()

    assert signed(settings, sql) == before
    for table in ("audit", "checkpoints"):
        sql(f"DELETE FROM {table} WHERE seq = ?", seq)


@pytest.mark.parametrize("of", ["running", "starting"])
def test_a_newest_record_without_a_hash_is_named(
    settings: Settings, running: Vault, sql: Sql, database: str, of: str
) -> None:
    """A text in SQLite's column, nothing in PostgreSQL's."""
    seq = newest(sql)
    [(right,)] = sql("SELECT hash FROM audit WHERE seq = ?", seq)
    if database.startswith("sqlite"):
        sql("UPDATE audit SET hash = 'x' WHERE seq = ?", seq)
    else:
        sql("ALTER TABLE audit ALTER COLUMN hash DROP NOT NULL")
        sql("UPDATE audit SET hash = NULL WHERE seq = ?", seq)
    if of == "starting":
        settings.witness_file.unlink()
    with open_vault(settings) as starting:
        vault = running if of == "running" else starting
        acts: list[Callable[[Vault], object]] = [
            write,
            Vault.sign_head,
            lambda vault: vault.lost_records.accept(actor="ada"),
        ]
        for act in acts:
            with pytest.raises(IntegrityError, match=f"record {seq} of the audit log has no valid hash"):
                act(vault)
        sql("UPDATE audit SET hash = ? WHERE seq = ?", right, seq)
        write(vault)


def test_a_loss_is_not_accepted_before_a_forged_record_is_removed(running: Vault, sql: Sql) -> None:
    """The new epoch would begin after it."""
    write(running, "lost")
    lost = newest(sql)
    for table in ("secret_versions", "secrets"):
        sql(f"DELETE FROM {table} WHERE changed_seq = ?", lost)
    sql("DELETE FROM audit WHERE seq = ?", lost)
    add_record(sql, lost + 1000)
    with pytest.raises(IntegrityError, match="the newest record of the audit log"):
        running.lost_records.accept(actor="ada")

    sql("DELETE FROM audit WHERE seq = ?", lost + 1000)
    running.lost_records.accept(actor="ada")
    write(running)


def test_a_record_under_a_key_that_another_process_has_replaced_is_the_newest(
    settings: Settings, running: Vault, sql: Sql, tmp_path: Path
) -> None:
    """The newest record has the HMAC of the key that was valid for it: the new one, and before it the old one."""
    witness = settings_in(
        settings.home,
        database=settings.database,
        root_key_file=settings.root_key_file,
        witness_file=tmp_path / "other.witness",
    )
    with open_vault(witness) as other:
        other.key_rotation.rotate([AUDIT], actor="ada")
        write(running)
        write(other)
    witness.witness_file.unlink()
    with open_vault(witness) as other:
        running.key_rotation.rotate([AUDIT], actor="ada")
        other.sign_head()
        write(other)
    assert running.audit.verify().problems == ()
