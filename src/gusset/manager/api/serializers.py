"""What is said of things, as JSON: of a secret everything but its value, of a key everything but the key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import orjson

from gusset.secrets.info import SecretInfo, VersionInfo, expiry_warning
from gusset.vault.services.access_keys import KeyInfo
from gusset.vault.services.deployments import DeploymentInfo
from gusset.vault.services.people import Person, TeamInfo
from gusset.vault.wiring import Vault


def secret_data(info: SecretInfo, used: Iterable[str] = ()) -> dict[str, Any]:
    expiry = expiry_warning(info.expires_at, datetime.now(UTC)) if info.expires_at else None
    return {
        "id": info.id,
        "created_at": info.created_at,
        "name": info.name,
        "team_name": info.team,
        "version": info.version,
        "updated_at": info.updated_at,
        "deleted_at": info.deleted_at,
        "note": info.note,
        "expires_at": info.expires_at,
        "last_read_at": info.last_read_at,
        "used_by": list(used),
        "warnings": [{"message": f"{info.name} {expiry}", "hint": None}] if expiry else [],
    }


def version_data(version: VersionInfo) -> dict[str, Any]:
    return {
        "version": version.version,
        "created_at": version.created_at,
        "created_by": version.created_by,
        "state": version.state,
    }


def team_data(team: TeamInfo) -> dict[str, Any]:
    return {"id": team.id, "name": team.name, "default": team.default, "created_at": team.created_at}


def person_data(person: Person) -> dict[str, Any]:
    return {
        "id": person.id,
        "email": person.email,
        "name": person.name,
        "role": person.role,
        "teams": [team_data(team) for team in person.teams],
        "created_at": person.created_at,
        "disabled_at": person.disabled_at,
        "invited": person.invited,
    }


def key_data(key: KeyInfo) -> dict[str, Any]:
    return {
        "prefix": key.prefix,
        "name": key.name,
        "scopes": list(key.allows),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }


def token_data(key: KeyInfo) -> dict[str, Any]:
    data = key_data(key)
    return {**data, "secrets": data.pop("scopes"), "created_by": key.created_by}


def deployment_data(info: DeploymentInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "name": info.name,
        "team_id": info.team_id,
        "team_name": info.team,
        "secrets": list(info.secrets),
        "created_at": info.created_at,
        "created_by": info.created_by,
        "updated_at": info.updated_at,
        "seen_at": info.seen_at,
        "replicas": [
            {
                "id": replica.id,
                "host": replica.host,
                "versions": dict(replica.versions),
                "started_at": replica.started_at,
                "seen_at": replica.seen_at,
                "live": replica.live,
            }
            for replica in info.replicas
        ],
    }


def audit_lines(vault: Vault) -> Iterator[bytes]:
    """Every record as JSON Lines, oldest first, some hundred at a time."""
    found = vault.audit.export()
    while records := list(islice(found, 500)):
        yield b"".join(orjson.dumps(record.data()) + b"\n" for record in records)
