"""Identities: which JSON Web Tokens of which issuers stand for which deployments."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gusset.errors import Conflict, Denied, NotFound, UsageError
from gusset.secrets.name import is_deployment_name
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.ids import new_id
from gusset.vault.services.access_keys import new_access_generation
from gusset.vault.services.deployments import Declaration, declare_deployment
from gusset.vault.services.identity_rules import IdentityRule
from gusset.vault.services.issuers import NewIssuer, find_issuer, insert_issuer
from gusset.vault.services.person import check_teams, team_names
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import escaped
from gusset.vault.storage.tables import DEPLOYMENTS, IDENTITIES

MAX_OF_SUBJECT = 100  # identities with one issuer and subject: each exchange compares all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityInfo:
    """A rule, and the deployment that the tokens it matches stand for."""

    id: str
    name: str
    team_id: str
    team: str
    deployment_id: str
    deployment: str
    rule: IdentityRule
    created_at: str
    created_by: str
    last_used_at: str | None

    @property
    def target(self) -> str:
        """The deployment as a request for a token names it: TEAM/DEPLOYMENT."""
        return f"{self.team}/{self.deployment}"


_FIND = Select(IDENTITIES, "team_id = :team", "name = :name")
_LIST = Select(IDENTITIES, "team_id IN (:teams...)", then="ORDER BY name, team_id")
_MADE_BY = Select(
    IDENTITIES,
    also="created_by = :email OR created_by LIKE :by_key ESCAPE '/'",
    then="ORDER BY name, team_id",
)
_OF_SUBJECT = Select(IDENTITIES, "issuer = :issuer", "subject = :subject", then="ORDER BY name, id")
_FIND_DEPLOYMENT = Select(DEPLOYMENTS, "id = :id", "deleted_at IS NULL")
_FIND_DEPLOYMENTS = Select(DEPLOYMENTS, "id IN (:ids...)")


class Identities:
    """Adds, lists and removes identities, and finds those that match a token."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def of_teams(self, team_ids: Collection[str]) -> list[IdentityInfo]:
        """The identities of these teams, by name."""
        with self._store.snapshot() as connection:
            return identity_infos(connection, connection.all(_LIST, {"teams": sorted(team_ids)}))

    def matching(self, claims: Mapping[str, Any]) -> list[IdentityInfo]:
        """The identities whose rules match the claims of a verified token, by name.

        Raises:
            IntegrityError: such an identity, its deployment or its team was altered in the database.
        """
        with self._store.snapshot() as connection:
            rows = connection.all(_OF_SUBJECT, {"issuer": claims["iss"], "subject": claims["sub"]})
            if not rows:
                return []
            # Callers may name these: no id may come in place of a name.
            connection.all(_FIND_DEPLOYMENTS, {"ids": sorted({row.deployment_id for row in rows})})
            check_teams(connection, [row.team_id for row in rows])
            return [each for each in identity_infos(connection, rows) if each.rule.matches(claims)]

    def add(
        self,
        name: str,
        rule: IdentityRule,
        *,
        deployment: str | Declaration,
        new_issuer: NewIssuer,
        may_add_issuer: bool,
        actor: str,
    ) -> IdentityInfo:
        """Let tokens that match `rule` stand for a deployment: an existing one, by its id, or one to declare.

        If the issuer is missing, it is added if the caller may do so. `new_issuer` says how to find its keys.

        Raises:
            UsageError: the name or the rule is not valid.
            NotFound: there is no such deployment.
            Denied: the issuer is missing, and the caller may not add it.
            Conflict: the name is in use, another team has the same rule, or the issuer's keys are found
                in another way.
        """
        if not is_deployment_name(name):
            raise UsageError("an identity's name must have 1 to 253 printable characters, without '/'")
        rule.check()

        def write(transaction: Transaction) -> WriteResult[IdentityInfo]:
            at = timestamp(self._clock())
            row, registered = _deployment_row(transaction, deployment, at=at, actor=actor)
            team_id, deployment_id = row.team_id, row.id
            if transaction.one(_FIND, {"team": team_id, "name": name}) is not None:
                raise Conflict(f"there is already an identity {name}")
            _check_unique(transaction, rule, team_id)
            events = _ensure_issuer(transaction, new_issuer, may_add=may_add_issuer, at=at, actor=actor)
            row = transaction.insert(
                IDENTITIES,
                {
                    "id": new_id(),
                    "team_id": team_id,
                    "name": name,
                    "deployment_id": deployment_id,
                    "issuer": rule.issuer,
                    "audience": rule.audience,
                    "subject": rule.subject,
                    "claims": rule.claims_text(),
                    "created_at": at,
                    "created_by": str(actor),
                },
            )
            new_access_generation(transaction)
            [info] = identity_infos(transaction, [row])
            return WriteResult(info, [*registered, *events, _event(actor, Action.IDENTITY_ADD, info)])

        return self._writer.run(AuditEvent(actor, Action.IDENTITY_ADD, name), write)

    def remove(self, team_id: str, name: str, *, actor: str) -> IdentityInfo:
        """Remove an identity: the tokens issued for it stop working at once. Raises NotFound."""

        def write(transaction: Transaction) -> WriteResult[IdentityInfo]:
            row = transaction.one(_FIND, {"team": team_id, "name": name})
            if row is None:
                raise NotFound("there is no such identity")
            [info] = identity_infos(transaction, [row])
            transaction.delete(IDENTITIES, row)
            new_access_generation(transaction)
            return WriteResult(info, [_event(actor, Action.IDENTITY_REMOVE, info)])

        return self._writer.run(AuditEvent(actor, Action.IDENTITY_REMOVE, name), write)


