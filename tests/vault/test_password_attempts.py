"""Failed passwords are counted in the database: one budget for all processes, by the database's clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import cycle

import pytest

from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.writer import WriteResult
from gusset.vault.services.password_attempts import AttemptLimit, PasswordAttempt
from gusset.vault.storage.connection import Transaction
from gusset.vault.storage.sql import Statement
from tests.serving.conftest import eventually
from tests.vault.conftest import Sql

LIMIT = AttemptLimit(name="test", burst=3, seconds=3.0)
OTHER = AttemptLimit(name="other", burst=1, seconds=600.0)


def rows(vault: Vault) -> list[bytes]:
    with vault._parts.store.read() as connection:
        return [
            bytes(row.client) for row in connection.all(Statement("SELECT client FROM password_attempts"))
        ]


def test_processes_with_clocks_apart_share_a_budget(settings: Settings) -> None:
    """Each process sees what the other counted, though their clocks differ by an hour."""
    late = datetime.now(UTC) + timedelta(hours=1)
    with open_vault(settings) as one, open_vault(settings, clock=lambda: late) as two:
        attempt = [PasswordAttempt(LIMIT, "192.0.2.1")]
        began, taken = time.monotonic(), 0
        for vault in cycle((one, two)):
            [wait] = vault.password_attempts.take(attempt)
            if wait:
                break
            taken += 1
        assert 3 <= taken <= 4 + time.monotonic() - began  # one more is allowed each second
        assert 0.0 < wait <= 1.0
        time.sleep(wait)  # by the database's clock, which no test can set
        assert one.password_attempts.take(attempt) == [0.0]


def test_processes_share_a_budget_after_the_audit_key_was_replaced(settings: Settings) -> None:
    """Whichever of them have been restarted since."""
    attempt = [PasswordAttempt(OTHER, "a")]
    with open_vault(settings) as one:
        assert one.password_attempts.take([PasswordAttempt(OTHER, "b")]) == [0.0]  # it has used the old key
        with open_vault(settings) as elsewhere:
            elsewhere.key_rotation.rotate(["audit"], actor="ada")
        with open_vault(settings) as restarted:
            assert restarted.password_attempts.take(attempt) == [0.0]
            assert one.password_attempts.take(attempt) == [pytest.approx(600.0, abs=5)]


def test_an_attempt_counts_for_all_its_limits_or_none(vault: Vault) -> None:
    """When one is exhausted, the others keep what they have."""
    attempts = [PasswordAttempt(LIMIT, "a"), PasswordAttempt(OTHER, "b")]
    assert vault.password_attempts.take(attempts) == [0.0, 0.0]
    for _ in range(5):
        waits = vault.password_attempts.take(attempts)
        assert waits[0] == 0.0 and waits[1] == pytest.approx(600.0, abs=5)
    assert vault.password_attempts.take([PasswordAttempt(LIMIT, "a")]) == [0.0]


def test_an_attempt_that_is_given_back_does_not_count(vault: Vault) -> None:
    """As a sign-in does it, in its own transaction."""
    attempt = [PasswordAttempt(OTHER, "a")]

    def give_back(transaction: Transaction) -> WriteResult[None]:
        vault.password_attempts.give_back(transaction, attempt)
        return WriteResult(None, [])

    for _ in range(3):
        assert vault.password_attempts.take(attempt) == [0.0]
        vault._parts.writer.run(AuditEvent("ada", Action.SESSION_CREATE, "ada"), give_back)
    assert vault.password_attempts.take(attempt) == [0.0] != vault.password_attempts.take(attempt)


def test_clients_are_neither_stored_in_plain_text_nor_kept(vault: Vault) -> None:
    """What somebody typed as their e-mail address may be a password. Forgiven attempts are removed."""
    short = AttemptLimit(name="short", burst=1, seconds=0.05)
    vault.password_attempts.take([PasswordAttempt(short, "hunter2@example.com")])
    assert rows(vault) and b"hunter2" not in b"".join(rows(vault))
    kept = rows(vault)
    time.sleep(0.1)  # until the attempt is forgiven, by the database's clock
    vault.password_attempts.take([PasswordAttempt(OTHER, "a")])
    assert len(rows(vault)) == 1 and rows(vault) != kept


@pytest.mark.parametrize(
    "over_at",
    ["9999999999999", "9223372036854775807", pytest.param("x'00'", marks=pytest.mark.sqlite)],  # a blob
)
@pytest.mark.slow
def test_a_forged_count_locks_nobody_out_for_longer_than_attempts_do(
    vault: Vault, sql: Sql, over_at: str
) -> None:
    """Once the one who writes the database stops."""
    attempt = [PasswordAttempt(LIMIT, "a")]
    vault.password_attempts.take(attempt)
    sql(f"UPDATE password_attempts SET over_at = {over_at}")

    [wait] = vault.password_attempts.take(attempt)

    assert wait <= LIMIT.interval / 1000
    eventually(lambda: vault.password_attempts.take(attempt) == [0.0])
