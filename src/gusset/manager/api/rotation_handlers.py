"""Handlers for rotations by a provider's program, which runs elsewhere. None of them returns a value."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from gusset.manager.api import schemas
from gusset.manager.api.operations import BodyT, Operation, PersonRequest, operation
from gusset.manager.api.secret_handlers import value_of
from gusset.manager.api.serializers import provider_rotation_model, rotation_plan_model
from gusset.rotation.state import ProviderRotation, Step
from gusset.vault.services.provider_rotations import ProviderRotations

HolderT = TypeVar("HolderT", bound=schemas.RotationHolder)


def list_rotation_plans(request: PersonRequest[None]) -> schemas.RotationPlanList:
    """List when secrets are due for rotation, and the unfinished rotations."""
    team = request.caller.team(request.path.get("team_id"))
    plans = request.vault.rotation_schedules_of(team.id, team.name).plans()
    return schemas.RotationPlanList(rotations=[rotation_plan_model(plan) for plan in plans])


def get_provider_rotation(request: PersonRequest[None]) -> schemas.ProviderRotation:
    """Get the unfinished rotation of a secret."""
    return provider_rotation_model(_rotations(request).get(request.path["name"]))


def begin_rotation(request: PersonRequest[schemas.BeginRotation]) -> schemas.ProviderRotation:
    """Begin a rotation of a secret, or continue the unfinished one. Refused while another process runs it."""
    return _write(request, _rotations(request).begin, current_handle=request.body.current_handle)


def renew_rotation(request: PersonRequest[schemas.RotationHolder]) -> schemas.ProviderRotation:
    """Hold a rotation for 15 seconds more."""
    write = partial(_rotations(request).renew, request.path["name"], holder=request.body.holder)
    return request.write(write, provider_rotation_model)


def set_rotated_version(request: PersonRequest[schemas.SetRotatedVersion]) -> schemas.ProviderRotation:
    """Store the provider's new credential as the next version, with its handle."""
    body = request.body
    return _write(
        request,
        _rotations(request).set,
        value_of(body),
        handle=body.handle,
        overlap=timedelta(seconds=body.overlap),
        expires_at=body.expires_at,
    )


def advance_rotation(request: PersonRequest[schemas.AdvanceRotation]) -> schemas.ProviderRotation:
    """Advance a rotation to the next step: what it waited for has happened."""
    body = request.body
    return _write(request, _rotations(request).advance, Step(body.step), accepted=body.accepted)


def store_revocation(request: PersonRequest[schemas.RevokedCredential]) -> schemas.ProviderRotation:
    """Store that the provider has revoked a credential."""
    return _write(request, _rotations(request).revoked, request.body.handle)


def finish_rotation(request: PersonRequest[schemas.RotationHolder]) -> schemas.ProviderRotation:
    """End a rotation whose old credentials are revoked, and its overlap."""
    return _write(request, _rotations(request).finish)


def cancel_rotation(request: PersonRequest[schemas.RotationHolder]) -> schemas.ProviderRotation:
    """End a rotation without revoking anything."""
    return _write(request, _rotations(request).cancel)


def stop_rotation(request: PersonRequest[schemas.StopRotation]) -> schemas.ProviderRotation:
    """Record that a rotation has paused; others may continue it."""
    return _write(request, _rotations(request).stop, code=request.body.code)


def _write(
    request: PersonRequest[HolderT], step: Callable[..., ProviderRotation], *arguments: Any, **options: Any
) -> schemas.ProviderRotation:
    """The response to one step of the secret's rotation, by the process that holds it."""
    holder, actor = request.body.holder, request.caller.actor
    write = partial(step, request.path["name"], *arguments, holder=holder, actor=actor, **options)
    return request.write(write, provider_rotation_model)


def _rotations(request: PersonRequest[BodyT]) -> ProviderRotations:
    team = request.caller.team(request.path.get("team_id"))
    return request.vault.provider_rotations_of(team.id, team.name)


def rotation_operations() -> list[Operation]:
    """The operations on rotations: of the caller's default team, and of the team with a given id."""
    return [*_operations("/v1"), *_operations("/v1/teams/{team_id}")]


def _operations(base: str) -> list[Operation]:
    one = base + "/secrets/{name}/provider-rotation"
    return [
        operation("GET", base + "/rotations", list_rotation_plans, "secrets:read", slow=True),
        operation("GET", one, get_provider_rotation, "secrets:read"),
        operation("POST", one, begin_rotation, "secrets:write"),
        operation("POST", one + "/renew", renew_rotation, "secrets:write"),
        operation("POST", one + "/version", set_rotated_version, "secrets:write", writes=True),
        operation("POST", one + "/advance", advance_rotation, "secrets:write"),
        operation("POST", one + "/revoked", store_revocation, "secrets:write"),
        operation("POST", one + "/finish", finish_rotation, "secrets:write", writes=True),
        operation("POST", one + "/cancel", cancel_rotation, "secrets:write"),
        operation("POST", one + "/stop", stop_rotation, "secrets:write"),
    ]
