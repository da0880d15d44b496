"""Deployments: what each declares, the tokens that read just that, and the replicas that run.

Replicas report what they hold; that is state, not an act, so it is not audited.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, and_, bindparam, delete, insert, select, update

from gusset.errors import NotFound, NotSignedIn, UsageError
from gusset.secrets.name import check_name, fold_name, spelling_clashes
from gusset.secrets.value import SecretValue
from gusset.vault.audit.audit_log import Clock, Entry, timestamp
from gusset.vault.commit.writer import Done, Writer
from gusset.vault.services.access_keys import KeyInfo, add_key, revoke_keys, touch, until_text
from gusset.vault.services.secret_store import new_id
from gusset.vault.storage.compiled_sql import Prepared
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import access_keys, deployments, replicas, teams

LIVE = timedelta(seconds=60)  # of silence, and a replica no longer counts as running
_FORGOTTEN = timedelta(days=1)
MOST_NAMES = 1000

_d, _r = deployments.c, replicas.c


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """One running process or container; `versions` are the versions that it holds, by name."""

    id: str
    host: str
    versions: Mapping[str, int]
    started_at: str
    seen_at: str
    live: bool


@dataclass(frozen=True, slots=True)
class DeploymentInfo:
    """A model or image as it is served under a name. `secrets` is what it declared last."""

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


@dataclass(frozen=True, slots=True)
class Grant:
    """What a good token lets its holder read: these names, for this deployment, and nothing else."""

    deployment_id: str
    deployment: str
    team_id: str
    team: str
    names: tuple[str, ...]


_GRANT = Prepared(
    select(_d.id, _d.name, _d.team_id, teams.c.name.label("team"))
    .join(teams, teams.c.id == _d.team_id)
    .where(_d.id == bindparam("id"), _d.deleted_at.is_(None))
)
_DECLARED = Prepared(
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
    """Registers deployments, grants, and keeps track of replicas."""

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
        """Say what a deployment declares; its new token reads just these names. Older tokens keep theirs.

        Raises:
            InvalidName, UsageError: a name that is none, two spellings of one, or too many.
            NotFound: no such team.
        """
        check_deployment_name(name)
        if len(secrets) > MOST_NAMES:
            raise UsageError(f"a deployment declares at most {MOST_NAMES} secrets")
        names = sorted({check_name(each) for each in secrets})
        if clash := next(iter(spelling_clashes(names)), None):
            raise UsageError(f"{' and '.join(clash)} are two spellings of one name")
        until = until_text(expires_at, self._clock())

        def act(connection: Connection) -> Done[tuple[DeploymentInfo, KeyInfo, SecretValue]]:
            deployment_id = self._put(connection, team_id, name, names, actor)
            info, token = add_key(
                connection,
                "token",
                at=self._now(),
                name=name,
                allows=names,
                created_by=actor,
                expires_at=until,
                deployment_id=deployment_id,
            )
            details = {"team": team_id, "secrets": names, "token": info.prefix, "expires_at": until}
            entry = Entry(actor, "deployment.register", name, details=details)
            return Done((self._need(connection, team_id, name), info, token), [entry])

        return self._writer.run(Entry(actor, "deployment.register", name), act)

    def _put(self, connection: Connection, team_id: str, name: str, names: Sequence[str], actor: str) -> str:
        at, declared = self._now(), json.dumps(names)
        if connection.execute(select(teams.c.id).where(teams.c.id == team_id)).one_or_none() is None:
            raise NotFound("there is no such team")
        live = and_(_d.team_id == team_id, _d.name == name, _d.deleted_at.is_(None))
        found = connection.execute(select(_d.id).where(live)).scalar_one_or_none()
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
        """What a token that `AccessKeys.check` found good allows.

        Raises:
            NotSignedIn: the deployment was removed.
        """
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            row = _GRANT.one(connection, {"id": token.deployment_id})
        if row is None:
            raise NotSignedIn("the deployment of that token was removed")
        return Grant(row.id, row.name, row.team_id, row.team, token.allows)

    def of_teams(self, team_ids: Collection[str]) -> list[DeploymentInfo]:
        """The deployments of these teams, by name, with their replicas."""
        query = _LIST.where(_d.team_id.in_(sorted(team_ids))).order_by(_d.name, _d.team_id)
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(query).all()
            found = self._replicas(connection, [row.id for row in rows])
        return [_info(row, found.get(row.id, ())) for row in rows]

    def declaring(self, team_id: str) -> dict[str, list[str]]:
        """Folded name of a secret -> the deployments of the team that declare it."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = _DECLARED.all(connection, {"team": team_id})
        found: dict[str, list[str]] = {}
        for row in rows:
            for name in json.loads(row.secrets):
                found.setdefault(fold_name(name), []).append(row.name)
        return found

    def get(self, team_id: str, name: str) -> DeploymentInfo:
        """Raises NotFound."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return self._need(connection, team_id, name)

    def _need(self, connection: Connection, team_id: str, name: str) -> DeploymentInfo:
        row = connection.execute(_LIST.where(_d.team_id == team_id, _d.name == name)).one_or_none()
        if row is None:
            raise NotFound("there is no such deployment")
        return _info(row, self._replicas(connection, [row.id]).get(row.id, ()))

    def remove(self, team_id: str, name: str, *, actor: str) -> DeploymentInfo:
        """Forget a deployment and revoke its tokens. Raises NotFound."""

        def act(connection: Connection) -> Done[DeploymentInfo]:
            info, at = self._need(connection, team_id, name), self._now()
            connection.execute(update(deployments).where(_d.id == info.id).values(deleted_at=at))
            revoke_keys(connection, at, access_keys.c.deployment_id == info.id)
            connection.execute(delete(replicas).where(_r.deployment_id == info.id))
            touch(connection)
            return Done(info, [Entry(actor, "deployment.remove", name, details={"team": team_id})])

        return self._writer.run(Entry(actor, "deployment.remove", name), act)

    # --- replicas

    def report(
        self, grant: Grant, replica_id: str, *, host: str, versions: Mapping[str, int], stopped: bool = False
    ) -> None:
        """What a replica holds now, or that it has stopped."""

        def act(connection: Connection) -> Done[None]:
            at, key = self._now(), and_(_r.deployment_id == grant.deployment_id, _r.id == replica_id)
            forgotten = timestamp(self._clock() - _FORGOTTEN)
            connection.execute(
                delete(replicas).where(_r.deployment_id == grant.deployment_id, _r.seen_at < forgotten)
            )
            said = {
                "versions": json.dumps(dict(versions)),
                "seen_at": at,
                "stopped_at": at if stopped else None,
            }
            if not connection.execute(update(replicas).where(key).values(**said)).rowcount:
                new = {"deployment_id": grant.deployment_id, "id": replica_id, "host": host, "started_at": at}
                connection.execute(insert(replicas), {**new, **said})
            return Done(None, [])

        self._writer.run(Entry("gusset", "replica.report", grant.deployment), act)

    def seen(self, grant: Grant, replica_id: str) -> None:
        """The replica is still connected."""

        def act(connection: Connection) -> Done[None]:
            key = and_(_r.deployment_id == grant.deployment_id, _r.id == replica_id)
            connection.execute(update(replicas).where(key).values(seen_at=self._now(), stopped_at=None))
            return Done(None, [])

        self._writer.run(Entry("gusset", "replica.seen", grant.deployment), act)

    def using(self, connection: Connection, team_id: str, folded: str) -> list[str]:
        """The deployments of which a running replica holds the secret of that folded name."""
        query = (
            select(_d.name, _r.versions)
            .join(deployments, _d.id == _r.deployment_id)
            .where(
                _d.team_id == team_id,
                _d.deleted_at.is_(None),
                _r.stopped_at.is_(None),
                _r.seen_at > timestamp(self._clock() - LIVE),
            )
        )
        rows = connection.execute(query).all()
        return sorted({row.name for row in rows if folded in map(fold_name, json.loads(row.versions))})

    def _replicas(self, connection: Connection, ids: Sequence[str]) -> dict[str, tuple[ReplicaInfo, ...]]:
        since = timestamp(self._clock() - LIVE)
        found: dict[str, tuple[ReplicaInfo, ...]] = {}
        rows = connection.execute(select(replicas).where(_r.deployment_id.in_(ids)).order_by(_r.started_at))
        for row in rows:
            live = row.stopped_at is None and row.seen_at > since
            info = ReplicaInfo(row.id, row.host, json.loads(row.versions), row.started_at, row.seen_at, live)
            found[row.deployment_id] = (*found.get(row.deployment_id, ()), info)
        return found

    def _now(self) -> str:
        return timestamp(self._clock())


def check_deployment_name(name: str) -> str:
    """`name` when a deployment may be called so. Raises UsageError."""
    if not 1 <= len(name) <= 253 or not name.isprintable() or "/" in name or name in (".", ".."):
        raise UsageError("a deployment's name has 1 to 253 printable characters, without '/'")
    return name


def _info(row: Any, found: tuple[ReplicaInfo, ...]) -> DeploymentInfo:
    return DeploymentInfo(
        row.id,
        row.team_id,
        row.team,
        row.name,
        tuple(json.loads(row.secrets)),
        row.created_at,
        row.created_by,
        row.updated_at,
        found,
    )
