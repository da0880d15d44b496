"""How often secrets are to be rotated, and which are due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from gusset.errors import InvalidValue
from gusset.rotation.state import RotationPlan, Step
from gusset.vault.clock import timestamp
from gusset.vault.services.secret_rows import FIND_VERSION, LIST, SecretRows
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.tables import ROTATIONS, SCHEDULES

MAX_INTERVAL = timedelta(days=3650)

_FIND = Select(SCHEDULES, "secret_id = :id")
_FIND_MANY = Select(SCHEDULES, "secret_id IN (:ids...)")
_ROTATIONS = Select(ROTATIONS, "secret_id IN (:ids...)")


def set_interval(transaction: Transaction, secret_id: str, interval: timedelta | Literal["never"]) -> None:
    """Set how often a secret is to be rotated; "never" removes its interval.

    Raises:
        InvalidValue: the interval is under a second, or over `MAX_INTERVAL`.
    """
    row = transaction.one(_FIND, {"id": secret_id})
    if interval == "never":
        if row is not None:
            transaction.delete(SCHEDULES, row)
        return
    if not timedelta(seconds=1) <= interval <= MAX_INTERVAL:
        raise InvalidValue(f"the interval of rotations can be from a second to {MAX_INTERVAL.days} days")
    seconds = int(interval.total_seconds())
    if row is None:
        transaction.insert(SCHEDULES, {"secret_id": secret_id, "rotate_every": seconds})
    else:
        transaction.update(SCHEDULES, row, rotate_every=seconds)


class RotationSchedules:
    """Reads one team's schedules."""

    def __init__(self, store: Store, rows: SecretRows) -> None:
        self._store = store
        self._rows = rows

    def plans(self) -> Sequence[RotationPlan]:
        """The secrets that have an interval, an expiry date or an unfinished rotation, by name."""
        with self._store.snapshot() as connection:
            secrets = [
                row for row in connection.all(LIST, {"team": self._rows.team_id}) if row.deleted_at is None
            ]
            ids = {"ids": sorted(row.id for row in secrets)}
            if not secrets:
                return []
            intervals = {row.secret_id: row.rotate_every for row in connection.all(_FIND_MANY, ids)}
            steps = {row.secret_id: Step(row.step) for row in connection.all(_ROTATIONS, ids)}
            return [
                RotationPlan(
                    name=row.name,
                    version=row.current_version,
                    rotate_every=intervals.get(row.id),
                    rotate_at=_rotate_at(connection, row, intervals.get(row.id)),
                    expires_at=row.expires_at,
                    step=steps.get(row.id),
                )
                for row in secrets
                if row.id in intervals or row.id in steps or row.expires_at is not None
            ]


def _rotate_at(connection: Connection, secret: Any, interval: int | None) -> str | None:
    if interval is None:
        return None
    version = connection.one(FIND_VERSION, {"id": secret.id, "version": secret.current_version})
    since = secret.updated_at if version is None else version.created_at
    return timestamp(datetime.fromisoformat(since) + timedelta(seconds=interval))
