"""Overlaps: after a secret got a new value, the previous version stays readable for a while.

An overlap ends at its time, when yet another version becomes current, when its version is
destroyed, when the secret is deleted, or when a provider's rotation finishes. A manager's `end_due`
removes overlaps whose time has come, and lets replicas know; until then delivery checks the time itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from gusset.errors import IntegrityError, InvalidValue
from gusset.rotation.state import MAX_OVERLAP
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import OVERLAPS, SECRETS

_FIND = Select(OVERLAPS, "secret_id = :id")
_FIND_MANY = Select(OVERLAPS, "secret_id IN (:ids...)")
_FIND_SECRET = Select(SECRETS, "id = :id")
_DUE = Statement("SELECT secret_id FROM secret_overlaps WHERE ends_at <= :at")


@dataclass(frozen=True, slots=True)
class Overlap:
    """The version before the current one, and until when it stays readable (RFC 3339)."""

    version: int
    ends_at: str


def check_overlap(overlap: timedelta) -> None:
    """Raises InvalidValue if an overlap cannot last that long."""
    if not timedelta() < overlap <= MAX_OVERLAP:
        raise InvalidValue(f"an overlap can last from a second to {MAX_OVERLAP.days} days")


def find_overlaps(connection: Connection, secrets: Collection[Any], now: str) -> dict[str, Overlap]:
    """The overlaps that last at `now`, of the secrets of these rows, by the secret's id."""
    if not secrets:
        return {}
    current = {row.id: row.current_version for row in secrets}
    return {
        row.secret_id: Overlap(row.version, row.ends_at)
        for row in connection.all(_FIND_MANY, {"ids": sorted(current)})
        if row.successor == current[row.secret_id] and row.ends_at > now
    }


def begin_overlap(transaction: Transaction, secret: Any, overlap: Overlap) -> None:
    """Keep a version readable. `secret` is the row of the secret with its new version."""
    values = {
        "version": overlap.version,
        "successor": secret.current_version,
        "ends_at": overlap.ends_at,
    }
    row = transaction.one(_FIND, {"id": secret.id})
    if row is None:
        transaction.insert(OVERLAPS, {"secret_id": secret.id, **values})
    else:
        transaction.update(OVERLAPS, row, **values)


def end_overlap(
    transaction: Transaction, secret_id: str, *, of_versions: Collection[int] | None = None
) -> None:
    """End the overlap of a secret if there is one; with `of_versions`, only if it keeps one of these."""
    row = transaction.one(_FIND, {"id": secret_id})
    if row is not None and (of_versions is None or row.version in of_versions):
        transaction.delete(OVERLAPS, row)


class Overlaps:
    """Ends the overlaps of all teams' secrets in time."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def end_due(self) -> bool:
        """End the overlaps that are due, each with an audit record. Returns whether there were any.

        Watchers then notice a change.

        Raises:
            IntegrityError: an overlap or its secret was altered. The others have been ended.
        """
        with self._store.read() as connection:
            due = connection.all(_DUE, {"at": timestamp(self._clock())})
        altered: list[IntegrityError] = []
        for row in due:
            try:
                self._end(row.secret_id)
            except IntegrityError as error:
                altered.append(error)
        if altered:
            raise altered[0]
        return bool(due)

    def _end(self, secret_id: str) -> None:
        def write(transaction: Transaction) -> WriteResult[None]:
            row = transaction.one(_FIND, {"id": secret_id})
            if row is None or row.ends_at > timestamp(self._clock()):
                return WriteResult(None, [])  # another manager has ended it
            secret = transaction.one(_FIND_SECRET, {"id": secret_id})
            transaction.delete(OVERLAPS, row)
            name, team = (secret.name, secret.team_id) if secret is not None else (secret_id, "")
            if secret is not None and secret.current_version == row.successor:
                transaction.update(SECRETS, secret, revision=secret.revision + 1)
            details = {"id": secret_id, "team": team, "version": row.version}
            return WriteResult(None, [AuditEvent("gusset", Action.SECRET_END_OVERLAP, name, details=details)])

        self._writer.run(AuditEvent("gusset", Action.SECRET_END_OVERLAP, secret_id), write)
