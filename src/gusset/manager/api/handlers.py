"""Handlers for people, API keys, deployments and the audit log; the table of all operations for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gusset.errors import NotFound, UsageError
from gusset.manager.api import schemas
from gusset.manager.api.operations import Operation, PersonRequest, number, operation, teams_to_search
from gusset.manager.api.rotation_handlers import rotation_operations
from gusset.manager.api.secret_handlers import secret_operations
from gusset.manager.api.serializers import (
    api_key_model,
    audit_record_model,
    audit_verification_model,
    deployment_model,
    person_model,
    team_model,
    token_model,
)
from gusset.secrets.value import SecretValue
from gusset.vault import deadline
from gusset.vault.audit.events import AuditRecord
from gusset.vault.crypto.keyring import KEK
from gusset.vault.services.access_keys import SCOPES, KeyInfo
from gusset.vault.services.deployments import DeploymentInfo
from gusset.vault.wiring import Vault

# --- teams and people


def list_teams(request: PersonRequest[None]) -> schemas.TeamList:
    """List the teams that the caller sees."""
    return schemas.TeamList(teams=[team_model(team) for team in request.caller.teams])


def create_team(request: PersonRequest[schemas.NewTeam]) -> schemas.Team:
    """Create a team."""
    return request.write(
        lambda: request.vault.teams.create(request.body.name, actor=request.caller.actor), team_model
    )


def add_team_member(request: PersonRequest[None]) -> schemas.Person:
    """Add a person to a team."""
    team_id, user_id, actor = request.path["team_id"], request.path["user_id"], request.caller.actor
    return request.write(lambda: request.vault.teams.add_member(team_id, user_id, actor=actor), person_model)


def remove_team_member(request: PersonRequest[None]) -> schemas.Person:
    """Remove a person from a team."""
    team_id, user_id, actor = request.path["team_id"], request.path["user_id"], request.caller.actor
    return request.write(
        lambda: request.vault.teams.remove_member(team_id, user_id, actor=actor), person_model
    )


def get_current_user(request: PersonRequest[None]) -> schemas.CurrentUser:
    """Get the caller's identity."""
    person = request.caller.person
    return schemas.CurrentUser(
        user_id=person.id, email=person.email, name=person.name, workspace_name="gusset"
    )


def list_people(request: PersonRequest[None]) -> schemas.PersonList:
    """List all people."""
    return schemas.PersonList(people=[person_model(each) for each in request.vault.people.all()])


def invite_person(request: PersonRequest[schemas.NewPerson]) -> schemas.Invitation:
    """Invite a person; the response has a one-time link for choosing a password."""
    body = request.body
    write = partial(
        request.vault.invitations.invite,
        body.email,
        name=body.name,
        role=body.role,
        team_ids=body.team_ids,
        actor=request.caller.actor,
    )
    return request.write(
        write, lambda made: schemas.Invitation(person=person_model(made[0]), link=_setup_path(made[1]))
    )


def create_setup_link(request: PersonRequest[None]) -> schemas.SetupLink:
    """Create a new one-time link for a person who lost their link or password."""
    user_id, actor = request.path["user_id"], request.caller.actor
    return request.write(
        lambda: request.vault.invitations.new_link(user_id, actor=actor),
        lambda link: schemas.SetupLink(link=_setup_path(link)),
    )


def _setup_path(link: SecretValue) -> str:
    return f"/setup/{link.reveal().decode()}"


def update_person(request: PersonRequest[schemas.PersonUpdate]) -> schemas.Person:
    """Change a person's role, and disable or enable their account: all of it, or nothing.

    Disabling somebody who made tokens or identities needs `tokens`; else the response is 409 with the list
    of them.
    """
    body = request.body
    write = partial(
        request.vault.people.update,
        request.path["user_id"],
        role=body.role,
        disabled=body.disabled,
        tokens=body.tokens,
        actor=request.caller.actor,
    )
    return request.write(write, person_model)


# --- API keys


def list_api_keys(request: PersonRequest[None]) -> schemas.ApiKeyList:
    """List the caller's API keys."""
    keys = request.vault.access_keys.of_user(request.caller.person.id)
    return schemas.ApiKeyList(api_keys=[api_key_model(key) for key in keys])


