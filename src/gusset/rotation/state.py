"""The state of a rotation by a provider, as the vault stores it and a manager returns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from gusset.secrets.info import WARN_BEFORE

MAX_HANDLE = 1000  # characters
MAX_OVERLAP = timedelta(days=365)
LEASE_SECONDS = 15.0  # that a process holds a rotation without renewing
RENEW_EVERY = 4.0  # seconds


class Step(StrEnum):
    """What a rotation does next."""

    # The values are stored: never change one.
    CREATE = "create"  # have the provider make a credential, and store it as a version
    ACKNOWLEDGE = "acknowledge"  # wait until no replica has an older version
    USE = "use"  # wait until each replica has used the new version
    REVOKE = "revoke"  # have the provider revoke the credentials before


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRotation:
    """An unfinished rotation of a secret. Other secrets may have had its name: `secret_id` is this one's.

    `version` and `handle` are those of the new credential, None before it is stored. `current` is the
    handle of the current version's credential, None if that is not known. `revoke` are the
    handles of all earlier credentials that are not revoked yet.
    """

    id: str
    secret_id: str
    name: str
    team: str
    step: Step
    version: int | None
    handle: str | None
    current: str | None
    revoke: Sequence[str]
    started_at: str
    started_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPlan:
    """When a secret is to be rotated. Times are in ISO 8601.

    `rotate_every` is in seconds; `rotate_at` is that long after the current version was stored. `step` is
    that of an unfinished rotation.
    """

    name: str
    version: int | None
    rotate_every: int | None
    rotate_at: str | None
    expires_at: str | None
    step: Step | None

    def due(self, now: datetime) -> str | None:
        """Why the secret is to be rotated now; None if it is not."""
        if self.step is not None:
            return "unfinished"
        if self.rotate_at is not None and datetime.fromisoformat(self.rotate_at) <= now:
            return "interval"
        if self.expires_at is not None and datetime.fromisoformat(self.expires_at) - now <= self._ahead():
            return "expiry"
        return None

    def _ahead(self) -> timedelta:
        """How long before its expiry date a secret is due: 14 days, or half the interval if that is less."""
        if self.rotate_every is None:
            return WARN_BEFORE
        return min(WARN_BEFORE, timedelta(seconds=self.rotate_every) / 2)
