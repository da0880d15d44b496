"""A database that has lost committed records: nothing is written until an administrator accepts that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gusset.errors import IntegrityError, RecordsLost
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from tests.conftest import Cli
from tests.vault.conftest import OlderCopy, Sql, settings_in


def write(vault: Vault, value: bytes, name: str = "x") -> int | None:
    return vault.secrets.writer.set(name, SecretValue(value), actor="alice").version


def lose_newest(sql: Sql, kept: int) -> None:
    """Remove what records after `kept` did, as a standby that takes over without them has it."""
    for table in ("secret_versions", "secrets", "epochs"):
        sql(f"DELETE FROM {table} WHERE changed_seq > ?", kept)
    sql("DELETE FROM checkpoints WHERE seq > ?", kept)
    sql("DELETE FROM audit WHERE seq > ?", kept)


@pytest.fixture
def older_database(settings: Settings, older_copy: OlderCopy) -> Settings:
    """A vault whose database was replaced by an older copy: the write of version 2, in record 3, is lost."""
    with open_vault(settings) as vault:
        write(vault, b"1")
    older_copy.save()
    with open_vault(settings) as vault:
        write(vault, b"2")
    older_copy.restore()
    return settings


def test_nothing_is_written_to_a_database_that_was_replaced_by_an_older_copy(
    older_database: Settings,
) -> None:
    """The witness file knows a later record: neither writes nor deliveries go on, reads of names do."""
    with open_vault(older_database) as vault:
        with pytest.raises(RecordsLost, match="ends with record 2, but record 3 was committed"):
            write(vault, b"3")
        with pytest.raises(RecordsLost):
            vault.secrets.delivery.deliver(["x"], actor="alice", deployment="model")
        assert [info.name for info in vault.secrets.reader.list()] == ["x"]


def test_a_running_process_notices_that_the_newest_commit_is_lost(vault: Vault, sql: Sql) -> None:
    """Also without a checkpoint of the lost record: the process remembers what it has committed."""
    write(vault, b"1")
    write(vault, b"other", "y")
    lose_newest(sql, 2)
    with pytest.raises(RecordsLost, match="ends with record 2, but record 3 was committed"):
        write(vault, b"2")


def test_a_log_that_went_on_without_the_lost_record_is_noticed(
    settings: Settings, vault: Vault, sql: Sql, tmp_path: Path
) -> None:
    """Another process, which did not know the lost record, has given its number to another one."""
    write(vault, b"1")
    write(vault, b"lost", "y")
    lose_newest(sql, 2)
    with open_vault(settings_with_witness(settings, tmp_path / "other")) as other:
        write(other, b"another", "z")
        write(other, b"another", "z")
    with pytest.raises(RecordsLost, match="record 3 differs from the one that was committed"):
        write(vault, b"2")


def settings_with_witness(settings: Settings, witness: Path) -> Settings:
    return settings_in(
        settings.home,
        database=settings.database,
        root_key_file=settings.root_key_file,
        witness_file=witness,
    )


def test_two_processes_go_on_after_each_other(settings: Settings, tmp_path: Path) -> None:
    """Records of others are no loss."""
    other_settings = settings_with_witness(settings, tmp_path / "other")
    with open_vault(settings) as vault, open_vault(other_settings) as other:
        assert [write(each, b"v") for each in (vault, other, vault, vault, other, other, vault)][-1] == 7
        assert vault.audit.verify(other_settings.witness_file).problems == ()


def test_an_accepted_loss_begins_an_epoch(older_database: Settings) -> None:
    """Writes go on, with version numbers that were never used; the log says what was lost, and verifies."""
    with open_vault(older_database) as vault:
        epoch = vault.lost_records.accept(actor="root")
        assert write(vault, b"3") == 1002
        vault.secrets.delivery.deliver(["x"], actor="alice", deployment="model")
        assert vault.audit.verify().problems == ()
        accepted = vault.audit.show(action="audit.accept_loss")
    details = json.loads(accepted[0].details)
    assert (accepted[0].seq, accepted[0].actor, details["epoch"]) == (3, "root", epoch)
    assert (details["kept"]["seq"], details["lost"]["seq"]) == (2, 3)
    assert len(bytes.fromhex(details["lost"]["hash"])) == 32
    with open_vault(older_database) as vault:
        assert write(vault, b"4") == 1003
        assert vault.audit.verify().problems == ()


def test_a_running_process_goes_on_once_the_loss_is_accepted(
    settings: Settings, vault: Vault, sql: Sql, tmp_path: Path
) -> None:
    """It learns of the new epoch from the database, though it knew records that nobody else did."""
    write(vault, b"1")
    for value in (b"a", b"b", b"c"):
        write(vault, value, "y")
    lose_newest(sql, 2)
    with open_vault(settings_with_witness(settings, tmp_path / "other")) as other:
        assert other.lost_records.find().known is None
        other.lost_records.accept(actor="root")
        write(other, b"2")
    assert vault.secrets.reader.get("x").version == 1002
    assert write(vault, b"3") == 1003
    assert vault.audit.verify().problems == ()


def test_losing_the_new_epoch_too_is_noticed(older_database: Settings, older_copy: OlderCopy) -> None:
    """The accepted loss does not excuse a later one, though that begins with the same record."""
    older_copy.save()
    with open_vault(older_database) as vault:
        first = vault.lost_records.accept(actor="root")
        write(vault, b"3")
    older_copy.restore()
    with open_vault(older_database) as vault:
        with pytest.raises(RecordsLost):
            write(vault, b"4")
        assert vault.lost_records.accept(actor="root") > first
        write(vault, b"4")
        assert vault.audit.verify().problems == ()


def test_a_row_of_a_lost_record_does_not_verify(settings: Settings, vault: Vault, sql: Sql) -> None:
    """It was signed for another epoch: restored, it is refused like any other altered row."""
    write(vault, b"1")
    write(vault, b"2")
    [lost] = sql("SELECT * FROM secrets")
    versions = sql("SELECT * FROM secret_versions WHERE version = 2")
    sql("DELETE FROM secret_versions WHERE version = 2")
    sql("DELETE FROM audit WHERE seq > 2")
    sql("DELETE FROM checkpoints WHERE seq > 2")
    vault.lost_records.accept(actor="root")
    sql("DELETE FROM secrets")
    sql(f"INSERT INTO secrets VALUES ({', '.join('?' * len(lost))})", *lost)
    sql(f"INSERT INTO secret_versions VALUES ({', '.join('?' * len(versions[0]))})", *versions[0])

    with pytest.raises(IntegrityError, match="the secret x was altered"):
        vault.secrets.reader.get("x")
    assert any("the secret x was altered" in problem for problem in vault.audit.verify().problems)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE epochs SET first_seq = first_seq + 1",
        "UPDATE epochs SET number = number + 1",
        "INSERT INTO epochs SELECT number + 1, first_seq, started_at, changed_seq, mac FROM epochs",
    ],
)
def test_a_forged_epoch_is_refused(older_database: Settings, sql: Sql, statement: str) -> None:
    """Nobody can accept a loss without the root key."""
    with open_vault(older_database) as vault:
        vault.lost_records.accept(actor="root")
    sql(statement)
    with pytest.raises(IntegrityError, match=r"the epoch \d+ was altered"), open_vault(older_database):
        pass


def test_a_forged_epoch_stops_the_writes_of_a_running_process(vault: Vault, sql: Sql) -> None:
    """It would decide which rows are valid."""
    write(vault, b"1")
    sql("INSERT INTO epochs (number, first_seq, started_at, changed_seq, mac) VALUES (9, 1, 'x', 1, x'00')")
    with pytest.raises(IntegrityError, match="the epoch 9 was altered"):
        write(vault, b"2")
    sql("DELETE FROM epochs")
    write(vault, b"2")


def test_a_removed_epoch_is_found(older_database: Settings, sql: Sql) -> None:
    """Without it the rows of the epoch do not verify, and the log says that it is missing."""
    with open_vault(older_database) as vault:
        vault.lost_records.accept(actor="root")
    sql("DELETE FROM epochs")
    with open_vault(older_database) as vault:
        problems = vault.audit.verify().problems
        with pytest.raises(IntegrityError):
            vault.secrets.reader.get("x")
    assert any("epochs: the row" in problem and "is missing" in problem for problem in problems)


def test_many_secrets_are_renumbered_in_pieces(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece is a transaction with its record; all secrets jump, deleted ones too."""
    monkeypatch.setattr("gusset.vault.services.lost_records._PIECE", 2)
    with open_vault(settings) as vault:
        for number in range(5):
            write(vault, b"v", f"s{number}")
        vault.secrets.writer.delete("s0", actor="alice")
        vault.lost_records.accept(actor="root")
        vault.secrets.writer.restore("s0", actor="alice")
        assert [write(vault, b"w", f"s{number}") for number in range(5)] == [1002] * 5
        assert len(vault.audit.show(action="audit.accept_loss")) == 4
        assert vault.audit.verify().problems == ()


@pytest.mark.sqlite("the command is the same")
def test_the_command_accepts_a_loss(older_database: Settings, gusset: Cli) -> None:
    """It says what is lost, and needs a confirmation; before that, writes end with status 10."""
    assert older_database.home == gusset.home
    refused = gusset("secret", "set", "x", input=b"v", status=10)
    assert b"gusset audit accept-loss" in refused.stderr
    assert b"lacks record 3" in gusset("audit", "accept-loss", status=2).stderr
    accepted = gusset("audit", "accept-loss", "--yes", "--output", "json")
    assert json.loads(accepted.stdout)["lost"]["seq"] == 3
    gusset("secret", "set", "x", input=b"v")
    gusset("audit", "verify")
