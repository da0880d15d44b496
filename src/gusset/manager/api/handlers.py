"""The operations for people: secrets, teams, keys, deployments, audit log. None of them returns a value."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gusset.errors import InvalidValue, NotFound, UsageError
from gusset.manager.api import schemas
from gusset.manager.api.operations import Answer, Call, Handler, Method, Operation, Shape
from gusset.manager.api.serializers import (
    deployment_data,
    key_data,
    person_data,
    secret_data,
    team_data,
    token_data,
    version_data,
)
from gusset.secrets.info import SecretInfo
from gusset.secrets.name import fold_name
from gusset.secrets.value import SecretValue
from gusset.secrets.value_doctor import examine
from gusset.vault.services.access_keys import SCOPES, KeyInfo
from gusset.vault.services.deployments import DeploymentInfo
from gusset.vault.services.people import TeamInfo
from gusset.vault.services.secret_store import SecretStore

# --- secrets


def list_secrets(call: Call) -> Any:
    """List the secrets of every team that the caller sees."""
    return {"secrets": [secret for team in call.person.teams for secret in _of(call, team)]}


def list_team_secrets(call: Call) -> Any:
    """List the secrets of one team."""
    return {"secrets": _of(call, _team(call))}


def _of(call: Call, team: TeamInfo) -> list[dict[str, Any]]:
    deleted = call.flag("deleted")
    found = call.vault.team(team.id, team.name).list(include_deleted=deleted)
    used = call.declaring(team.id)
    return [secret_data(info, used.get(fold_name(info.name), ())) for info in found]


def set_secret(call: Call) -> Any:
    """Create a secret, or give it a new version."""
    body: schemas.SetSecret = call.body
    value = value_of(body)
    info = _store(call).set(
        body.name,
        value,
        actor=call.person.actor,
        note=body.note,
        expires_at=body.expires_at,
        expect_version=expected_version(call.headers),
    )
    warnings = [
        {"message": finding.message, "hint": finding.hint}
        for finding in examine(value.reveal(), name=info.name, now=datetime.now(UTC))
    ]
    return _one(info, warnings)


def set_secrets(call: Call) -> Any:
    """Set several secrets, all or none."""
    body: schemas.SecretBatch = call.body
    values = [(each.name, value_of(each)) for each in body.secrets]
    infos = _store(call).set_many(values, actor=call.person.actor)
    return {"secrets": [secret_data(info) for info in infos]}


def get_secret(call: Call) -> Any:
    """What is known of a secret, but for its value."""
    info = _store(call).get(call.path["name"])
    used = call.declaring(info.team_id)
    return Answer(secret_data(info, used.get(fold_name(info.name), ())), _etag(info))


def annotate_secret(call: Call) -> Any:
    """Change the note or the expiry date."""
    body: schemas.Annotation = call.body
    told: dict[str, Any] = {}
    if "note" in body.model_fields_set:
        told["note"] = body.note or ""
    if "expires_at" in body.model_fields_set:
        told["expires_at"] = body.expires_at or "never"
    return _one(_store(call).annotate(call.path["name"], actor=call.person.actor, **told))


def delete_secret(call: Call) -> Any:
    """Delete a secret; it can be restored. Refused while a running deployment uses it, unless forced."""
    info = _store(call).delete(call.path["name"], actor=call.person.actor, force=call.flag("force"))
    return {"name": info.name}


def list_versions(call: Call) -> Any:
    """List a secret's versions."""
    return {"versions": [version_data(each) for each in _store(call).history(call.path["name"])]}


def roll_back(call: Call) -> Any:
    """Make an older version's value current again, as a new version."""
    return _one(_store(call).rollback(call.path["name"], call.body.version, actor=call.person.actor))


def destroy(call: Call) -> Any:
    """Destroy the stored bytes of versions, for good."""
    return _one(_store(call).destroy(call.path["name"], call.body.versions, actor=call.person.actor))


def restore(call: Call) -> Any:
    """Bring a deleted secret back, by its name (the last one deleted) or its id."""
    return _one(_store(call).restore(call.path["name"], actor=call.person.actor))


# --- teams and people


def list_teams(call: Call) -> Any:
    """List the teams that the caller sees."""
    return {"teams": [team_data(team) for team in call.person.teams]}


def create_team(call: Call) -> Any:
    """Make a team."""
    return team_data(call.vault.people.create_team(call.body.name, actor=call.person.actor))