def create_api_key(request: PersonRequest[schemas.NewApiKey]) -> schemas.CreatedApiKey:
    """Create an API key, with at most the scopes and the lifetime of the key that makes the request."""
    body, caller = request.body, request.caller
    if body.team_id is not None:
        raise UsageError(
            "an API key cannot be limited to one team", hint="give it few scopes, or use a deployment's token"
        )
    own_scopes = [scope for scope in SCOPES if scope in caller.scopes]
    scopes = own_scopes if body.scopes is None else list(dict.fromkeys(body.scopes))
    for scope in scopes:
        caller.require_scope(scope)
    caller.require_gives(body.gives)
    write = partial(
        request.vault.access_keys.create,
        caller.person.id,
        body.name,
        scopes=scopes,
        gives=body.gives,
        actor=caller.actor,
        expires_at=body.expires_at,
    )

    def respond(made: tuple[KeyInfo, SecretValue]) -> schemas.CreatedApiKey:
        info, key = made
        return schemas.CreatedApiKey(api_key=key.reveal().decode(), prefix=info.prefix)

    return request.write(write, respond)


def revoke_api_key(request: PersonRequest[None]) -> schemas.Revoked:
    """Revoke one of the caller's API keys, and what was made with it; administrators may revoke anyone's."""
    person, scopes = request.caller.person, request.caller.scopes

    def allowed(info: KeyInfo) -> bool:
        return info.kind == "key" and (info.user_id == person.id or (person.admin and "admin" in scopes))

    return _revoke(request, allowed)


def _revoke(request: PersonRequest[None], allowed: Callable[[KeyInfo], bool]) -> schemas.Revoked:
    prefix, actor = request.path["prefix"], request.caller.actor
    return request.write(
        lambda: request.vault.access_keys.revoke(prefix, actor=actor, allowed=allowed),
        lambda info: schemas.Revoked(prefix=info.prefix),
    )


# --- deployments


def list_deployments(request: PersonRequest[None]) -> schemas.DeploymentList:
    """List the deployments of the caller's teams, with their replicas."""
    team_ids = [team.id for team in request.caller.teams]
    found = request.vault.deployments.of_teams(team_ids)
    return schemas.DeploymentList(deployments=[deployment_model(each) for each in found])


def register_deployment(request: PersonRequest[schemas.NewDeployment]) -> schemas.RegisteredDeployment:
    """Register a deployment and the secrets it declares; the response has a token that reads only these."""
    body = request.body
    request.caller.require_gives(body.secrets)
    write = partial(
        request.vault.deployments.register,
        request.caller.team(body.team_id).id,
        body.name,
        body.secrets,
        actor=request.caller.actor,
        expires_at=body.expires_at,
    )

    def respond(made: tuple[DeploymentInfo, KeyInfo, SecretValue]) -> schemas.RegisteredDeployment:
        info, key, token = made
        return schemas.RegisteredDeployment(
            deployment=deployment_model(info), token=token.reveal().decode(), prefix=key.prefix
        )

    return request.write(write, respond)


def declare_secrets(request: PersonRequest[schemas.DeclaredSecrets]) -> schemas.Deployment:
    """Register a deployment, or change the secrets it declares, without a token: for its identities."""
    body = request.body
    request.caller.require_gives(body.secrets)
    write = partial(
        request.vault.deployments.declare,
        request.caller.team(body.team_id).id,
        request.path["name"],
        body.secrets,
        actor=request.caller.actor,
    )
    return request.write(write, deployment_model)


def get_deployment(request: PersonRequest[None]) -> schemas.Deployment:
    """Get a deployment, its replicas, and the versions that they hold."""
    return deployment_model(_deployment(request))


def remove_deployment(request: PersonRequest[None]) -> schemas.Deleted:
    """Remove a deployment and revoke its tokens."""
    found, actor = _deployment(request), request.caller.actor
    return request.write(
        lambda: request.vault.deployments.remove(found.team_id, found.name, actor=actor),
        lambda info: schemas.Deleted(name=info.name),
    )


def list_tokens(request: PersonRequest[None]) -> schemas.TokenList:
    """List a deployment's tokens."""
    keys = request.vault.access_keys.of_deployment(_deployment(request).id)
    return schemas.TokenList(tokens=[token_model(key) for key in keys])


def revoke_token(request: PersonRequest[None]) -> schemas.Revoked:
    """Revoke a deployment's token."""
    caller = request.caller
    if caller.sees_all:  # also those of deployments and teams that were altered in the database
        return _revoke(request, lambda info: info.kind == "token")
    team_ids = [team.id for team in caller.teams]
    visible = {each.id for each in request.vault.deployments.of_teams(team_ids)}

    def allowed(info: KeyInfo) -> bool:
        if info.kind == "token" and info.deployment_id not in visible:
            caller.check_teams()  # it may be one of a team that is left out
        return info.kind == "token" and info.deployment_id in visible

    return _revoke(request, allowed)


