"""Handlers for secrets. None of them returns a value."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from gusset.errors import InvalidValue, UsageError
from gusset.manager.api import schemas
from gusset.manager.api.operations import (
    ApiHandler,
    ApiResponse,
    BodyT,
    Operation,
    PersonRequest,
    number,
    operation,
)
from gusset.manager.api.serializers import rotation_model, secret_model, version_model
from gusset.secrets.info import SecretInfo
from gusset.secrets.name import fold_name
from gusset.secrets.value import SecretValue
from gusset.secrets.value_doctor import examine
from gusset.vault.services.person import TeamInfo
from gusset.vault.wiring import TeamSecrets


def list_secrets(request: PersonRequest[None]) -> schemas.SecretList:
    """List the secrets of all the caller's teams."""
    return schemas.SecretList(
        secrets=[secret for team in request.caller.teams for secret in _secrets_of(request, team)]
    )


def list_team_secrets(request: PersonRequest[None]) -> schemas.SecretList:
    """List a team's secrets."""
    return schemas.SecretList(secrets=_secrets_of(request, _team(request)))


def _secrets_of(request: PersonRequest[None], team: TeamInfo) -> list[schemas.Secret]:
    deleted = request.flag("deleted")
    found = request.vault.secrets_of(team.id, team.name).reader.list(include_deleted=deleted)
    used_by = request.deployments_by_secret(team.id)
    return [secret_model(info, used_by.get(fold_name(info.name), ())) for info in found]


def set_secret(request: PersonRequest[schemas.SetSecret]) -> ApiResponse[schemas.Secret]:
    """Create a secret, or add a new version to an existing one."""
    body, now = request.body, datetime.now(UTC)
    value = value_of(body)
    write = partial(
        _secrets(request).writer.set,
        body.name,
        value,
        actor=request.caller.actor,
        note=body.note,
        expires_at=body.expires_at,
        expect_version=expected_version(request.headers),
        overlap=None if body.overlap is None else timedelta(seconds=body.overlap),
    )

    def respond(info: SecretInfo) -> ApiResponse[schemas.Secret]:
        findings = examine(value.reveal(), name=info.name, now=now)
        warnings = [schemas.SecretWarning(message=each.message, hint=each.hint) for each in findings]
        return ApiResponse(secret_model(info, warnings=warnings), _etag(info))

    return request.write(write, respond)


def set_secrets(request: PersonRequest[schemas.SecretBatch]) -> schemas.SecretList:
    """Set several secrets in one transaction: all of them or none."""
    values = [(each.name, value_of(each)) for each in request.body.secrets]
    return request.write(
        lambda: _secrets(request).writer.set_many(values, actor=request.caller.actor),
        lambda infos: schemas.SecretList(secrets=[secret_model(info) for info in infos]),
    )


def get_secret(request: PersonRequest[None]) -> ApiResponse[schemas.Secret]:
    """Get a secret's metadata, without its value."""
    info = _secrets(request).reader.get(request.path["name"])
    used_by = request.deployments_by_secret(info.team_id)
    return ApiResponse(secret_model(info, used_by.get(fold_name(info.name), ())), _etag(info))


def update_secret(request: PersonRequest[schemas.SecretUpdate]) -> ApiResponse[schemas.Secret]:
    """Change a secret's note, expiry date or interval of rotations."""
    body, given = request.body, request.body.model_fields_set
    write = partial(
        _secrets(request).writer.annotate,
        request.path["name"],
        actor=request.caller.actor,
        note=(body.note or "") if "note" in given else None,
        expires_at=(body.expires_at or "never") if "expires_at" in given else None,
        rotate_every=_interval(body.rotate_every) if "rotate_every" in given else None,
    )
    return request.write(write, _response)


def _interval(seconds: int | None) -> timedelta | Literal["never"]:
    return "never" if seconds is None else timedelta(seconds=seconds)


def delete_secret(request: PersonRequest[None]) -> schemas.Deleted:
    """Delete a secret; it can be restored. Refused while a running deployment uses it, unless forced."""
    name, actor, force = request.path["name"], request.caller.actor, request.flag("force")
    return request.write(
        lambda: _secrets(request).writer.delete(name, actor=actor, force=force),
        lambda info: schemas.Deleted(name=info.name),
    )


def list_versions(request: PersonRequest[None]) -> schemas.VersionList:
    """List a secret's versions."""
    history = _secrets(request).reader.history(request.path["name"])
    return schemas.VersionList(versions=[version_model(each) for each in history])