def add_member(call: Call) -> Any:
    """Put a person in a team."""
    call.vault.people.add_member(call.path["team_id"], call.path["user_id"], actor=call.person.actor)
    return person_data(call.vault.people.get(call.path["user_id"]))


def remove_member(call: Call) -> Any:
    """Take a person out of a team."""
    call.vault.people.remove_member(call.path["team_id"], call.path["user_id"], actor=call.person.actor)
    return person_data(call.vault.people.get(call.path["user_id"]))


def me(call: Call) -> Any:
    """Who the caller is."""
    person = call.person.person
    return {"user_id": person.id, "email": person.email, "name": person.name, "workspace_name": "gusset"}


def list_people(call: Call) -> Any:
    """List everybody."""
    return {"people": [person_data(person) for person in call.vault.people.everybody()]}


def invite(call: Call) -> Any:
    """Add a person; the answer has the link by which they choose a password."""
    body: schemas.NewPerson = call.body
    person, link = call.vault.people.invite(
        body.email, name=body.name, role=body.role, team_ids=body.team_ids, actor=call.person.actor
    )
    return {"person": person_data(person), "link": f"/setup/{link.reveal().decode()}"}


def new_link(call: Call) -> Any:
    """Make another link for a person who lost theirs, or their password."""
    link = call.vault.people.new_link(call.path["user_id"], actor=call.person.actor)
    return {"link": f"/setup/{link.reveal().decode()}"}


def change_person(call: Call) -> Any:
    """Change a person's role, or let them in no more."""
    body: schemas.PersonChange = call.body
    people, user_id, actor = call.vault.people, call.path["user_id"], call.person.actor
    if body.role is not None:
        people.set_role(user_id, body.role, actor=actor)
    if body.disabled is not None:
        (people.disable if body.disabled else people.enable)(user_id, actor=actor)
    return person_data(people.get(user_id))


# --- keys


def list_keys(call: Call) -> Any:
    """List the caller's API keys."""
    return {"api_keys": [key_data(key) for key in call.vault.access.of_user(call.person.person.id)]}


def create_key(call: Call) -> Any:
    """Make an API key. Its scopes are at most those of the key that asks."""
    body: schemas.NewKey = call.body
    if body.team_id is not None:
        raise UsageError("a key cannot be confined to a team", hint="give it few scopes, or use a token")
    mine = [scope for scope in SCOPES if scope in call.person.scopes]
    scopes = mine if body.scopes is None else list(dict.fromkeys(body.scopes))
    for scope in scopes:
        call.person.need(scope)
    info, key = call.vault.access.create(
        call.person.person.id, body.name, scopes=scopes, actor=call.person.actor, expires_at=body.expires_at
    )
    return {"api_key": key.reveal().decode(), "prefix": info.prefix}


def revoke_key(call: Call) -> Any:
    """Revoke an API key: one's own, or for an administrator anybody's."""
    person, scopes = call.person.person, call.person.scopes

    def allowed(info: KeyInfo) -> bool:
        return info.kind == "key" and (info.user_id == person.id or (person.admin and "admin" in scopes))

    call.vault.access.revoke(call.path["prefix"], actor=call.person.actor, allowed=allowed)
    return {"prefix": call.path["prefix"]}


# --- deployments


def list_deployments(call: Call) -> Any:
    """List deployments and their replicas."""
    teams = [team.id for team in call.person.teams]
    return {"deployments": [deployment_data(each) for each in call.vault.deployments.of_teams(teams)]}


def register(call: Call) -> Any:
    """Say what a deployment declares; the answer has a token that reads just that."""
    body: schemas.NewDeployment = call.body
    info, key, token = call.vault.deployments.register(
        call.person.team(body.team_id).id,
        body.name,
        body.secrets,
        actor=call.person.actor,
        expires_at=body.expires_at,
    )
    return {"deployment": deployment_data(info), "token": token.reveal().decode(), "prefix": key.prefix}


def get_deployment(call: Call) -> Any:
    """A deployment, its replicas and the versions that they hold."""
    return deployment_data(_deployment(call))


def remove_deployment(call: Call) -> Any:
    """Forget a deployment and revoke its tokens."""
    info = _deployment(call)
    call.vault.deployments.remove(info.team_id, info.name, actor=call.person.actor)
    return {"name": info.name}


