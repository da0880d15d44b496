"""What may be said of a secret and of its versions: everything but values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["current", "older", "destroyed"]

DEFAULT_TEAM = "default"


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """What may be said of a secret. `version` is None when all of them are destroyed."""

    id: str
    name: str
    team: str
    team_id: str
    version: int | None
    created_at: str
    updated_at: str
    deleted_at: str | None = None
    note: str | None = None
    expires_at: str | None = None
    last_read_at: str | None = None


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a secret."""

    version: int
    created_at: str
    created_by: str
    state: State