def get_rotation(request: PersonRequest[None]) -> schemas.Rotation:
    """Get the progress of a new version across the replicas that may have held an older one."""
    team, text = _team(request), request.query.get("version")
    version = None if text is None else number(text, "version", most=2**31 - 1)
    return rotation_model(request.vault.rotations_of(team.id, team.name).get(request.path["name"], version))


def roll_back_secret(request: PersonRequest[schemas.Rollback]) -> ApiResponse[schemas.Secret]:
    """Make an older version's value current again, as a new version."""
    writer, name, actor = _secrets(request).writer, request.path["name"], request.caller.actor
    return request.write(lambda: writer.rollback(name, request.body.version, actor=actor), _response)


def destroy_versions(request: PersonRequest[schemas.Destroy]) -> ApiResponse[schemas.Secret]:
    """Permanently destroy the stored bytes of versions."""
    writer, name, actor = _secrets(request).writer, request.path["name"], request.caller.actor
    return request.write(lambda: writer.destroy(name, request.body.versions, actor=actor), _response)


def restore_secret(request: PersonRequest[None]) -> ApiResponse[schemas.Secret]:
    """Restore a deleted secret, by its name (the last one deleted) or its id."""
    writer, name, actor = _secrets(request).writer, request.path["name"], request.caller.actor
    return request.write(lambda: writer.restore(name, actor=actor), _response)


def _team(request: PersonRequest[BodyT]) -> TeamInfo:
    return request.caller.team(request.path.get("team_id"))


def _secrets(request: PersonRequest[BodyT]) -> TeamSecrets:
    team = _team(request)
    return request.vault.secrets_of(team.id, team.name)


def _response(info: SecretInfo) -> ApiResponse[schemas.Secret]:
    return ApiResponse(secret_model(info), _etag(info))


def _etag(info: SecretInfo) -> dict[str, str]:
    return {"etag": f'"{info.version or 0}"'}


_ETAG = re.compile(rb'"(\d{1,9})"')


def expected_version(headers: Mapping[bytes, bytes]) -> int | None:
    """The version in `If-Match`, 0 for `If-None-Match: *`, None without either header.

    Raises:
        UsageError: any other condition.
    """
    if (condition := headers.get(b"if-none-match")) is not None:
        if condition.strip() != b"*":
            raise UsageError("If-None-Match must be *, which means that the secret must not exist yet")
        return 0
    if (condition := headers.get(b"if-match")) is None:
        return None
    found = _ETAG.fullmatch(condition.strip())
    if not found:
        raise UsageError('If-Match must be a version as in the ETag of a response, such as "3"')
    return int(found[1])


def value_of(secret: schemas.NewSecret | schemas.SetRotatedVersion) -> SecretValue:
    """The exact bytes of the value in a request. Raises InvalidValue for invalid base64."""
    if secret.encoding is None:
        return SecretValue(secret.value.encode())
    try:
        return SecretValue(base64.b64decode(secret.value, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidValue("the value is not valid base64") from None


def secret_operations() -> list[Operation]:
    """The operations on secrets: of the caller's default team, and of the team with a given id."""
    return [
        *_operations("/v1/secrets", list_secrets),
        *_operations("/v1/teams/{team_id}/secrets", list_team_secrets),
    ]


def _operations(base: str, list_handler: ApiHandler) -> list[Operation]:
    one = base + "/{name}"
    deleted = {"deleted": "Include deleted secrets."}
    force = {"force": "Delete even if a running deployment uses it."}
    version = {"version": "The version that replaces older ones; the newest if omitted."}
    return [
        operation("GET", base, list_handler, "secrets:read", query=deleted, slow=True),
        operation("POST", base, set_secret, "secrets:write", writes=True),
        operation("POST", base + ":batch", set_secrets, "secrets:write", writes=True, slow=True),
        operation("GET", one, get_secret, "secrets:read"),
        operation("PATCH", one, update_secret, "secrets:write", writes=True),
        operation("DELETE", one, delete_secret, "secrets:write", query=force, writes=True),
        operation("GET", one + "/versions", list_versions, "secrets:read"),
        operation("GET", one + "/rotation", get_rotation, "secrets:read", query=version),
        operation("POST", one + "/rollback", roll_back_secret, "secrets:write", writes=True),
        operation("POST", one + "/destroy", destroy_versions, "secrets:write", writes=True),
        operation("POST", one + "/restore", restore_secret, "secrets:write", writes=True),
    ]
