"""The metadata of secrets and their versions: everything except values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

State = Literal["current", "older", "destroyed"]

DEFAULT_TEAM = "default"


@dataclass(slots=True, kw_only=True)  # not frozen: making one would take nearly three times as long
class SecretInfo:
    """The metadata of a secret. `version` is None when all versions are destroyed. Times are in ISO 8601."""

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


WARN_BEFORE = timedelta(days=14)


def expiry_warning(expires_at: str | None, now: datetime) -> str | None:
    """A warning for a secret that expires soon or has expired; gusset itself never stops delivering it."""
    if expires_at is None:
        return None
    left = datetime.fromisoformat(expires_at) - now
    if left > WARN_BEFORE:
        return None
    if left <= timedelta():
        return f"expired on {expires_at[:10]}: replace it"
    return f"expires on {expires_at[:10]}: replace it before then"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """One version of a secret."""

    version: int
    created_at: str
    created_by: str
    state: State
