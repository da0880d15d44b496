"""A team's secrets on a manager, with the methods of the vault's `SecretReader` and `SecretWriter`."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from gusset.client.manager_client import ManagerClient
from gusset.client.rotation import RotationStatus
from gusset.secrets.info import SecretInfo, VersionInfo
from gusset.secrets.value import SecretValue


class RemoteSecrets:
    """A team's secrets on a manager: `SecretReader` and `SecretWriter` in one, one request for each call.

    The manager takes the actor from the API key. The parameter `actor` is
    ignored: with it, callers use a vault and a manager alike.
    """

    def __init__(self, client: ManagerClient) -> None:
        self._client = client

    def set(
        self,
        name: str,
        value: SecretValue,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | None = None,
        expect_version: int | None = None,
        overlap: timedelta | None = None,
    ) -> SecretInfo:
        body = {"name": name, **_encoded(value)}
        if overlap is not None:
            body["overlap"] = int(overlap.total_seconds())
        if note is not None:
            body["note"] = note
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        headers = {}
        if expect_version is not None:
            headers = {"if-match": f'"{expect_version}"'} if expect_version else {"if-none-match": "*"}
        return _info(self._client.request("POST", "/v1/secrets", body, headers=headers))

    def set_many(self, values: Sequence[tuple[str, SecretValue]], *, actor: str) -> list[SecretInfo]:
        body = {"secrets": [{"name": name, **_encoded(value)} for name, value in values]}
        return [_info(item) for item in self._client.request("POST", "/v1/secrets:batch", body)["secrets"]]

    def list(self, *, include_deleted: bool = False) -> list[SecretInfo]:
        query = {"deleted": "true"} if include_deleted else {}
        return [_info(item) for item in self._client.request("GET", "/v1/secrets", query=query)["secrets"]]

    def list_first_team(self) -> Sequence[SecretInfo]:
        """The secrets of the team that requests without a team's id are about."""
        for team in self._client.request("GET", "/v1/teams")["teams"]:
            path = f"/v1/teams/{quote(team['id'], safe='')}/secrets"
            return [_info(item) for item in self._client.request("GET", path)["secrets"]]
        return []

    def get(self, name: str) -> SecretInfo:
        return _info(self._client.request("GET", _path(name)))

    def history(self, name: str) -> Sequence[VersionInfo]:
        versions = self._client.request("GET", _path(name) + "/versions")["versions"]
        return [
            VersionInfo(
                version=item["version"],
                created_at=item["created_at"],
                created_by=item["created_by"],
                state=item["state"],
            )
            for item in versions
        ]

    def rotation(self, name: str, version: int | None = None) -> RotationStatus:
        """How far a version has replaced the ones before it; None stands for the newest."""
        query = {} if version is None else {"version": str(version)}
        return RotationStatus.from_response(
            self._client.request("GET", _path(name) + "/rotation", query=query)
        )

    def annotate(
        self,
        name: str,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | Literal["never"] | None = None,
        rotate_every: timedelta | Literal["never"] | None = None,
    ) -> SecretInfo:
        body: dict[str, Any] = {}
        if note is not None:
            body["note"] = note or None
        if expires_at is not None:
            body["expires_at"] = None if expires_at == "never" else expires_at.isoformat()
        if rotate_every is not None:
            body["rotate_every"] = None if rotate_every == "never" else int(rotate_every.total_seconds())
        return _info(self._client.request("PATCH", _path(name), body))

    def rollback(self, name: str, version: int, *, actor: str) -> SecretInfo:
        return _info(self._client.request("POST", _path(name) + "/rollback", {"version": version}))

    def destroy(self, name: str, versions: Collection[int] | None = None, *, actor: str) -> SecretInfo:
        body = {"versions": sorted(versions) if versions is not None else None}
        return _info(self._client.request("POST", _path(name) + "/destroy", body))

    def restore(self, name_or_id: str, *, actor: str) -> SecretInfo:
        return _info(self._client.request("POST", _path(name_or_id) + "/restore"))

    def delete(self, name: str, *, actor: str, force: bool = False) -> SecretInfo:
        info = self.get(name)
        self._client.request("DELETE", _path(name), query={"force": "true"} if force else {})
        return info


def _path(name: str) -> str:
    return "/v1/secrets/" + quote(name, safe="")


def _encoded(value: SecretValue) -> dict[str, Any]:
    return {"value": base64.b64encode(value.reveal()).decode(), "encoding": "base64"}


def _info(data: Mapping[str, Any]) -> SecretInfo:
    return SecretInfo(
        id=data["id"],
        name=data["name"],
        team=data["team_name"],
        team_id="",
        version=data["version"],
        created_at=data["created_at"],
        updated_at=data["updated_at"],
        deleted_at=data.get("deleted_at"),
        note=data.get("note"),
        expires_at=data.get("expires_at"),
        last_read_at=data.get("last_read_at"),
    )