def list_tokens(call: Call) -> Any:
    """List a deployment's tokens."""
    return {"tokens": [token_data(key) for key in call.vault.access.of_deployment(_deployment(call).id)]}


def revoke_token(call: Call) -> Any:
    """Revoke a deployment's token."""
    teams = [team.id for team in call.person.teams]
    mine = {each.id for each in call.vault.deployments.of_teams(teams)}

    def allowed(info: KeyInfo) -> bool:
        return info.kind == "token" and info.deployment_id in mine

    call.vault.access.revoke(call.path["prefix"], actor=call.person.actor, allowed=allowed)
    return {"prefix": call.path["prefix"]}


# --- the audit log and the keyring


def audit(call: Call) -> Any:
    """Read the audit log, newest first, page by page (`before`)."""
    return {"records": [record.data() for record in audit_records(call.vault, call.query)]}


def verify_audit(call: Call) -> Any:
    """Check that no record was edited, removed, reordered or cut off."""
    report = call.vault.audit.verify()
    return {
        "records": report.records,
        "checkpoints": report.checkpoints,
        "head": report.head,
        "problems": list(report.problems),
    }


def rotate(call: Call) -> Any:
    """Put a new key-encryption key in place, and wrap every stored version with it."""
    rotated = call.vault.keys.rotate(actor=call.person.actor)
    return {"kek": rotated.kek, "rewrapped": rotated.rewrapped}


# --- what handlers share


def _team(call: Call) -> TeamInfo:
    return call.person.team(call.path.get("team_id"))


def _store(call: Call) -> SecretStore:
    team = _team(call)
    return call.vault.team(team.id, team.name)


def _deployment(call: Call) -> DeploymentInfo:
    """The deployment of that name in `team_id`, or in the only team of the caller's that has one."""
    wanted, team_id = call.path["name"], call.query.get("team_id")
    teams = [call.person.team(team_id)] if team_id else call.person.teams
    found = [each for each in call.vault.deployments.of_teams([t.id for t in teams]) if each.name == wanted]
    if not found:
        raise NotFound("there is no such deployment")
    if len(found) > 1:
        raise UsageError("several teams have a deployment of that name", hint="say which: ?team_id=ID")
    return found[0]


def _one(info: SecretInfo, warnings: list[dict[str, str]] | None = None) -> Answer:
    data = secret_data(info)
    return Answer({**data, "warnings": [*data["warnings"], *(warnings or [])]}, _etag(info))


def _etag(info: SecretInfo) -> dict[str, str]:
    return {"etag": f'"{info.version or 0}"'}


_ETAG = re.compile(r'"(\d{1,9})"')


def expected_version(headers: Mapping[str, str]) -> int | None:
    """The version that `If-Match` names, 0 for `If-None-Match: *`, None without either.

    Raises:
        UsageError: another kind of condition.
    """
    if (text := headers.get("if-none-match")) is not None:
        if text.strip() != "*":
            raise UsageError("If-None-Match can only be *: the secret must not exist yet")
        return 0
    if (text := headers.get("if-match")) is None:
        return None
    found = _ETAG.fullmatch(text.strip())
    if not found:
        raise UsageError('If-Match is a version as in the ETag of an answer, like "3"')
    return int(found[1])


