"""Rotations in the embedded vault, as `rotation.driver` uses them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from gusset.errors import Conflict
from gusset.rotation.contract import Created
from gusset.rotation.replicas import Rollout
from gusset.rotation.state import ProviderRotation, RotationPlan, Step
from gusset.secrets.info import DEFAULT_TEAM
from gusset.vault import Vault


class StoredRotations:
    """See `rotation.driver.RotationStore`. `holder` is the random id of this process."""

    def __init__(self, vault: Vault, *, holder: str, actor: str) -> None:
        team = vault.default_team_id
        self._stored = vault.provider_rotations_of(team, DEFAULT_TEAM)
        self._schedules = vault.rotation_schedules_of(team, DEFAULT_TEAM)
        self._rotations = vault.rotations_of(team, DEFAULT_TEAM)
        self._holder = holder
        self._actor = actor

    def plans(self) -> Sequence[RotationPlan]:
        return self._schedules.plans()

    def begin(self, name: str, *, current_handle: str | None) -> ProviderRotation:
        return self._stored.begin(name, holder=self._holder, actor=self._actor, current_handle=current_handle)

    def renew(self, rotation: ProviderRotation) -> None:
        self._stored.renew(rotation.name, holder=self._holder)

    def set(self, rotation: ProviderRotation, created: Created, overlap: timedelta) -> ProviderRotation:
        return self._stored.set(
            rotation.name,
            created.value,
            holder=self._holder,
            actor=self._actor,
            handle=created.handle,
            overlap=overlap,
            expires_at=created.expires_at,
        )

    def advance(self, rotation: ProviderRotation, step: Step, accepted: list[str]) -> ProviderRotation:
        return self._stored.advance(
            rotation.name, step, holder=self._holder, actor=self._actor, accepted=accepted
        )

    def revoked(self, rotation: ProviderRotation, handle: str) -> ProviderRotation:
        return self._stored.revoked(rotation.name, handle, holder=self._holder, actor=self._actor)

    def finish(self, rotation: ProviderRotation) -> None:
        self._stored.finish(rotation.name, holder=self._holder, actor=self._actor)

    def cancel(self, name: str) -> ProviderRotation:
        return self._stored.cancel(name, holder=self._holder, actor=self._actor)

    def stop(self, rotation: ProviderRotation, code: str) -> None:
        self._stored.stop(rotation.name, holder=self._holder, actor=self._actor, code=code)

    def rollout(self, rotation: ProviderRotation) -> Rollout:
        found = self._rotations.get(rotation.name, rotation.version)
        if found.secret_id != rotation.secret_id:
            raise Conflict(f"{rotation.name} was deleted, and its name has another secret now")
        ends_at = found.overlap.ends_at if found.overlap else None
        return Rollout(
            started_at=datetime.fromisoformat(found.started_at),
            overlap_ends_at=datetime.fromisoformat(ends_at) if ends_at else None,
            replicas=found.replicas,
            lost_before=found.lost_before,
        )
