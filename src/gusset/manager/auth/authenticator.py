"""Authentication: which person or deployment is making a request.

Every refusal is recorded in the audit log, repeated ones in sums. After too many
refusals of one address or key, further ones get 429 for a while; a key that was
revoked or has expired always gets 401.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from gusset.addresses import network_of
from gusset.errors import Denied, HostError, NotSignedIn, TooManyAttempts, Unreachable
from gusset.manager.auth.access_cache import MAX_KEYS, AccessCache, KnownKey
from gusset.manager.auth.callers import Caller, DeploymentCaller, PersonCaller
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actor import Actor
from gusset.vault.services.access_keys import ALL_SECRETS, SCOPES, KeyInfo, key_hash
from gusset.vault.services.deployments import Grant
from gusset.vault.services.identity_tokens import is_identity_token
from gusset.vault.services.person import Person, TeamInfo
from gusset.vault.wiring import Vault

_USE_RECORDED_EVERY = 60.0  # seconds
REFUSALS = 20  # a minute, of one address without a valid key
REFUSALS_OF_KEY = 120  # a minute, of one valid key
KEY_RATE = 2000  # requests a second of one valid key; five times as many at once


@dataclass(slots=True, kw_only=True)  # not frozen: making one would take nearly three times as long
class AuthRequest:
    """What authentication needs from a request, whatever server received it."""

    method: str
    route: str  # the path with its parameters' names, as audit records show it
    address: str | None  # of the client, or what a trusted proxy gives as such
    authorization: str = field(default="", repr=False)

    @classmethod
    def from_starlette(cls, request: Request) -> AuthRequest:
        return cls(
            method=request.method,
            route=request.scope.get("route_path", ""),
            address=request.client.host if request.client else None,
            authorization=request.headers.get("authorization", ""),
        )


class Authenticator:
    """Authenticates callers by API key, token or session.

    For the event loop's thread, in a greenlet: see `gusset.vault.greenlets`.
    Only `authenticate_session` and `record_refusal` may be called from other threads.
    """

    def __init__(self, vault: Vault, cache: AccessCache, *, key_rate: int = KEY_RATE) -> None:
        """`key_rate` limits the requests per second of one valid key; 0 sets no limit."""
        self._vault = vault
        self._cache = cache
        self._refusals = RateLimiter(REFUSALS, 60.0)
        self._refusals_of_key = RateLimiter(REFUSALS_OF_KEY, 60.0)
        self._key_rate = key_rate
        self._requests_of_key = RateLimiter(5 * key_rate, 5.0) if key_rate else None
        self._hashes: dict[bytes, bytes] = {}  # of headers with a deployment's token: the token's hash
        self._use_recorded: dict[str, float] = {}  # key prefix -> when
        self._unwritten_uses: dict[str, str] = {}  # key prefix -> when, as the vault stores it

    def authenticate_person(self, request: AuthRequest) -> PersonCaller:
        """The person whose API key the request carries.

        Raises:
            NotSignedIn: no key, or an invalid one.
            Denied: a deployment's token, which only works for the deployment's own routes.
            TooManyAttempts: too many invalid keys from this address, or too many requests with this key.
        """
        known = self._authenticate(request)
        if known.person is None:
            error = Denied("a deployment's token can only read the deployment's own secrets")
            self._refuse(request, Actor(f"deployment {known.info.name}", request.address), error)
            self._limit_refusals(known.info.prefix)
            raise error
        name = f"{known.person.email} (key {known.info.prefix})"
        actor = Actor(name, request.address, rights=known.rights)
        return PersonCaller(
            known.person,
            actor,
            known.scopes,
            teams=known.teams,
            prefix=known.info.prefix,
            gives=known.info.gives,
        )

    def authenticate_deployment(self, request: AuthRequest) -> DeploymentCaller:
        """The deployment whose token the request carries. Raises as `authenticate_person` does."""
        known = self._authenticate(request)
        if known.grant is None:
            error = Denied(
                "this route needs a deployment's token, not a person's API key",
                hint="create one with `gusset token create`",
            )
            person = known.person.email if known.person else "somebody"
            self._refuse(request, Actor(f"{person} (key {known.info.prefix})", request.address), error)
            self._limit_refusals(known.info.prefix)
            raise error
        actor = Actor(f"deployment {known.grant.deployment}", request.address, rights=known.rights)
        return DeploymentCaller(known.grant, actor, known.info.prefix, known.info.expires_at)

    def authenticate_session(self, token: str, *, address: str | None) -> PersonCaller | None:
        """The person whose session this is, None if it has ended."""
        person = self._vault.sessions.authenticate(token)
        if person is None:
            return None
        scopes = frozenset[str](SCOPES)
        teams = self._teams(person, scopes)
        actor = Actor(person.email, address, rights=person.rights)
        return PersonCaller(person, actor, scopes, teams=teams, prefix=person.email, gives=(ALL_SECRETS,))

    def record_refusal(self, request: AuthRequest, caller: Caller, error: Denied) -> None:
        """Record in the audit log that an authenticated caller was refused.

        Raises:
            TooManyAttempts: the caller's key was refused too often.
        """
        self._refuse(request, caller.actor, error)
        self._limit_refusals(caller.prefix)

    def record_denied(self, caller: DeploymentCaller, what: str, error: Denied) -> None:
        """Record that a deployment was refused `what`. Raises as `record_refusal` does."""
        self._vault.access_keys.record_refusal(caller.actor, what, error)
        self._limit_refusals(caller.prefix)

    def knows_key(self, authorization: str) -> bool:
        """Whether a header has a valid key or token. Records nothing.

        Where the vault's reads wait, call it in a greenlet, or it would hold up the event loop, and thus the
        requests whose connections it waits for.

        Raises:
            IntegrityError: a row that it reads was altered.
        """
        try:
            token = bearer(authorization)
            self._cache.refresh()
            self._find(token)
        except (NotSignedIn, Denied):
            return False
        except (Unreachable, HostError):
            return True  # not known; handling the request fails with the same error
        return True

    def known_grant(self, authorization: bytes) -> Grant | None:
        """The grant of a deployment's token, if it is known without a read or write of the vault.

        None says nothing about the token: authenticate it.
        """
        if not self._cache.is_recent:
            return None
        hashed = self._hashes.get(authorization)
        if hashed is None:
            try:
                hashed = key_hash(bearer(authorization.decode("latin-1")))
            except NotSignedIn:
                return None
        known = self._cache.get(hashed)
        if known is None or known.grant is None:
            return None
        if self._requests_of_key and self._requests_of_key.take(known.info.prefix):
            return None
        if len(self._hashes) >= MAX_KEYS:
            self._hashes.clear()
        self._hashes[authorization] = hashed
        self._record_use(known.info)
        return known.grant

    def _authenticate(self, request: AuthRequest) -> KnownKey:
        self._cache.refresh()
        try:
            known = self._find(bearer(request.authorization))
        except NotSignedIn as error:
            self._refuse(request, Actor("somebody", request.address or "?"), error)
            if error.ended:
                raise  # a replica must not take its revocation for an overload
            if wait := self._refusals.take(network_of(request.address)):
                raise TooManyAttempts(
                    "too many requests without a valid key came from this address",
                    hint="wait a minute, then send a valid key",
                    retry_after=wait,
                ) from None
            raise
        if self._requests_of_key and (wait := self._requests_of_key.take(known.info.prefix)):
            raise TooManyAttempts(
                f"the key {known.info.prefix} sent more than {self._key_rate} requests per second",
                hint="send fewer requests: a deployment needs one when its secrets change",
                retry_after=wait,
            )
        self._record_use(known.info)
        return known

    def _find(self, key: SecretValue) -> KnownKey:
        hashed = key_hash(key)
        known = self._cache.get(hashed)
        if known is None:
            generation = self._cache.generation
            known = self._look_up(key)
            self._cache.add(hashed, known, generation=generation)
        return known

    def _look_up(self, key: SecretValue) -> KnownKey:
        if is_identity_token(key):
            info, grant = self._vault.identity_tokens.authenticate(key)
            return KnownKey(info=info, grant=grant, rights=grant.rights)
        info = self._vault.access_keys.authenticate(key, kinds=("key", "token"))
        if info.kind == "token":
            grant = self._vault.deployments.grant(info)
            return KnownKey(info=info, grant=grant, rights=(*info.rights, *grant.rights))
        person = self._vault.people.get(info.user_id or "")
        if person.disabled_at is not None:
            raise NotSignedIn("this person's account is disabled", ended=True)
        scopes = frozenset(info.allows)
        return KnownKey(
            info=info,
            scopes=scopes,
            person=person,
            teams=self._teams(person, scopes),
            rights=(*info.rights, *person.rights),
        )

    def _teams(self, person: Person, scopes: frozenset[str]) -> Sequence[TeamInfo]:
        return self._vault.teams.all() if person.admin and "admin" in scopes else person.teams

    def write_uses(self) -> None:
        """Store when keys were last used: for all of them together, since each write would be a commit.

        Raises:
            Unreachable, HostError, IntegrityError: the database failed. They are stored with the next uses.
        """
        uses, self._unwritten_uses = self._unwritten_uses, {}
        if not uses:
            return
        try:
            self._vault.access_keys.record_uses(uses)
        except BaseException:
            self._unwritten_uses = uses | self._unwritten_uses
            raise

    def _record_use(self, key: KeyInfo) -> None:
        """Note the time for `last_used_at`, at most once a minute."""
        now = time.monotonic()
        if now - self._use_recorded.get(key.prefix, -_USE_RECORDED_EVERY) >= _USE_RECORDED_EVERY:
            if len(self._use_recorded) >= MAX_KEYS:  # such as tokens that have ended
                self._use_recorded.clear()
            self._use_recorded[key.prefix] = now
            self._unwritten_uses[key.prefix] = self._vault.now()

    def _limit_refusals(self, prefix: str) -> None:
        if wait := self._refusals_of_key.take(prefix):
            raise TooManyAttempts(
                f"too many requests with the key {prefix} were refused",
                hint="find out why: the audit log has the first of them",
                retry_after=wait,
            )

    def _refuse(self, request: AuthRequest, actor: Actor, error: Denied) -> None:
        self._vault.access_keys.record_refusal(actor, f"{request.method} {request.route}", error)


def bearer(authorization: str) -> SecretValue:
    """The key in a header `Authorization: Bearer KEY` or `Api-Key KEY`. Raises NotSignedIn without one."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() not in ("bearer", "api-key") or not key.strip():
        raise NotSignedIn("the request has no API key", hint="send it as `Authorization: Bearer KEY`")
    return SecretValue(key.strip().encode("latin-1", "replace"))
