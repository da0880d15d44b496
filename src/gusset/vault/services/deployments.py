"""Deployments: what each declares, the tokens that read just that, and their running replicas.

What replicas report is state, not an act, so it is not audited.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, and_, bindparam, delete, func, insert, or_, select, update

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
    new_access_generation,
    revoke_keys,
)
from gusset.vault.storage.compiled_sql import CompiledStatement
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import access_keys, deployments, replicas, teams

REPLICA_TIMEOUT = timedelta(seconds=60)  # a replica that was silent for longer does not count as running
_REPLICA_RETENTION = timedelta(days=1)
MAX_NAMES = 1000
MAX_REPLICAS = 1000  # of a deployment, running or not; those that are gone make room for others

_d, _r = deployments.c, replicas.c


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


_FIND_FOR_GRANT = CompiledStatement(
    select(_d.id, _d.name, _d.team_id, teams.c.name.label("team"))
    .join(teams, teams.c.id == _d.team_id)
    .where(_d.id == bindparam("id"), _d.deleted_at.is_(None))
)
_LIST_DECLARED = CompiledStatement(
    select(_d.name, _d.secrets)
    .where(_d.team_id == bindparam("team"), _d.deleted_at.is_(None))
    .order_by(_d.name)
)
_LIST = (
    select(deployments, teams.c.name.label("team"))
    .join(teams, teams.c.id == _d.team_id)
    .where(_d.deleted_at.is_(None))
)


class Deployments:
    """Registers deployments, grants access by their tokens, and keeps track of replicas."""

    def __init__(self, engine: Engine, writer: Writer, clock: Clock) -> None:
        self._engine = engine
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

        def write(connection: Connection) -> WriteResult[tuple[DeploymentInfo, KeyInfo, SecretValue]]:
            deployment_id = self._put(connection, team_id, name, names, actor)
            info, token = add_key(
                connection,
                "token",
                at=self._now(),
                name=name,
                allows=names,
                created_by=actor,
                expires_at=expiry,
                deployment_id=deployment_id,
            )
            details = {"team": team_id, "secrets": names, "token": info.prefix, "expires_at": info.expires_at}
            event = AuditEvent(actor, Action.DEPLOYMENT_REGISTER, name, details=details)
            return WriteResult((self._get_or_raise(connection, team_id, name), info, token), [event])

        return self._writer.run(AuditEvent(actor, Action.DEPLOYMENT_REGISTER, name), write)

    def _put(self, connection: Connection, team_id: str, name: str, names: Sequence[str], actor: str) -> str:
        at, declared = self._now(), json.dumps(names)
        if connection.execute(select(teams.c.id).where(teams.c.id == team_id)).one_or_none() is None:
            raise NotFound("there is no such team")
        existing = and_(_d.team_id == team_id, _d.name == name, _d.deleted_at.is_(None))
        found = connection.execute(select(_d.id).where(existing)).scalar_one_or_none()
        if found is not None:
            connection.execute(
                update(deployments).where(_d.id == found).values(secrets=declared, updated_at=at)
            )
            return str(found)
        row = {
            "id": new_id(),
            "team_id": team_id,
            "name": name,
            "secrets": declared,
            "created_at": at,
            "created_by": str(actor),
            "updated_at": at,
        }
        connection.execute(insert(deployments), row)
        return row["id"]

    def grant(self, token: KeyInfo) -> Grant:
        """What a token that `AccessKeys.authenticate` accepted allows.

        Raises:
            NotSignedIn: the deployment was removed.
        """
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            row = _FIND_FOR_GRANT.one(connection, {"id": token.deployment_id})
        if row is None:
            raise NotSignedIn("the deployment of that token was removed")
        return Grant(
            deployment_id=row.id,
            deployment=row.name,
            team_id=row.team_id,
            team=row.team,
            names=token.allows,
        )

    def of_teams(self, team_ids: Collection[str]) -> list[DeploymentInfo]:
        """The deployments of these teams, by name, with their replicas."""
        query = _LIST.where(_d.team_id.in_(sorted(team_ids))).order_by(_d.name, _d.team_id)
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(query).all()
            found = self._replicas(connection, [row.id for row in rows])
        return [_info(row, found.get(row.id, ())) for row in rows]

    def by_declared_secret(self, team_id: str) -> dict[str, list[str]]:
        """For each folded name of a secret, the team's deployments that declare it."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = _LIST_DECLARED.all(connection, {"team": team_id})
        found: dict[str, list[str]] = {}
        for row in rows:
            for name in json.loads(row.secrets):
                found.setdefault(fold_name(name), []).append(row.name)
        return found

    def _get_or_raise(self, connection: Connection, team_id: str, name: str) -> DeploymentInfo:
        row = connection.execute(_LIST.where(_d.team_id == team_id, _d.name == name)).one_or_none()
        if row is None:
            raise NotFound("there is no such deployment")
        return _info(row, self._replicas(connection, [row.id]).get(row.id, ()))

    def remove(self, team_id: str, name: str, *, actor: str) -> DeploymentInfo:
        """Remove a deployment and revoke its tokens. Raises NotFound."""

        def write(connection: Connection) -> WriteResult[DeploymentInfo]:
            info, at = self._get_or_raise(connection, team_id, name), self._now()
            connection.execute(update(deployments).where(_d.id == info.id).values(deleted_at=at))
            revoke_keys(connection, at, access_keys.c.deployment_id == info.id)
            connection.execute(delete(replicas).where(_r.deployment_id == info.id))
            new_access_generation(connection)
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

        def write(connection: Connection) -> WriteResult[None]:
            at, this_one = self._now(), _replica(grant, replica_id)
            expired = timestamp(self._clock() - _REPLICA_RETENTION)
            connection.execute(
                delete(replicas).where(_r.deployment_id == grant.deployment_id, _r.seen_at < expired)
            )
            report = {
                "versions": json.dumps(dict(versions)),
                "seen_at": at,
                "stopped_at": at if stopped else None,
            }
            if not connection.execute(update(replicas).where(this_one).values(**report)).rowcount:
                self._make_room(connection, grant)
                new = {"deployment_id": grant.deployment_id, "id": replica_id, "host": host, "started_at": at}
                connection.execute(insert(replicas), {**new, **report})
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.REPLICA_REPORT, grant.deployment), write)

    def _make_room(self, connection: Connection, grant: Grant) -> None:
        """Have at least one place free for a replica, if need be by forgetting those that are gone."""
        own = _r.deployment_id == grant.deployment_id
        count = select(func.count()).select_from(replicas).where(own)
        if connection.execute(count).scalar_one() < MAX_REPLICAS:
            return
        gone = or_(_r.stopped_at.is_not(None), _r.seen_at <= self._live_since())
        connection.execute(delete(replicas).where(own, gone))
        if connection.execute(count).scalar_one() >= MAX_REPLICAS:
            raise Conflict(
                f"{grant.deployment} has {MAX_REPLICAS} running replicas, and can have no more",
                hint="a replica that reports nothing for a minute no longer counts",
            )

    def record_replica_seen(self, grant: Grant, replica_id: str) -> None:
        """Store that the replica is still connected."""

        def write(connection: Connection) -> WriteResult[None]:
            values = {"seen_at": self._now(), "stopped_at": None}
            connection.execute(update(replicas).where(_replica(grant, replica_id)).values(**values))
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.REPLICA_SEEN, grant.deployment), write)

    def in_use_by(self, connection: Connection, team_id: str, folded: str) -> list[str]:
        """The names of the deployments of which a running replica uses the secret of that folded name."""
        query = (
            select(_d.name, _r.versions)
            .join(deployments, _d.id == _r.deployment_id)
            .where(
                _d.team_id == team_id,
                _d.deleted_at.is_(None),
                _r.stopped_at.is_(None),
                _r.seen_at > self._live_since(),
            )
        )
        rows = connection.execute(query).all()
        return sorted({row.name for row in rows if folded in map(fold_name, json.loads(row.versions))})

    def _replicas(self, connection: Connection, ids: Sequence[str]) -> dict[str, tuple[ReplicaInfo, ...]]:
        since = self._live_since()
        found: dict[str, tuple[ReplicaInfo, ...]] = {}
        rows = connection.execute(select(replicas).where(_r.deployment_id.in_(ids)).order_by(_r.started_at))
        for row in rows:
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


def _replica(grant: Grant, replica_id: str) -> Any:
    return and_(_r.deployment_id == grant.deployment_id, _r.id == replica_id)


def _info(row: Any, found: tuple[ReplicaInfo, ...]) -> DeploymentInfo:
    return DeploymentInfo(
        id=row.id,
        team_id=row.team_id,
        team=row.team,
        name=row.name,
        secrets=tuple(json.loads(row.secrets)),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        replicas=found,
    )
