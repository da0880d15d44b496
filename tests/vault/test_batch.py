"""Writes that share a transaction: each sees what the ones before it have changed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gusset.errors import Conflict, IntegrityError, NotFound, VaultError, VersionConflict
from gusset.secrets.name import fold_name
from gusset.secrets.value import SecretValue
from gusset.vault import Vault
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.batch import BatchRunner
from gusset.vault.commit.writer import PendingWrite, Write, WriteResult
from gusset.vault.commit.writer_connection import WriterConnection
from gusset.vault.services.access_keys import new_access_generation
from gusset.vault.services.secret_rows import SecretRows
from gusset.vault.storage.connection import Transaction
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import SECRETS

Sql = Callable[..., list[Any]]
VALUE = SecretValue(b"a value")
INTENT = AuditEvent("alice", Action.SECRET_WRITE, "a")
READ = Statement("UPDATE secrets SET last_read_at = '2026-01-01T00:00:00Z' WHERE id = 'id'")


def test_a_lookup_finds_the_row_as_it_is_after_each_change(vault: Vault) -> None:
    """Whether it is read again or known."""
    rows = SecretRows(vault.default_team_id, "default")

    def write(transaction: Transaction) -> WriteResult[None]:
        assert rows.find(transaction, "a") is None
        values = {
            "id": "id",
            "team_id": rows.team_id,
            "name": "a",
            "folded": fold_name("a"),
            "created_at": "now",
        }
        values |= {"updated_at": "now", "last_version": 1, "revision": 1}
        row = transaction.insert(SECRETS, values)
        assert rows.find(transaction, "a") == row
        row = transaction.update(SECRETS, row, note="a note")
        assert rows.find(transaction, "a") == row
        transaction.run(READ)
        assert rows.find(transaction, "a").last_read_at is not None
        renamed = transaction.update(SECRETS, row, folded=fold_name("b"))
        assert rows.find(transaction, "a") is None
        assert rows.find(transaction, "b").id == "id"
        deleted = transaction.update(SECRETS, renamed, deleted_at="now")
        assert rows.find(transaction, "b") is None
        restored = transaction.update(SECRETS, deleted, deleted_at=None)
        assert rows.find(transaction, "b") == restored
        transaction.delete(SECRETS, restored)
        assert rows.find(transaction, "b") is None
        return WriteResult(None, [INTENT])

    vault._parts.writer.run(INTENT, write)


def in_one_batch(vault: Vault, *writes: Callable[[], Any], commits: int = 2) -> list[Any]:
    """Call `writes` so that they share a transaction: what each has returned, or its error.

    `commits` counts the transaction before theirs, too.
    """
    writer: Any = vault._parts.writer
    has_begun, may_end = threading.Event(), threading.Event()

    def wait(_: Transaction) -> WriteResult[None]:
        has_begun.set()
        assert may_end.wait(10)
        return WriteResult(None, [])

    with ThreadPoolExecutor(1 + len(writes)) as pool:
        pool.submit(writer.run, INTENT, wait)
        assert has_begun.wait(10)
        results = []
        for number, write in enumerate(writes, 1):
            results.append(pool.submit(write))
            while len(writer._queue) < number:
                time.sleep(0.001)
        before = vault.commits()
        may_end.set()
    assert vault.commits() == before + commits
    return [each.exception() or each.result() for each in results]


def test_writes_of_one_batch_see_each_other(vault: Vault) -> None:
    writer = vault.secrets.writer
    writer.set("a", VALUE, actor="alice")
    found = in_one_batch(
        vault,
        lambda: writer.set("a", VALUE, actor="alice"),
        lambda: writer.set("new", VALUE, actor="alice"),
        lambda: writer.set("a", VALUE, actor="bob", note="a note"),
        lambda: writer.delete("a", actor="bob"),
        lambda: writer.set("a", VALUE, actor="alice"),
        lambda: writer.set("new", VALUE, actor="bob", expect_version=1),
    )
    assert [info.version for info in found] == [2, 1, 3, 3, 1, 2]
    assert found[4].id != found[3].id
    assert vault.audit.verify().problems == ()


def test_an_altered_row_fails_only_the_write_that_looks_it_up(vault: Vault, sql: Sql) -> None:
    writer = vault.secrets.writer
    for name in ("a", "b"):
        writer.set(name, VALUE, actor="alice")
    sql("UPDATE secrets SET note = 'forged' WHERE name = 'a'")
    altered, good = in_one_batch(
        vault,
        lambda: writer.set("a", VALUE, actor="alice"),
        lambda: writer.set("b", VALUE, actor="alice"),
    )
    assert isinstance(altered, IntegrityError)
    assert good.version == 2


def test_a_write_that_fails_leaves_the_others_of_its_batch(vault: Vault) -> None:
    """Also one that has changed rows before, so that the batch is executed again."""
    writer = vault.secrets.writer
    writer.set("a-b", VALUE, actor="alice")
    refused, failed, first, second = in_one_batch(
        vault,
        lambda: writer.set("a-b", VALUE, actor="alice", expect_version=7),
        lambda: writer.set_many([("c", VALUE), ("a_b", VALUE)], actor="alice"),
        lambda: writer.set("a-b", VALUE, actor="alice"),
        lambda: writer.set("c", VALUE, actor="alice"),
    )
    assert isinstance(refused, VersionConflict)
    assert isinstance(failed, Conflict)
    assert (first.version, second.version) == (2, 1)


UNSTORABLE = AuditEvent("bob\ud800", Action.SECRET_WRITE, "a\0b")  # no database stores both texts


def test_no_text_of_an_event_fails_the_batch(vault: Vault) -> None:
    """The refusal and the other write are recorded, the text with escapes; so is the sum of its repetitions."""
    writer = vault._parts.writer

    def refuse(_: Transaction) -> WriteResult[None]:
        raise Conflict("refused")

    refused, written = in_one_batch(
        vault,
        lambda: writer.run(UNSTORABLE, refuse),
        lambda: vault.secrets.writer.set("a", VALUE, actor="alice"),
    )
    assert isinstance(refused, Conflict)
    assert written.version == 1
    with pytest.raises(Conflict):
        writer.run(UNSTORABLE, refuse)
    writer._runner.record_refusal_sums(writer.run, all_of_them=True)
    records = vault.audit.show(outcome="conflict")
    assert [(each.actor, each.target) for each in records] == [("bob\\ud800", "a\\x00b")] * 2
    assert json.loads(records[1].details)["repeated"] == 1
    assert vault.audit.verify().problems == ()


ORPHAN = (
    "INSERT INTO replicas (id, deployment_id, host, versions, used, started_at, seen_at) "
    "VALUES ('r', 'none', '', '{}', '{}', 'now', 'now')"
)


def refused_revocations(vault: Vault) -> int:
    return len(vault.audit.show(action="api_key.revoke", outcome="not_found"))


def revoke_nothing(vault: Vault) -> Any:
    return vault.access_keys.revoke("nope", actor="bob", allowed=lambda _: True)


def test_a_refusal_is_recorded_when_its_batch_is_executed_again(vault: Vault) -> None:
    """Once for all that are alike; the others are in a sum."""
    admin, _ = vault.people.create_first("ada@example.com", SecretValue(b"a long password"), actor="ada")
    refused, again, failed = in_one_batch(
        vault,
        lambda: revoke_nothing(vault),
        lambda: revoke_nothing(vault),
        lambda: vault.people.update(admin.id, role="member", actor="ada"),  # fails after it has written
    )
    assert [type(each) for each in (refused, again, failed)] == [NotFound, NotFound, Conflict]
    assert refused_revocations(vault) == 1
    writer: Any = vault._parts.writer
    writer.record_refusal_sums(all_of_them=True)
    [record] = vault.audit.show(target="a key", outcome="not_found", limit=1)
    assert json.loads(record.details)["repeated"] == 1


def test_a_refusal_is_recorded_at_the_next_attempt_when_its_batch_fails(vault: Vault) -> None:
    def fail(transaction: Transaction) -> WriteResult[None]:
        transaction.run(Statement("DELETE FROM nothing"))
        return WriteResult(None, [])

    refused, _ = in_one_batch(
        vault, lambda: revoke_nothing(vault), lambda: vault._parts.writer.run(INTENT, fail), commits=1
    )
    assert isinstance(refused, VaultError)
    assert refused_revocations(vault) == 0
    with pytest.raises(NotFound):
        revoke_nothing(vault)
    assert refused_revocations(vault) == 1


@pytest.mark.sqlite("it checks foreign keys at the commit if asked to")
def test_a_refusal_is_recorded_at_the_next_attempt_when_its_commit_fails(vault: Vault) -> None:
    def fail_to_commit(transaction: Transaction) -> WriteResult[None]:
        transaction.run(Statement("PRAGMA defer_foreign_keys = ON"))
        transaction.run(Statement(ORPHAN))
        return WriteResult(None, [])

    refused, _ = in_one_batch(
        vault,
        lambda: revoke_nothing(vault),
        lambda: vault._parts.writer.run(INTENT, fail_to_commit),
        commits=1,
    )
    assert isinstance(refused, VaultError) and "foreign key" in refused.message
    with pytest.raises(NotFound):
        revoke_nothing(vault)
    assert refused_revocations(vault) == 1


def test_a_change_of_access_counts_once_it_is_committed_whatever_another_writer_commits(vault: Vault) -> None:
    """A manager has two writers. What it has cached about access is valid until the count grows."""
    writer: Any = vault._parts.writer
    runner: BatchRunner = writer._runner

    def revoke(transaction: Transaction) -> WriteResult[None]:
        new_access_generation(transaction)
        return WriteResult(None, [INTENT])

    def batch(write: Write[None]) -> list[PendingWrite]:
        return [PendingWrite(INTENT, write, (), wake=None, deadline=None)]

    connection = WriterConnection(runner.dialect)
    with connection.begun(None) as driver:
        first = runner.run(driver, batch(lambda _: WriteResult(None, [INTENT])), savepoints=False)
    before = vault.access_changes()
    with connection.begun(None) as driver:
        second = runner.run(driver, batch(revoke), savepoints=False)
        runner.committed(first)
        assert vault.access_changes() == before
    runner.committed(second)
    assert vault.access_changes() == before + 1
    with connection.begun(None) as driver:
        runner.run(driver, batch(revoke), savepoints=False)
        driver.rollback()
    with connection.begun(None) as driver:
        third = runner.run(driver, batch(lambda _: WriteResult(None, [INTENT])), savepoints=False)
    runner.committed(third)
    assert vault.access_changes() == before + 1
    connection.close()