def identities_made_by(connection: Connection, email: str) -> list[Any]:
    """The rows of the identities that a person has added, with whatever key. Not those that were altered."""
    rows, _ = connection.all_valid(_MADE_BY, {"email": email, "by_key": f"{escaped(email)} (key %"})
    return rows


def remove_identities(transaction: Transaction, rows: Sequence[Any], actor: str) -> Sequence[AuditEvent]:
    """Remove identities; returns the events. The caller makes a new access generation."""
    for row in rows:
        transaction.delete(IDENTITIES, row)
    return [_event(actor, Action.IDENTITY_REMOVE, info) for info in identity_infos(transaction, rows)]


def _deployment_row(
    transaction: Transaction, deployment: str | Declaration, *, at: str, actor: str
) -> tuple[Any, Sequence[AuditEvent]]:
    """The deployment's row, and the event if it is declared now. Raises NotFound."""
    if isinstance(deployment, Declaration):
        row, event = declare_deployment(transaction, deployment, at=at, actor=actor)
        return row, [event]
    if (row := transaction.one(_FIND_DEPLOYMENT, {"id": deployment})) is None:
        raise NotFound("there is no such deployment")
    return row, []


def _check_unique(connection: Connection, rule: IdentityRule, team_id: str) -> None:
    """Raises Conflict if the same rule is another team's, or too many have the subject."""
    rows = connection.all(_OF_SUBJECT, {"issuer": rule.issuer, "subject": rule.subject})
    same = [row for row in rows if row.audience == rule.audience and row.claims == rule.claims_text()]
    if any(row.team_id != team_id for row in same):
        raise Conflict(
            "another team has an identity with this issuer, audience, subject and claims",
            hint="use --claim to require a claim that only your workload has",
        )
    if len(rows) >= MAX_OF_SUBJECT:
        raise Conflict(f"{MAX_OF_SUBJECT} identities have this issuer and subject, which is the limit")


def _ensure_issuer(
    transaction: Transaction, new: NewIssuer, *, may_add: bool, at: str, actor: str
) -> Sequence[AuditEvent]:
    found = find_issuer(transaction, new.url)
    if found is None:
        if not may_add:
            raise Denied(
                f"{new.url} is not a trusted issuer, and only an administrator may add it",
                hint=f"an administrator adds it: gusset issuer add {new.url}",
            )
        return [insert_issuer(transaction, new, at=at, actor=actor)[1]]
    wanted = (new.jwks_url, new.jwks)
    if wanted != (None, None) and wanted != (found.jwks_url, found.jwks):
        raise Conflict(
            "that issuer already has another key source",
            hint="leave out --jwks; `gusset issuer list` shows the current one",
        )
    return []


def _event(actor: str, action: Action, info: IdentityInfo) -> AuditEvent:
    details = {
        "team": info.team_id,
        "deployment": info.deployment,
        "issuer": info.rule.issuer,
        "audience": info.rule.audience,
        "subject": info.rule.subject,
        "claims": dict(info.rule.claims),
    }
    return AuditEvent(actor, action, info.name, details=details)


def identity_infos(connection: Connection, rows: Sequence[Any]) -> list[IdentityInfo]:
    """Identities from their rows."""
    if not rows:
        return []
    ids = sorted({row.deployment_id for row in rows})
    found, _ = connection.all_valid(_FIND_DEPLOYMENTS, {"ids": ids})
    deployments = {each.id: each.name for each in found}
    teams = team_names(connection, [row.team_id for row in rows])
    return [
        _info(
            row,  # by the id where the row with the name was removed or altered
            team=teams.get(row.team_id, row.team_id),
            deployment=deployments.get(row.deployment_id, row.deployment_id),
        )
        for row in rows
    ]


def _info(row: Any, *, team: str, deployment: str) -> IdentityInfo:
    """An identity from its row."""
    rule = IdentityRule(
        issuer=row.issuer, audience=row.audience, subject=row.subject, claims=json.loads(row.claims)
    )
    return IdentityInfo(
        id=row.id,
        name=row.name,
        team_id=row.team_id,
        team=team,
        deployment_id=row.deployment_id,
        deployment=deployment,
        rule=rule,
        created_at=row.created_at,
        created_by=row.created_by,
        last_used_at=row.last_used_at,
    )
