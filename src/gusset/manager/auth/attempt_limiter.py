"""Limits wrong passwords: in this process, and over all managers of the vault."""

from __future__ import annotations

from collections.abc import Sequence

from gusset.errors import TooManyAttempts
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.vault.services.password_attempts import AttemptLimit, PasswordAttempt, PasswordAttempts


class AttemptLimiter:
    """Refuses attempts beyond limits. Those that this process already knows to be too many cost no write."""

    def __init__(self, limits: Sequence[AttemptLimit]) -> None:
        self._limiters = {limit: RateLimiter(limit.burst, limit.seconds) for limit in limits}

    def take(self, counted: PasswordAttempts, attempts: Sequence[PasswordAttempt]) -> None:
        """Count an attempt, here and in the vault. Call this before the password is verified, which is
        slow: attempts at the same time count, too.

        Raises:
            TooManyAttempts: one of the limits is exhausted. Nothing was counted.
            Unreachable, HostError, IntegrityError: the database failed. Nothing was counted.
        """
        for count, attempt in enumerate(attempts):
            if wait := self._limiters[attempt.limit].take(attempt.client):
                self.give_back(attempts[:count])
                raise _too_many(wait)
        try:
            waits = counted.take(attempts)
        except BaseException:
            self.give_back(attempts)
            raise
        if any(waits):
            self.give_back(attempts)
            for attempt, wait in zip(attempts, waits, strict=True):
                if wait:
                    self._limiters[attempt.limit].exhaust(attempt.client, wait)
            raise _too_many(max(waits))

    def give_back(self, attempts: Sequence[PasswordAttempt]) -> None:
        """No longer count these attempts in this process; for the vault's count see `PasswordAttempts`."""
        for attempt in attempts:
            self._limiters[attempt.limit].give_back(attempt.client)


def _too_many(wait: float) -> TooManyAttempts:
    return TooManyAttempts(
        "too many failed attempts", hint="Wait five minutes, then try again.", retry_after=wait
    )
