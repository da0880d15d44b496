"""The keys of issuers: fetched when they are needed, and kept.

Keys are fetched again after `FRESH` seconds, and when a token names one that is not known; but never
twice in `FETCH_INTERVAL` seconds, whatever tokens name. While an issuer does not respond, its keys are
used for an hour.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from gusset.addresses import is_loopback
from gusset.errors import TokenRefused, Unreachable, UsageError
from gusset.manager.identity.json_web_keys import JsonWebKeys, VerificationKey, find_key, parse_keys
from gusset.manager.identity.json_web_token import UnverifiedToken
from gusset.manager.identity.pinned_http import TIMEOUT, FetchFailed, PinnedHttp
from gusset.vault import deadline, greenlets
from gusset.vault.services.identity_rules import check_issuer_url
from gusset.vault.services.issuers import IssuerInfo

log = logging.getLogger("gusset.manager")

FRESH = 300.0  # seconds
FETCH_INTERVAL = 30.0
USABLE = 3600.0
_DISCOVERY = "/.well-known/openid-configuration"


@dataclass(slots=True, kw_only=True)
class _Known:
    """What is known of an issuer's keys. Times are monotonic."""

    issuer: IssuerInfo
    keys: JsonWebKeys = ()
    fetched: float | None = None  # when the last successful fetch began
    tried: float | None = None  # when the last fetch began
    fetching: asyncio.Task[None] | None = None
    problem: str | None = None  # of the last fetch; None if it was successful
    at: str | None = None  # the time of day of the last successful fetch

    def age(self, now: float) -> float:
        return float("inf") if self.fetched is None else now - self.fetched

    def wait(self, now: float) -> float:
        """Seconds until the keys may be fetched again."""
        return 0.0 if self.tried is None else max(0.0, self.tried + FETCH_INTERVAL - now)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatus:
    """What this manager knows of an issuer's keys. `problem` is of the last fetch, None if it succeeded."""

    keys: int
    fetched_at: str | None
    problem: str | None


class UnknownKey(Unreachable):
    """A token names a key that is not known, and the issuer's keys may not be fetched again yet."""


class IssuerKeys:
    """The keys of all issuers. For the event loop's thread, in a greenlet: it may wait for a fetch."""

    def __init__(self, http: PinnedHttp, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def find(self, issuer: IssuerInfo, token: UnverifiedToken) -> VerificationKey:
        """The key by which an issuer has signed a token, as its header says.

        Raises:
            TokenRefused: the issuer has no such key.
            Unreachable: its keys are not known at the moment.
        """
        known, now = self._state(issuer), self._clock()
        key = self._usable_key(known, token, now)
        if key is not None and known.age(now) < FRESH:
            return key
        is_fetched = self._refresh(known)
        key = self._usable_key(known, token, self._clock())
        if key is not None:
            return key
        if is_fetched or issuer.jwks is not None:
            raise TokenRefused(
                "the token's issuer has no such key", hint="send a new token of the workload's issuer"
            )
        raise self._unknown(known)

    def status(self, issuer: IssuerInfo) -> KeyStatus:
        """What is known of an issuer's keys, without a fetch."""
        known = self._state(issuer)
        return KeyStatus(keys=len(known.keys), fetched_at=known.at, problem=known.problem)

    def check(self, issuer: IssuerInfo) -> KeyStatus:
        """Fetch an issuer's keys if that may be done now; what is known of them then."""
        self._refresh(self._state(issuer))
        return self.status(issuer)

    def _state(self, issuer: IssuerInfo) -> _Known:
        known = self._known.get(issuer.url)
        if known is None or known.issuer != issuer:  # it was removed and added again
            known = self._known[issuer.url] = _Known(issuer=issuer)
        return known

    def _usable_key(self, known: _Known, token: UnverifiedToken, now: float) -> VerificationKey | None:
        if known.issuer.jwks is None and known.age(now) > USABLE:
            return None
        key = find_key(known.keys, token.algorithm, token.key_id)
        if key is None and token.key_id is not None and any(k.key_id == token.key_id for k in known.keys):
            raise TokenRefused("the token's algorithm does not match its key")
        return key

    def _unknown(self, known: _Known) -> Unreachable:
        wait = max(1.0, known.wait(self._clock()))
        if known.age(self._clock()) <= USABLE:
            return UnknownKey(
                "the token names a key that its issuer did not have a moment ago",
                hint="its keys are fetched again soon",
                retry_after=wait,
            )
        return Unreachable(
            "the keys of the token's issuer cannot be fetched at the moment",
            hint="`gusset issuer list` shows administrators why",
            retry_after=wait,
        )

    def _refresh(self, known: _Known) -> bool:
        """Fetch the keys, or wait for a fetch that is under way. Returns whether it succeeded.

        Does nothing if the last fetch was a moment ago, or if stored keys were read before.
        """
        if known.fetching is None:
            if known.wait(self._clock()) > 0 or (known.issuer.jwks is not None and known.fetched is not None):
                return False
            known.tried = self._clock()
            known.fetching = asyncio.get_running_loop().create_task(self._fetch(known))
        with deadline.uncounted():
            greenlets.wait(known.fetching)
        return known.problem is None

    async def _fetch(self, known: _Known) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                data = known.issuer.jwks or await self._download(known.issuer)
                # Slow: it imports PyJWT the first time.
                keys = await asyncio.get_running_loop().run_in_executor(None, parse_keys, data)
        except (FetchFailed, ValueError, TimeoutError) as error:
            known.problem = str(error) or f"there was no response within {TIMEOUT:g} s"
            log.warning("The keys of the issuer %s cannot be used: %s", known.issuer.url, known.problem)
        else:
            known.keys, known.fetched, known.problem = keys, known.tried, None
            known.at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        finally:
            known.fetching = None

    async def _download(self, issuer: IssuerInfo) -> bytes:
        url = issuer.jwks_url or await self._discover(issuer)
        return await self._http.get(url, allow_private=issuer.allow_private)

    async def _discover(self, issuer: IssuerInfo) -> str:
        """The URL of the keys, from the issuer's discovery document. Raises FetchFailed."""
        address = issuer.url.rstrip("/") + _DISCOVERY
        data = await self._http.get(address, allow_private=issuer.allow_private)
        document = _json_object(data)
        if document.get("issuer") != issuer.url:
            raise FetchFailed("its discovery document names another issuer")
        url = document.get("jwks_uri")
        if not isinstance(url, str):
            raise FetchFailed("its discovery document names no keys")
        try:
            check_issuer_url(url)
        except UsageError:
            raise FetchFailed("its discovery document names keys at an address that is not allowed") from None
        if _is_local(url) and not _is_local(issuer.url):
            raise FetchFailed("its discovery document names keys on the manager's own machine")
        return url


def _is_local(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FetchFailed("its discovery document is not a JSON object")
    return found