def value_of(secret: schemas.NewSecret) -> SecretValue:
    """The bytes that a request gives as a value. Raises InvalidValue for what is not base64."""
    if secret.encoding is None:
        return SecretValue(secret.value.encode())
    try:
        return SecretValue(base64.b64decode(secret.value, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidValue("the value is not base64") from None


def audit_records(vault: Any, query: Mapping[str, str]) -> Any:
    """The newest records that fit a query, newest first. Raises UsageError."""
    try:
        limit = int(query.get("limit") or 50)
        before = int(query["before"]) if query.get("before") else None
    except ValueError:
        raise UsageError("limit and before are numbers") from None
    if not 1 <= limit <= 1000:
        raise UsageError("limit is 1 to 1000")
    wanted = {key: query[key] for key in ("actor", "action", "target", "outcome") if query.get(key)}
    return vault.audit.show(**wanted, limit=limit, before=before)[::-1]


_FILTERS = {
    "actor": "Only what this person or deployment did.",
    "action": "Only this action, as in secret.write.",
    "target": "Only what was done to this.",
    "outcome": "Only what ended so, as in ok or denied.",
    "before": "Only records before this number.",
    "limit": "At most so many, 1 to 1000.",
}
_TEAM_ID = {"team_id": "Where several teams have one of that name."}


def _secret_operations(base: str, listing: Any) -> list[Operation]:
    """The secrets' operations, once for the caller's default team and once for a team by its id."""
    one = base + "/{name}"

    def read(method: Method, path: str, handler: Handler, answer: Shape, **more: Any) -> Operation:
        return Operation(method, path, handler, "secrets:read", answer, **more)

    def write(
        method: Method, path: str, handler: Handler, body: Shape | None = None, **more: Any
    ) -> Operation:
        answer = more.pop("answer", schemas.Secret)
        return Operation(method, path, handler, "secrets:write", answer, body, writes=True, **more)

    force, many = {"force": "Also while a running deployment uses it."}, schemas.SecretList
    return [
        read("GET", base, listing, many, query={"deleted": "Also deleted ones."}, slow=True),
        write("POST", base, set_secret, schemas.SetSecret),
        write("POST", base + ":batch", set_secrets, schemas.SecretBatch, answer=many, slow=True),
        read("GET", one, get_secret, schemas.Secret),
        write("PATCH", one, annotate_secret, schemas.Annotation),
        write("DELETE", one, delete_secret, answer=schemas.Deleted, query=force),
        read("GET", one + "/versions", list_versions, schemas.VersionList),
        write("POST", one + "/rollback", roll_back, schemas.Rollback),
        write("POST", one + "/destroy", destroy, schemas.Destroy),
        write("POST", one + "/restore", restore),
    ]


OPERATIONS: list[Operation] = [
    *_secret_operations("/v1/secrets", list_secrets),
    *_secret_operations("/v1/teams/{team_id}/secrets", list_team_secrets),
    Operation("GET", "/v1/teams", list_teams, "secrets:read", schemas.TeamList),
    Operation("POST", "/v1/teams", create_team, "admin", schemas.Team, schemas.NewTeam),
    Operation("PUT", "/v1/teams/{team_id}/members/{user_id}", add_member, "admin", schemas.PersonOut),
    Operation("DELETE", "/v1/teams/{team_id}/members/{user_id}", remove_member, "admin", schemas.PersonOut),
    Operation("GET", "/v1/users/me", me, "secrets:read", schemas.Me),
    Operation("GET", "/v1/people", list_people, "admin", schemas.PersonList, slow=True),
    Operation("POST", "/v1/people", invite, "admin", schemas.Invited, schemas.NewPerson),
    Operation(
        "PATCH", "/v1/people/{user_id}", change_person, "admin", schemas.PersonOut, schemas.PersonChange
    ),
    Operation("POST", "/v1/people/{user_id}/link", new_link, "admin", schemas.Link),
    Operation("GET", "/v1/api_keys", list_keys, "secrets:read", schemas.KeyList),
    Operation("POST", "/v1/api_keys", create_key, "secrets:write", schemas.FreshKey, schemas.NewKey),
    Operation("DELETE", "/v1/api_keys/{prefix}", revoke_key, "secrets:write", schemas.Prefix),
    Operation("GET", "/v1/deployments", list_deployments, "secrets:read", schemas.DeploymentList, slow=True),
    Operation("POST", "/v1/deployments", register, "deployments", schemas.Registered, schemas.NewDeployment),
    Operation(
        "GET", "/v1/deployments/{name}", get_deployment, "secrets:read", schemas.Deployment, query=_TEAM_ID
    ),
    Operation(
        "DELETE", "/v1/deployments/{name}", remove_deployment, "deployments", schemas.Deleted, query=_TEAM_ID
    ),
    Operation(
        "GET", "/v1/deployments/{name}/tokens", list_tokens, "deployments", schemas.TokenList, query=_TEAM_ID
    ),
    Operation("DELETE", "/v1/tokens/{prefix}", revoke_token, "deployments", schemas.Prefix),
    Operation("GET", "/v1/audit", audit, "admin", schemas.AuditRecords, query=_FILTERS, slow=True),
    Operation("POST", "/v1/audit/verify", verify_audit, "admin", schemas.Verified, slow=True),
    Operation("POST", "/v1/keyring/rotate", rotate, "admin", schemas.Rotated, slow=True),
]
