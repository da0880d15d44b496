"""Deployments: what each declares, the tokens that read just that, and their running replicas.

What replicas report is state, not an act, so it is not audited.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gusset.errors import Conflict, NotFound, NotSignedIn, UsageError
from gusset.secrets.name import check_name, fold_name, is_deployment_name, spelling_clashes
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.ids import new_id
from gusset.vault.services.access_keys import (
    KeyInfo,
    add_key,
    expiry_text,
    revoke_keys,
)
from gusset.vault.services.person import get_team, team_names
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import ACCESS_KEYS, DEPLOYMENTS

REPLICA_TIMEOUT = timedelta(seconds=60)  # a replica that was silent for longer does not count as running
_REPLICA_RETENTION = timedelta(days=1)
MAX_NAMES = 1000
MAX_REPLICAS = 1000  # of a deployment, running or not; those that are gone make room for others


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """One running process or container. `versions` are the versions in use, by name of the secret."""

    id: str
    host: str
    versions: Mapping[str, int]
    started_at: str
    seen_at: str
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentInfo:
    """A model or image that is served under a name. `secrets` are the names that it declares."""

    id: str
    team_id: str
    team: str
    name: str
    secrets: tuple[str, ...]
    created_at: str
    created_by: str
    updated_at: str
    replicas: tuple[ReplicaInfo, ...]

    @property
    def seen_at(self) -> str | None:
        return max((replica.seen_at for replica in self.replicas), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a valid token may read: the secrets with these names, for this deployment."""

    deployment_id: str
    deployment: str
    team_id: str
    team: str
    names: tuple[str, ...]


_FIND_BY_ID = Select(DEPLOYMENTS, "WHERE id = :id AND deleted_at IS NULL")
_FIND = Select(DEPLOYMENTS, "WHERE team_id = :team AND name = :name AND deleted_at IS NULL")
_LIST = Select(DEPLOYMENTS, "WHERE team_id IN (:teams...) AND deleted_at IS NULL ORDER BY name, team_id")
_TOKENS = Select(ACCESS_KEYS, "WHERE deployment_id = :id")

# Replicas are not signed: what they report gives no rights.
_LIST_REPLICAS = Statement(
    "SELECT deployment_id, id, host, versions, started_at, seen_at, stopped_at FROM replicas "
    "WHERE deployment_id IN (:ids...) ORDER BY started_at"
)
_LIST_LIVE_REPLICAS = Statement(
    "SELECT d.name, r.versions FROM replicas r JOIN deployments d ON d.id = r.deployment_id "
    "WHERE d.team_id = :team AND d.deleted_at IS NULL AND r.stopped_at IS NULL AND r.seen_at > :since"
)
_FIND_REPLICA = Statement("SELECT id FROM replicas WHERE deployment_id = :deployment_id AND id = :id")
_INSERT_REPLICA = Statement(
    "INSERT INTO replicas (deployment_id, id, host, versions, started_at, seen_at, stopped_at) "
    "VALUES (:deployment_id, :id, :host, :versions, :seen_at, :seen_at, :stopped_at)"
)
_UPDATE_REPLICA = Statement(
    "UPDATE replicas SET versions = :versions, seen_at = :seen_at, stopped_at = :stopped_at "
    "WHERE deployment_id = :deployment_id AND id = :id"
)
_TOUCH_REPLICA = Statement(
    "UPDATE replicas SET seen_at = :seen_at, stopped_at = NULL "
    "WHERE deployment_id = :deployment_id AND id = :id"
)
_COUNT_REPLICAS = Statement("SELECT count(*) AS total FROM replicas WHERE deployment_id = :id")
_DELETE_REPLICAS = Statement("DELETE FROM replicas WHERE deployment_id = :id")
_DELETE_OLD_REPLICAS = Statement("DELETE FROM replicas WHERE deployment_id = :id AND seen_at < :before")
_DELETE_GONE_REPLICAS = Statement(
    "DELETE FROM replicas WHERE deployment_id = :id AND (stopped_at IS NOT NULL OR seen_at <= :since)"
)


