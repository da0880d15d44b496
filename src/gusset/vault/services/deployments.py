"""Deployments: what each declares, the tokens that read just that, and their running replicas."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gusset.errors import NotFound, NotSignedIn, UsageError
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
from gusset.vault.services.leases import LEASE_COLUMNS, Leases, text_in
from gusset.vault.services.person import get_team, team_names
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Right, Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import ACCESS_KEYS, DEPLOYMENTS, IDENTITIES

MAX_NAMES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """One running process or container.

    `versions` are the versions that it holds, `used` the newest that it has used, by name of the secret.
    """

    id: str
    host: str
    versions: Mapping[str, int]
    used: Mapping[str, int]
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
    """What a valid token may read: the secrets with these names, for this deployment.

    `rights` are the rows on which that rests, without the token's.
    """

    deployment_id: str
    deployment: str
    team_id: str
    team: str
    names: tuple[str, ...]
    rights: tuple[Right, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A deployment of a team, and the names of the secrets that it declares. See `new_declaration`."""

    team_id: str
    name: str
    secrets: tuple[str, ...]


_FIND_BY_ID = Select(DEPLOYMENTS, "id = :id", "deleted_at IS NULL")
_FIND = Select(DEPLOYMENTS, "team_id = :team", "name = :name", "deleted_at IS NULL")
_LIST = Select(DEPLOYMENTS, "team_id IN (:teams...)", "deleted_at IS NULL", then="ORDER BY name, team_id")
_TOKENS = Select(ACCESS_KEYS, "deployment_id = :id")
_IDENTITIES = Select(IDENTITIES, "deployment_id = :id")

_LIST_REPLICAS = Statement(
    f"SELECT {LEASE_COLUMNS} FROM replicas WHERE deployment_id IN (:ids...) ORDER BY started_at"
)
_LIST_REPLICAS_OF_TEAM = Statement(
    f"SELECT {LEASE_COLUMNS} FROM replicas WHERE stopped_at IS NULL AND deployment_id IN "
    "(SELECT id FROM deployments WHERE team_id = :team AND deleted_at IS NULL)"
)
_LIST_NAMES = Statement("SELECT id, name FROM deployments WHERE id IN (:ids...)")
_DELETE_REPLICAS = Statement("DELETE FROM replicas WHERE deployment_id = :id")


