"""Rotations on a manager, as `rotation.driver` uses them. One request for each call."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from gusset.client.manager_client import ManagerClient
from gusset.client.rotation import ReplicaStatus, RotationStatus
from gusset.errors import Conflict
from gusset.rotation.contract import Created
from gusset.rotation.replicas import Rollout
from gusset.rotation.state import ProviderRotation, RotationPlan, Step


class RemoteRotations:
    """See `rotation.driver.RotationStore`. `holder` is the random id of this process."""

    def __init__(self, client: ManagerClient, *, holder: str) -> None:
        self._client = client
        self._holder = holder
        self._known: dict[str, dict[str, ReplicaStatus]] = {}  # replicas by id, of each rotation

    def plans(self) -> Sequence[RotationPlan]:
        """The secrets that have an interval, an expiry date or an unfinished rotation."""
        return [
            RotationPlan(
                name=item["name"],
                version=item["version"],
                rotate_every=item["rotate_every"],
                rotate_at=item["rotate_at"],
                expires_at=item["expires_at"],
                step=Step(item["step"]) if item["step"] else None,
            )
            for item in self._client.request("GET", "/v1/rotations")["rotations"]
        ]

    def begin(self, name: str, *, current_handle: str | None) -> ProviderRotation:
        return self._send(name, "", {"current_handle": current_handle})

    def renew(self, rotation: ProviderRotation) -> None:
        self._send(rotation.name, "/renew")

    def set(self, rotation: ProviderRotation, created: Created, overlap: timedelta) -> ProviderRotation:
        body = {
            "value": base64.b64encode(created.value.reveal()).decode(),
            "encoding": "base64",
            "handle": created.handle,
            "overlap": int(overlap.total_seconds()),
            "expires_at": created.expires_at.isoformat() if created.expires_at else None,
        }
        return self._send(rotation.name, "/version", body)

    def advance(self, rotation: ProviderRotation, step: Step, accepted: list[str]) -> ProviderRotation:
        return self._send(rotation.name, "/advance", {"step": str(step), "accepted": accepted})

    def revoked(self, rotation: ProviderRotation, handle: str) -> ProviderRotation:
        return self._send(rotation.name, "/revoked", {"handle": handle})

    def finish(self, rotation: ProviderRotation) -> None:
        self._send(rotation.name, "/finish")

    def cancel(self, name: str) -> ProviderRotation:
        return self._send(name, "/cancel")

    def stop(self, rotation: ProviderRotation, code: str) -> None:
        self._send(rotation.name, "/stop", {"code": code})

    def rollout(self, rotation: ProviderRotation) -> Rollout:
        query = {"version": str(rotation.version)}
        data = self._client.request("GET", _secret(rotation.name) + "/rotation", query=query)
        status, overlap = RotationStatus.from_response(data), data["overlap"]
        if not status.is_of(rotation.secret_id):
            raise Conflict(f"{rotation.name} was deleted, and its name has another secret now")
        status = status.with_lost(self._known.setdefault(rotation.id, {}))
        return Rollout(
            started_at=datetime.fromisoformat(data["started_at"]),
            overlap_ends_at=datetime.fromisoformat(overlap["ends_at"]) if overlap else None,
            replicas=status.replicas,
            lost_before=status.lost_before,
        )

    def _send(self, name: str, action: str, body: Mapping[str, Any] = {}) -> ProviderRotation:
        path = f"{_secret(name)}/provider-rotation{action}"
        data = self._client.request("POST", path, {"holder": self._holder, **body})
        return ProviderRotation(
            id=data["id"],
            secret_id=data.get("secret_id", ""),
            name=data["name"],
            team=data["team_name"],
            step=Step(data["step"]),
            version=data["version"],
            handle=data["handle"],
            current=data["current"],
            revoke=data["revoke"],
            started_at=data["started_at"],
            started_by=data["started_by"],
        )


def _secret(name: str) -> str:
    return "/v1/secrets/" + quote(name, safe="")