class Deployments:
    """Registers deployments, grants access by their tokens, and keeps track of replicas."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def register(
        self,
        team_id: str,
        name: str,
        secrets: Sequence[str],
        *,
        actor: str,
        expires_at: datetime | None = None,
    ) -> tuple[DeploymentInfo, KeyInfo, SecretValue]:
        """Register a deployment and the secrets it declares; returns it with a new token for just these.

        Older tokens keep the names that they were made for.

        Raises:
            InvalidName, UsageError: an invalid name, two spellings of one name, or too many names.
            NotFound: there is no such team.
        """
        check_deployment_name(name)
        if len(secrets) > MAX_NAMES:
            raise UsageError(f"a deployment can declare at most {MAX_NAMES} secrets")
        names = sorted({check_name(each) for each in secrets})
        if clash := next(iter(spelling_clashes(names)), None):
            raise UsageError(f"{' and '.join(clash)} are two spellings of one name")
        expiry = expiry_text(expires_at, self._clock())

        def write(transaction: Transaction) -> WriteResult[tuple[DeploymentInfo, KeyInfo, SecretValue]]:
            row = self._put(transaction, team_id, name, names, actor)
            info, token = add_key(
                transaction,
                "token",
                at=self._now(),
                name=name,
                allows=names,
                created_by=actor,
                expires_at=expiry,
                deployment_id=row.id,
            )
            details = {"team": team_id, "secrets": names, "token": info.prefix, "expires_at": info.expires_at}
            event = AuditEvent(actor, Action.DEPLOYMENT_REGISTER, name, details=details)
            return WriteResult((self._info(transaction, row), info, token), [event])

        return self._writer.run(AuditEvent(actor, Action.DEPLOYMENT_REGISTER, name), write)

    def _put(
        self, transaction: Transaction, team_id: str, name: str, names: Sequence[str], actor: str
    ) -> Any:
        at, declared = self._now(), json.dumps(names)
        get_team(transaction, team_id)
        row = transaction.one(_FIND, {"team": team_id, "name": name})
        if row is not None:
            return transaction.update(DEPLOYMENTS, row, secrets=declared, updated_at=at)
        return transaction.insert(
            DEPLOYMENTS,
            {
                "id": new_id(),
                "team_id": team_id,
                "name": name,
                "secrets": declared,
                "created_at": at,
                "created_by": str(actor),
                "updated_at": at,
            },
        )

    def grant(self, token: KeyInfo) -> Grant:
        """What a token that `AccessKeys.authenticate` accepted allows.

        Raises:
            NotSignedIn: the deployment was removed.
        """
        with self._store.read() as connection:
            row = connection.one(_FIND_BY_ID, {"id": token.deployment_id})
            if row is None:
                raise NotSignedIn("the deployment of that token was removed")
            team = get_team(connection, row.team_id)
        return Grant(
            deployment_id=row.id,
            deployment=row.name,
            team_id=row.team_id,
            team=team.name,
            names=token.allows,
        )

    def of_teams(self, team_ids: Collection[str]) -> list[DeploymentInfo]:
        """The deployments of these teams, by name, with their replicas."""
        with self._store.snapshot() as connection:
            rows = connection.all(_LIST, {"teams": sorted(team_ids)})
            teams, found = team_names(connection), self._replicas(connection, [row.id for row in rows])
        return [_info(row, teams[row.team_id], found.get(row.id, ())) for row in rows]

    def by_declared_secret(self, team_id: str) -> dict[str, list[str]]:
        """For each folded name of a secret, the team's deployments that declare it."""
        with self._store.read() as connection:
            rows = connection.all(_LIST, {"teams": [team_id]})
        found: dict[str, list[str]] = {}
        for row in rows:
            for name in json.loads(row.secrets):
                found.setdefault(fold_name(name), []).append(row.name)
        return found

    def _info(self, connection: Connection, row: Any) -> DeploymentInfo:
        replicas = self._replicas(connection, [row.id]).get(row.id, ())
        return _info(row, get_team(connection, row.team_id).name, replicas)

    def remove(self, team_id: str, name: str, *, actor: str) -> DeploymentInfo:
        """Remove a deployment and revoke its tokens. Raises NotFound."""

        def write(transaction: Transaction) -> WriteResult[DeploymentInfo]:
            row, at = transaction.one(_FIND, {"team": team_id, "name": name}), self._now()
            if row is None:
                raise NotFound("there is no such deployment")
            info = self._info(transaction, row)
            transaction.update(DEPLOYMENTS, row, deleted_at=at)
            revoke_keys(transaction, at, transaction.all(_TOKENS, {"id": row.id}))
            transaction.run(_DELETE_REPLICAS, {"id": row.id})
            event = AuditEvent(actor, Action.DEPLOYMENT_REMOVE, name, details={"team": team_id})
            return WriteResult(info, [event])

        return self._writer.run(AuditEvent(actor, Action.DEPLOYMENT_REMOVE, name), write)

    # --- replicas

    def report_replica(
        self, grant: Grant, replica_id: str, *, host: str, versions: Mapping[str, int], stopped: bool = False
    ) -> None:
        """Store which versions a replica uses, or that it has stopped.

        Raises:
            Conflict: the deployment has `MAX_REPLICAS` others that are running.
        """

        def write(transaction: Transaction) -> WriteResult[None]:
            at = self._now()
            before = timestamp(self._clock() - _REPLICA_RETENTION)
            transaction.run(_DELETE_OLD_REPLICAS, {"id": grant.deployment_id, "before": before})
            key = {"deployment_id": grant.deployment_id, "id": replica_id}
            report = {
                "versions": json.dumps(dict(versions)),
                "seen_at": at,
                "stopped_at": at if stopped else None,
            }
            if transaction.one(_FIND_REPLICA, key) is not None:
                transaction.run(_UPDATE_REPLICA, key | report)
            else:
                self._make_room(transaction, grant)
                transaction.run(_INSERT_REPLICA, key | report | {"host": host})
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.REPLICA_REPORT, grant.deployment), write)

    def _make_room(self, transaction: Transaction, grant: Grant) -> None:
        """Have at least one place free for a replica, if need be by forgetting those that are gone."""
        if self._count(transaction, grant) < MAX_REPLICAS:
            return
        transaction.run(_DELETE_GONE_REPLICAS, {"id": grant.deployment_id, "since": self._live_since()})
        if self._count(transaction, grant) >= MAX_REPLICAS:
            raise Conflict(
                f"{grant.deployment} has {MAX_REPLICAS} running replicas, and can have no more",
                hint="a replica that reports nothing for a minute no longer counts",
            )

    def _count(self, connection: Connection, grant: Grant) -> int:
        row: Any = connection.one(_COUNT_REPLICAS, {"id": grant.deployment_id})
        return int(row.total)

    def record_replica_seen(self, grant: Grant, replica_id: str) -> None:
        """Store that the replica is still connected."""

        def write(transaction: Transaction) -> WriteResult[None]:
            key = {"deployment_id": grant.deployment_id, "id": replica_id}
            transaction.run(_TOUCH_REPLICA, key | {"seen_at": self._now()})
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.REPLICA_SEEN, grant.deployment), write)

    def in_use_by(self, connection: Connection, team_id: str, folded: str) -> list[str]:
        """The names of the deployments of which a running replica uses the secret of that folded name."""
        rows = connection.all(_LIST_LIVE_REPLICAS, {"team": team_id, "since": self._live_since()})
        return sorted({row.name for row in rows if folded in map(fold_name, json.loads(row.versions))})

    def _replicas(self, connection: Connection, ids: Sequence[str]) -> dict[str, tuple[ReplicaInfo, ...]]:
        since = self._live_since()
        found: dict[str, tuple[ReplicaInfo, ...]] = {}
        for row in connection.all(_LIST_REPLICAS, {"ids": ids}):
            info = ReplicaInfo(
                id=row.id,
                host=row.host,
                versions=json.loads(row.versions),
                started_at=row.started_at,
                seen_at=row.seen_at,
                live=row.stopped_at is None and row.seen_at > since,
            )
            found[row.deployment_id] = (*found.get(row.deployment_id, ()), info)
        return found

    def _live_since(self) -> str:
        return timestamp(self._clock() - REPLICA_TIMEOUT)

    def _now(self) -> str:
        return timestamp(self._clock())


def check_deployment_name(name: str) -> str:
    """Returns `name`. Raises UsageError when it is not a valid name of a deployment."""
    if not is_deployment_name(name):
        raise UsageError("a deployment's name must have 1 to 253 printable characters, without '/'")
    return name


def _info(row: Any, team: str, replicas: tuple[ReplicaInfo, ...]) -> DeploymentInfo:
    return DeploymentInfo(
        id=row.id,
        team_id=row.team_id,
        team=team,
        name=row.name,
        secrets=tuple(json.loads(row.secrets)),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        replicas=replicas,
    )
