"""The state of a rotation: which replicas have replaced the value of a secret, and which have not.

What counts are the replicas that held a lease when the version was committed and that may have an older
one. That is decided by the versions that were delivered to them in transactions, not by times: a replica
whose first delivery had the new version began after the commit.

Replicas report versions by a secret's name. If several secrets have had that name, whatever was delivered
or reported before this secret became the only one does not count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from gusset.errors import SecretNotFound
from gusset.secrets.name import fold_name
from gusset.vault.clock import Clock, timestamp
from gusset.vault.services.leases import LEASE_COLUMNS, LEASE_SECONDS, Lease, Leases, text_in
from gusset.vault.services.overlaps import Overlap, find_overlaps
from gusset.vault.services.secret_rows import FIND_VERSION, SecretRows
from gusset.vault.storage.connection import Connection, Store
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import DEPLOYMENTS

ReplicaState = Literal["acknowledged", "waiting", "stopped", "unknown"]

_ROUNDING = timedelta(seconds=1)  # times of renewals are stored to the second

_OTHERS = Statement(
    "SELECT max(o.deleted_at) AS ended_at FROM secrets o JOIN secrets s "
    "ON o.team_id = s.team_id AND o.folded = s.folded AND o.id <> s.id WHERE s.team_id = :team AND s.id = :id"
)
_DEPLOYMENTS = Select(DEPLOYMENTS, "team_id = :team", "deleted_at IS NULL")
_LEASES = Statement(
    f"SELECT {LEASE_COLUMNS} FROM replicas WHERE deployment_id IN (:ids...) ORDER BY started_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatingReplica:
    """A replica that held a lease when the version was committed.

    `acknowledged`: none of its processes uses an older version any more. `waiting`: it has not reported
    that yet. `stopped`: it has shut down cleanly. `unknown`: it is lost, and may still use an older version.
    `version` is what it reports to hold, `used` the newest version that it has used.
    """

    id: str
    deployment: str
    host: str
    state: ReplicaState
    version: int | None
    used: int | None
    seen_at: str

    @property
    def has_acknowledged(self) -> bool:
        """Whether it uses no older version any more."""
        return self.state in ("acknowledged", "stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How far a version has replaced the ones before it. `overlap` is that of the current version.

    `lost_before` are replicas that were lost already when the version was committed. Nobody waits for
    them, and they may still use an older one.
    """

    secret_id: str
    name: str
    version: int
    started_at: str
    current_version: int | None
    overlap: Overlap | None
    replicas: Sequence[RotatingReplica]
    lost_before: Sequence[RotatingReplica]


class Rotations:
    """Reads the state of rotations of one team's secrets."""

    def __init__(self, store: Store, clock: Clock, *, rows: SecretRows, leases: Leases) -> None:
        self._store = store
        self._clock = clock
        self._rows = rows
        self._leases = leases

    def get(self, name: str, version: int | None = None) -> Rotation:
        """The rotation of a secret to `version`, or to its newest version if None.

        Raises:
            SecretNotFound: there is no such secret, or no such version.
        """
        with self._store.snapshot() as connection:
            secret = self._rows.get_or_raise(connection, name)
            wanted = secret.last_version if version is None else version
            row = connection.one(FIND_VERSION, {"id": secret.id, "version": wanted})
            if row is None:
                raise SecretNotFound(f"{secret.name} has no version {wanted}")
            overlaps = find_overlaps(connection, [secret], timestamp(self._clock()))
            replicas, lost_before = self._replicas(connection, secret, row)
            return Rotation(
                secret_id=secret.id,
                name=secret.name,
                version=wanted,
                started_at=row.created_at,
                current_version=secret.current_version,
                overlap=overlaps.get(secret.id),
                replicas=replicas,
                lost_before=lost_before,
            )

    def _replicas(
        self, connection: Connection, secret: Any, version: Any
    ) -> tuple[list[RotatingReplica], list[RotatingReplica]]:
        """Those that held a lease at the commit of `version`, and those that were lost before it."""
        held, lost = list[RotatingReplica](), list[RotatingReplica]()
        deployments = connection.all(_DEPLOYMENTS, {"team": self._rows.team_id})
        by_id, folded = {row.id: row for row in deployments}, secret.folded
        others: Any = connection.one(_OTHERS, {"team": self._rows.team_id, "id": secret.id})
        for row in connection.all(_LEASES, {"ids": sorted(by_id)}):
            lease, deployment = self._leases.current(row), by_id[row.deployment_id]
            started_at = text_in(row.started_at) or ""
            if others.ended_at is not None:
                lease = _without_other_secrets(lease, started_at, secret, others.ended_at)
            if not _may_have_older(lease, started_at, deployment, folded, version):
                continue
            replica = RotatingReplica(
                id=lease.id,
                deployment=deployment.name,
                host=lease.host,
                state=self._state(lease, folded, version.version),
                version=lease.version_of(folded),
                used=lease.used_of(folded),
                seen_at=lease.seen_at,
            )
            (held if _was_live(lease, version.created_at) else lost).append(replica)
        return held, lost

    def _state(self, lease: Lease, folded: str, version: int) -> ReplicaState:
        held = lease.version_of(folded)
        if held is not None and held >= version:
            return "acknowledged"
        if lease.stopped_at is not None:
            return "stopped"
        return "waiting" if self._leases.is_live(lease) else "unknown"


def _may_have_older(lease: Lease, started_at: str, deployment: Any, folded: str, version: Any) -> bool:
    """Whether the replica may have held an older version when `version` was committed, or later."""
    if lease.stopped_at is not None and lease.stopped_at <= version.created_at:
        return False
    if lease.delivered is None:  # it got its lease from an older version of gusset
        reads = folded in map(fold_name, json.loads(deployment.secrets))
        return reads and started_at <= version.created_at
    return folded in lease.delivered and lease.delivered[folded] < version.version


def _was_live(lease: Lease, committed_at: str) -> bool:
    """Whether the lease had not lapsed at the commit, or was renewed since."""
    at = datetime.fromisoformat(committed_at)
    return lease.seen_at > timestamp(at - timedelta(seconds=LEASE_SECONDS) - _ROUNDING)


def _without_other_secrets(lease: Lease, started_at: str, secret: Any, ended_at: str) -> Lease:
    """A lease without the versions of other secrets, deleted by now, that had the name of `secret`.

    All of them number their versions from 1. What was reported before the last of them was deleted at
    `ended_at` does not say what the replica has now: until its next report it counts as one that may use the
    value of another secret.
    """
    since = max(ended_at, secret.created_at)
    if started_at <= since and lease.delivered is not None:
        lease = replace(lease, delivered=dict.fromkeys(lease.delivered, 0))
    if (lease.reported_at or "") <= since:
        return replace(lease, versions={}, used={})
    versions, used = (
        {name: number for name, number in reported.items() if number <= secret.last_version}
        for reported in (lease.versions, lease.used)
    )
    return replace(lease, versions=versions, used=used)
