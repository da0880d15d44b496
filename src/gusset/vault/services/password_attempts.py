"""Failed passwords, counted in the database: all managers of a vault share one budget for each client.

The database's clock decides, since those of the managers may differ. Rows are not signed: whoever
writes the database can forgive failures, but not sign in. A client is stored as an HMAC, since it
contains addresses, and what people type as their e-mail address, which may be a password.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.storage.connection import Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.sql import Statement

_PURPOSE = "counts of wrong passwords"  # of the key under which clients are stored

_FIND = Statement("SELECT over_at FROM password_attempts WHERE client = :client")
_SET = Statement(
    "INSERT INTO password_attempts (client, over_at) VALUES (:client, :over_at) "
    "ON CONFLICT (client) DO UPDATE SET over_at = excluded.over_at"
)
_GIVE_BACK = Statement("UPDATE password_attempts SET over_at = over_at - :interval WHERE client = :client")
_FORGET = Statement("DELETE FROM password_attempts WHERE over_at <= :now")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLimit:
    """How many failed attempts a client may make at once, and in each `seconds` in the long run."""

    name: str
    burst: int
    seconds: float

    @property
    def interval(self) -> int:
        """Milliseconds after which one attempt is forgiven."""
        return round(self.seconds * 1000 / self.burst)


@dataclass(frozen=True, slots=True)
class PasswordAttempt:
    """An attempt counts for `client` under `limit`."""

    limit: AttemptLimit
    client: str


class PasswordAttempts:
    """Counts attempts of one vault. Thread-safe.

    What is stored for a client is the time at which all its attempts are forgiven. An attempt adds one
    interval to it. It may lie at most the limit's `seconds` ahead: a token bucket in one number.
    """

    def __init__(self, writer: Writer, keys: KeyringStore) -> None:
        self._writer = writer
        self._keys = keys

    def take(self, attempts: Sequence[PasswordAttempt]) -> list[float]:
        """Count an attempt under each of these limits, unless one of them is exhausted.

        Returns:
            For each, how many seconds it stays exhausted: 0.0 for all if the attempt was counted.
        """

        def write(transaction: Transaction) -> WriteResult[list[float]]:
            now = round(transaction.dialect.now().timestamp() * 1000)
            over = [self._over_at(transaction, attempt, now) + attempt.limit.interval for attempt in attempts]
            waits = [
                max(0.0, (over_at - now) / 1000 - attempt.limit.seconds)
                for attempt, over_at in zip(attempts, over, strict=True)
            ]
            if not any(waits):
                transaction.run(_FORGET, {"now": now})
                for attempt, over_at in zip(attempts, over, strict=True):
                    transaction.run(_SET, {"client": self._stored(attempt), "over_at": over_at})
            return WriteResult(waits, [])

        return self._writer.run(AuditEvent("gusset", Action.SESSION_CREATE, "attempts"), write)

    def _over_at(self, transaction: Transaction, attempt: PasswordAttempt, now: int) -> int:
        """When all attempts are forgiven that were counted, in milliseconds of the database's clock.

        A time that no attempts lead to is replaced: the row was altered, or the database's clock set back.
        """
        client = self._stored(attempt)
        row = transaction.one(_FIND, {"client": client})
        over_at = row.over_at if row is not None and type(row.over_at) is int else now  # SQLite: any type
        latest = now + round(attempt.limit.seconds * 1000)
        if over_at > latest:
            over_at = latest
            transaction.run(_SET, {"client": client, "over_at": over_at})
        return max(over_at, now)

    def give_back(self, transaction: Transaction, attempts: Sequence[PasswordAttempt]) -> None:
        """No longer count these attempts: the password was right."""
        for attempt in attempts:
            parameters = {"client": self._stored(attempt), "interval": attempt.limit.interval}
            transaction.run(_GIVE_BACK, parameters)

    def _stored(self, attempt: PasswordAttempt) -> bytes:
        """What stands for the client. Call it in a transaction: that has the newest keys, as others' have."""
        data = f"{attempt.limit.name}\0{attempt.client}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._keys.current.derive(_PURPOSE), data, "sha256")[:16]
