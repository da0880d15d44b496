"""Handlers for rotations by a provider's program, which runs elsewhere. None of them returns a value."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from gusset.manager.api import schemas
from gusset.manager.api.operations import BodyT, Operation, PersonRequest, operation
from gusset.manager.api.secret_handlers import value_of
from gusset.manager.api.serializers import provider_rotation_model, rotation_plan_model
from gusset.rotation.state import Step
from gusset.vault.services.provider_rotations import ProviderRotations


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
    write = partial(
        _rotations(request).begin,
        request.path["name"],
        holder=request.body.holder,
        actor=request.caller.actor,
        current_handle=request.body.current_handle,
    )
    return request.write(write, provider_rotation_model)


def renew_rotation(request: PersonRequest[schemas.RotationHolder]) -> schemas.ProviderRotation:
    """Hold a rotation for 15 seconds more."""
    write = partial(_rotations(request).renew, request.path["name"], holder=request.body.holder)
    return request.write(write, provider_rotation_model)


def set_rotated_version(request: PersonRequest[schemas.SetRotatedVersion]) -> schemas.ProviderRotation:
    """Store the provider's new credential as the next version, with its handle."""
    body = request.body
    write = partial(
        _rotations(request).set,
        request.path["name"],
        value_of(body),
        holder=body.holder,
        actor=request.caller.actor,
        handle=body.handle,
        overlap=timedelta(seconds=body.overlap),
        expires_at=body.expires_at,
    )
    return request.write(write, provider_rotation_model)


def advance_rotation(request: PersonRequest[schemas.AdvanceRotation]) -> schemas.ProviderRotation:
    """Go on to the next step: what the rotation waited for has happened."""
    body = request.body
    write = partial(
        _rotations(request).advance,
        request.path["name"],
        Step(body.step),
        holder=body.holder,
        actor=request.caller.actor,
        accepted=body.accepted,
    )
    return request.write(write, provider_rotation_model)


def store_revocation(request: PersonRequest[schemas.RevokedCredential]) -> schemas.ProviderRotation:
    """Store that the provider has revoked a credential."""
    write = partial(
        _rotations(request).revoked,
        request.path["name"],
        request.body.handle,
        holder=request.body.holder,
        actor=request.caller.actor,
    )
    return request.write(write, provider_rotation_model)


def finish_rotation(request: PersonRequest[schemas.RotationHolder]) -> schemas.ProviderRotation:
    """End a rotation whose old credentials are revoked, and its overlap."""
    write = partial(
        _rotations(request).finish,
        request.path["name"],
        holder=request.body.holder,
        actor=request.caller.actor,
    )
    return request.write(write, provider_rotation_model)


def cancel_rotation(request: PersonRequest[schemas.RotationHolder]) -> schemas.ProviderRotation:
    """End a rotation without revoking anything."""
    write = partial(
        _rotations(request).cancel,
        request.path["name"],
        holder=request.body.holder,
        actor=request.caller.actor,
    )
    return request.write(write, provider_rotation_model)


def stop_rotation(request: PersonRequest[schemas.StopRotation]) -> schemas.ProviderRotation:
    """Record that a rotation has paused; others may continue it."""
    write = partial(
        _rotations(request).stop,
        request.path["name"],
        holder=request.body.holder,
        actor=request.caller.actor,
        code=request.body.code,
    )
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