def _deployment(request: PersonRequest[None]) -> DeploymentInfo:
    """The deployment with the name in the path, in `team_id` or else in any of the caller's teams.

    Raises:
        NotFound: no such deployment.
        UsageError: several teams have one.
        IntegrityError: see `teams_to_search`.
    """
    name, team_ids = request.path["name"], teams_to_search(request)
    found = [each for each in request.vault.deployments.of_teams(team_ids) if each.name == name]
    if not found:
        raise NotFound("there is no such deployment")
    if len(found) > 1:
        raise UsageError("several teams have a deployment with this name", hint="add ?team_id=ID")
    return found[0]


# --- the audit log and the keyring


def list_audit_records(request: PersonRequest[None]) -> schemas.AuditRecordList:
    """List audit records, newest first; `before` gives the next page."""
    found = audit_records(request.vault, request.query)
    return schemas.AuditRecordList(records=[audit_record_model(record) for record in found])


def verify_audit_log(request: PersonRequest[None]) -> schemas.AuditVerification:
    """Verify that no audit record was edited, removed, reordered or cut off."""
    deadline.remove()
    return audit_verification_model(request.vault.audit.verify())


def rotate_keyring(request: PersonRequest[None]) -> schemas.KeyRotation:
    """Create a new key-encryption key, and rewrap every stored version with it."""
    deadline.remove()
    rotated = request.vault.key_rotation.rotate(actor=request.caller.actor)
    return schemas.KeyRotation(kek=rotated.newest[KEK], rewrapped=rotated.rewrapped)


def audit_records(vault: Vault, query: Mapping[str, str]) -> Sequence[AuditRecord]:
    """The records that match the query parameters, newest first. Raises UsageError."""
    limit = number(query.get("limit") or "50", "limit", most=1000)
    before = number(query["before"], "before") if query.get("before") else None
    if limit == 0:
        raise UsageError("limit must be from 1 to 1000")
    found = vault.audit.show(
        actor=query.get("actor") or None,
        action=query.get("action") or None,
        target=query.get("target") or None,
        outcome=query.get("outcome") or None,
        limit=limit,
        before=before,
    )
    return found[::-1]


_AUDIT_QUERY = {
    "actor": "Only records of this person or deployment.",
    "action": "Only this action, such as secret.write.",
    "target": "Only records about this target.",
    "outcome": "Only this outcome, such as ok or denied.",
    "before": "Only records before this sequence number.",
    "limit": "The maximum number of records, from 1 to 1000.",
}
_TEAM_ID = {"team_id": "The deployment's team, if several have one with this name."}


def _deployment_operations() -> list[Operation]:
    base = "/v1/deployments"
    one = base + "/{name}"
    return [
        operation("GET", base, list_deployments, "secrets:read", slow=True),
        operation("POST", base, register_deployment, "deployments"),
        operation("PUT", one, declare_secrets, "deployments"),
        operation("GET", one, get_deployment, "secrets:read", query=_TEAM_ID),
        operation("DELETE", one, remove_deployment, "deployments", query=_TEAM_ID),
        operation("GET", one + "/tokens", list_tokens, "deployments", query=_TEAM_ID),
        operation("DELETE", "/v1/tokens/{prefix}", revoke_token, "deployments"),
    ]


OPERATIONS: list[Operation] = [
    *secret_operations(),
    *rotation_operations(),
    operation("GET", "/v1/teams", list_teams, "secrets:read"),
    operation("POST", "/v1/teams", create_team, "admin"),
    operation("PUT", "/v1/teams/{team_id}/members/{user_id}", add_team_member, "admin"),
    operation("DELETE", "/v1/teams/{team_id}/members/{user_id}", remove_team_member, "admin"),
    operation("GET", "/v1/users/me", get_current_user, "secrets:read"),
    operation("GET", "/v1/people", list_people, "admin", slow=True),
    operation("POST", "/v1/people", invite_person, "admin"),
    operation("PATCH", "/v1/people/{user_id}", update_person, "admin"),
    operation("POST", "/v1/people/{user_id}/link", create_setup_link, "admin"),
    operation("GET", "/v1/api_keys", list_api_keys, "secrets:read"),
    operation("POST", "/v1/api_keys", create_api_key, "secrets:write"),
    operation("DELETE", "/v1/api_keys/{prefix}", revoke_api_key, "secrets:write"),
    *_deployment_operations(),
    operation("GET", "/v1/audit", list_audit_records, "admin", query=_AUDIT_QUERY, slow=True),
    operation("POST", "/v1/audit/verify", verify_audit_log, "admin", slow=True),
    operation("POST", "/v1/keyring/rotate", rotate_keyring, "admin", slow=True),
]
