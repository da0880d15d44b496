"""The routes for people: issuers that are trusted, and identities of deployments."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from gusset.errors import NotFound, UsageError
from gusset.manager.api import schemas
from gusset.manager.api.operations import Operation, PersonRequest, operation, teams_to_search
from gusset.manager.identity.issuer_keys import IssuerKeys, KeyStatus
from gusset.vault.services.deployments import Declaration, DeploymentInfo, new_declaration
from gusset.vault.services.identities import IdentityInfo
from gusset.vault.services.identity_rules import IdentityRule
from gusset.vault.services.issuers import IssuerInfo, NewIssuer, new_issuer

_TEAM_ID = {"team_id": "The identity's team, if several have one with this name."}
_URL = {"url": "The issuer's URL."}


class IdentityOperations:
    """Handlers of requests about issuers and identities."""

    def __init__(self, keys: IssuerKeys) -> None:
        self._keys = keys

    def list_issuers(self, request: PersonRequest[None]) -> schemas.IssuerList:
        """List the issuers that are trusted."""
        found = request.vault.issuers.all()
        return schemas.IssuerList(issuers=[_issuer_model(each, self._keys.status(each)) for each in found])

    def add_issuer(self, request: PersonRequest[schemas.NewIssuer]) -> schemas.Issuer:
        """Trust an issuer of JSON Web Tokens; its keys are fetched, and `problem` says why that failed."""
        body = request.body
        new = _new_issuer(body.url, body.jwks, allow_private=body.allow_private)
        info = request.vault.issuers.add(new, replace=body.replace, actor=request.caller.actor)
        return _issuer_model(info, self._keys.check(info))

    def remove_issuer(self, request: PersonRequest[None]) -> schemas.Removed:
        """Stop trusting an issuer; 409 while identities name it."""
        url = request.query.get("url")
        if not url:
            raise UsageError("the query parameter url is missing")
        actor = request.caller.actor
        return request.write(
            lambda: request.vault.issuers.remove(url, actor=actor), lambda _: schemas.Removed(url=url)
        )

    def operations(self) -> list[Operation]:
        issuers, identities = "/v1/issuers", "/v1/identities"
        return [
            operation("GET", issuers, self.list_issuers, "admin"),
            operation("POST", issuers, self.add_issuer, "admin"),
            operation("DELETE", issuers, self.remove_issuer, "admin", query=_URL),
            operation("GET", identities, list_identities, "secrets:read"),
            operation("POST", identities, add_identity, "deployments"),
            operation("DELETE", identities + "/{name}", remove_identity, "deployments", query=_TEAM_ID),
        ]


def list_identities(request: PersonRequest[None]) -> schemas.IdentityList:
    """List the identities of the caller's teams."""
    found = request.vault.identities.of_teams([team.id for team in request.caller.teams])
    return schemas.IdentityList(identities=[identity_model(each) for each in found])


def add_identity(request: PersonRequest[schemas.NewIdentity]) -> schemas.Identity:
    """Let tokens of an issuer stand for a deployment; 409 if another team has the same rule."""
    body, caller = request.body, request.caller
    deployment: str | Declaration
    if body.secrets is None:
        registered = _deployment(request)
        deployment, secrets = registered.id, registered.secrets
    else:
        deployment = new_declaration(caller.team(body.team_id).id, body.deployment, body.secrets)
        secrets = deployment.secrets
    caller.require_gives(secrets)
    rule = IdentityRule(
        issuer=body.issuer, audience=body.audience, subject=body.subject, claims=dict(body.claims)
    )
    write = partial(
        request.vault.identities.add,
        body.name,
        rule,
        deployment=deployment,
        new_issuer=_new_issuer(body.issuer, body.jwks),
        may_add_issuer=caller.sees_all,
        actor=caller.actor,
    )
    return request.write(write, identity_model)


def remove_identity(request: PersonRequest[None]) -> schemas.Deleted:
    """Remove an identity; the tokens issued for it stop working at once."""
    name, team_ids = request.path["name"], teams_to_search(request)
    found = [each for each in request.vault.identities.of_teams(team_ids) if each.name == name]
    if not found:
        raise NotFound("there is no such identity")
    if len(found) > 1:
        raise UsageError("several teams have an identity with this name", hint="add ?team_id=ID")
    actor = request.caller.actor
    return request.write(
        lambda: request.vault.identities.remove(found[0].team_id, name, actor=actor),
        lambda info: schemas.Deleted(name=info.name),
    )


def _deployment(request: PersonRequest[schemas.NewIdentity]) -> DeploymentInfo:
    """The deployment that the request names, of its team. Raises NotFound."""
    team = request.caller.team(request.body.team_id)
    for each in request.vault.deployments.of_teams([team.id]):
        if each.name == request.body.deployment:
            return each
    raise NotFound(
        f"the team {team.name} has no such deployment",
        hint="register it first: gusset deployment register NAME --secrets A,B",
    )


def _new_issuer(url: str, jwks: str | dict[str, Any] | None, *, allow_private: bool = False) -> NewIssuer:
    """The issuer that a request is for. Its keys may be sent as an object, too. Raises UsageError."""
    return new_issuer(url, json.dumps(jwks) if isinstance(jwks, dict) else jwks, allow_private=allow_private)


def _issuer_model(info: IssuerInfo, status: KeyStatus) -> schemas.Issuer:
    return schemas.Issuer(
        url=info.url,
        keys_from=info.jwks_url or ("content" if info.jwks else "discovery"),
        allow_private=info.allow_private,
        created_at=info.created_at,
        created_by=info.created_by,
        keys=status.keys,
        fetched_at=status.fetched_at,
        problem=status.problem,
    )


def identity_model(info: IdentityInfo) -> schemas.Identity:
    return schemas.Identity(
        id=info.id,
        name=info.name,
        team_id=info.team_id,
        team_name=info.team,
        deployment=info.deployment,
        issuer=info.rule.issuer,
        audience=info.rule.audience,
        subject=info.rule.subject,
        claims=info.rule.claims,
        created_at=info.created_at,
        created_by=info.created_by,
        last_used_at=info.last_used_at,
    )