class Deployments:
    """Registers deployments, grants access by their tokens, and lists their replicas."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, leases: Leases) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._leases = leases

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
        new = new_declaration(team_id, name, secrets)
        expiry = expiry_text(expires_at, self._clock())

        def write(transaction: Transaction) -> WriteResult[tuple[DeploymentInfo, KeyInfo, SecretValue]]:
            at = self._now()
            row = _put(transaction, new, at=at, actor=actor)
            info, token = add_key(
                transaction,
                "token",
                at=at,
                name=name,
                allows=new.secrets,
                created_by=actor,
                expires_at=expiry,
                deployment_id=row.id,
            )
            event = _registered(new, actor, token=info.prefix, expires_at=info.expires_at)
            return WriteResult((self._info(transaction, row), info, token), [event])

        return self._writer.run(AuditEvent(actor, Action.DEPLOYMENT_REGISTER, name), write)

    def declare(self, team_id: str, name: str, secrets: Sequence[str], *, actor: str) -> DeploymentInfo:
        """Register a deployment and the secrets it declares, without a token: for workloads with an identity.

        Raises as `register` does.
        """
        new = new_declaration(team_id, name, secrets)

        def write(transaction: Transaction) -> WriteResult[DeploymentInfo]:
            row, event = declare_deployment(transaction, new, at=self._now(), actor=actor)
            return WriteResult(self._info(transaction, row), [event])

        return self._writer.run(AuditEvent(actor, Action.DEPLOYMENT_REGISTER, name), write)

    def grant(self, token: KeyInfo) -> Grant:
        """What a token that `AccessKeys.authenticate` accepted allows.

        Raises:
            NotSignedIn: the deployment was removed.
        """
        with self._store.read() as connection:
            row = connection.one(_FIND_BY_ID, {"id": token.deployment_id})
            if row is None:
                raise NotSignedIn("the deployment of that token was removed", ended=True)
            team = get_team(connection, row.team_id)
        return Grant(
            deployment_id=row.id,
            deployment=row.name,
            team_id=row.team_id,
            team=team.name,
            names=token.allows,
            rights=(DEPLOYMENTS.right(row),),
        )

    def of_teams(self, team_ids: Collection[str]) -> list[DeploymentInfo]:
        """The deployments of these teams, by name, with their replicas."""
        with self._store.snapshot() as connection:
            rows = connection.all(_LIST, {"teams": sorted(team_ids)})
            teams = team_names(connection, [row.team_id for row in rows])
            found = self._replicas(connection, [row.id for row in rows])
        return [_info(row, teams.get(row.team_id, row.team_id), found.get(row.id, ())) for row in rows]

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
        """Remove a deployment and its identities, and revoke its tokens. Raises NotFound."""

        def write(transaction: Transaction) -> WriteResult[DeploymentInfo]:
            row, at = transaction.one(_FIND, {"team": team_id, "name": name}), self._now()
            if row is None:
                raise NotFound("there is no such deployment")
            team = team_names(transaction, [team_id]).get(team_id, team_id)
            replicas = self._replicas(transaction, [row.id]).get(row.id, ())
            transaction.update(DEPLOYMENTS, row, deleted_at=at)
            tokens, _ = transaction.all_valid(_TOKENS, {"id": row.id})
            revoke_keys(transaction, at, tokens)
            identities, _ = transaction.all_valid(_IDENTITIES, {"id": row.id})
            for identity in identities:
                transaction.delete(IDENTITIES, identity)
            transaction.run(_DELETE_REPLICAS, {"id": row.id})
            event = AuditEvent(actor, Action.DEPLOYMENT_REMOVE, name, details={"team": team_id})
            return WriteResult(_info(row, team, replicas), [event])

        return self._writer.run(AuditEvent(actor, Action.DEPLOYMENT_REMOVE, name), write)

    def in_use_by(self, connection: Connection, team_id: str, folded: str) -> list[str]:
        """The names of the deployments with a running replica that uses the secret with that folded name."""
        rows = connection.all(_LIST_REPLICAS_OF_TEAM, {"team": team_id})
        using = {
            lease.deployment_id
            for lease in map(self._leases.current, rows)
            if self._leases.is_live(lease) and lease.holds(folded)
        }
        return sorted({row.name for row in connection.all(_LIST_NAMES, {"ids": sorted(using)})})

    def _replicas(self, connection: Connection, ids: Sequence[str]) -> dict[str, tuple[ReplicaInfo, ...]]:
        found: dict[str, list[ReplicaInfo]] = {}
        for row in connection.all(_LIST_REPLICAS, {"ids": ids}):
            lease = self._leases.current(row)
            info = ReplicaInfo(
                id=lease.id,
                host=lease.host,
                versions=lease.versions,
                used=lease.used,
                started_at=text_in(row.started_at) or "",
                seen_at=lease.seen_at,
                live=self._leases.is_live(lease),
            )
            found.setdefault(lease.deployment_id, []).append(info)
        return {deployment: tuple(infos) for deployment, infos in found.items()}

    def _now(self) -> str:
        return timestamp(self._clock())


def new_declaration(team_id: str, name: str, secrets: Sequence[str]) -> Declaration:
    """A declaration with its names sorted. Raises UsageError and InvalidName for one that is not valid."""
    check_deployment_name(name)
    if len(secrets) > MAX_NAMES:
        raise UsageError(f"a deployment can declare at most {MAX_NAMES} secrets")
    names = sorted({check_name(each) for each in secrets})
    if clash := next(iter(spelling_clashes(names)), None):
        raise UsageError(f"{' and '.join(clash)} are two spellings of one name")
    return Declaration(team_id=team_id, name=name, secrets=tuple(names))


def declare_deployment(
    transaction: Transaction, new: Declaration, *, at: str, actor: str
) -> tuple[Any, AuditEvent]:
    """The row of the deployment, which now declares the secrets, and the event. Raises NotFound."""
    row = _put(transaction, new, at=at, actor=actor)
    new_access_generation(transaction)  # what identities may read has changed
    return row, _registered(new, actor, token=None)


def _put(transaction: Transaction, new: Declaration, *, at: str, actor: str) -> Any:
    declared = json.dumps(new.secrets)
    get_team(transaction, new.team_id)
    row = transaction.one(_FIND, {"team": new.team_id, "name": new.name})
    if row is not None:
        return transaction.update(DEPLOYMENTS, row, secrets=declared, updated_at=at)
    return transaction.insert(
        DEPLOYMENTS,
        {
            "id": new_id(),
            "team_id": new.team_id,
            "name": new.name,
            "secrets": declared,
            "created_at": at,
            "created_by": str(actor),
            "updated_at": at,
        },
    )


def _registered(new: Declaration, actor: str, **token: str | None) -> AuditEvent:
    details = {"team": new.team_id, "secrets": list(new.secrets), **token}
    return AuditEvent(actor, Action.DEPLOYMENT_REGISTER, new.name, details=details)


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
