"""Who calls: a person with an API key, a person with a session, or a deployment with its token.

Every refusal is an error that the audit log keeps. Many failures from one
address are answered 429 for a while, and then no longer recorded: a flood must
not fill the log.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from gusset.errors import Denied, NotFound, NotSignedIn, TooManyAttempts
from gusset.secrets.value import SecretValue
from gusset.vault.audit.audit_log import Actor
from gusset.vault.services.access_keys import SCOPES, KeyInfo, Scope, digest
from gusset.vault.services.deployments import Grant
from gusset.vault.services.people import Person, TeamInfo
from gusset.vault.wiring import Vault


@dataclass(frozen=True, slots=True)
class Caller:
    """A person, and what the key or session that they came with lets them do.

    `teams` are those that they see: an administrator every one, where the key has that scope.
    """

    person: Person
    actor: Actor
    scopes: frozenset[str]
    teams: Sequence[TeamInfo]

    def need(self, scope: Scope) -> None:
        """Raises Denied when the key lacks the scope, or the person the role."""
        if scope not in self.scopes:
            raise Denied(
                f"that key may not do this: it lacks the scope {scope}", hint="make a key that has it"
            )
        if scope == "admin" and not self.person.admin:
            raise Denied("only an administrator may do this")

    def team(self, team_id: str | None) -> TeamInfo:
        """The team of that id; without one, the caller's default team: `default` where they are in it.

        Raises:
            NotFound: no such team, or none that they may know of.
        """
        for team in self.teams:
            if team_id is None or team.id == team_id:
                return team
        if team_id is None:
            raise NotFound("you are in no team", hint="ask an administrator to put you in one")
        raise NotFound("there is no such team")


@dataclass(frozen=True, slots=True)
class DeploymentCaller:
    """A running deployment, and what its token lets it read."""

    grant: Grant
    actor: Actor


class Authenticator:
    """Finds out who calls, and remembers it until a key, a person, a team or a deployment has changed.

    For the event loop's thread, in a greenlet: see `gusset.vault.commit.greenlets`.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._looker = vault.looker()
        self.failures = RateLimiter()
        self._generation = ""
        self._commits, self._look_again = -1, 0.0
        self._known: dict[bytes, _Known] = {}
        self._noted: dict[str, float] = {}
        self._declared: dict[str, Mapping[str, Sequence[str]]] = {}

    def person(self, request: Request) -> Caller:
        """The person whose API key the request bears.

        Raises:
            NotSignedIn: no key, or not a good one.
            Denied: a deployment's token, which opens nothing here.
            TooManyAttempts: too many bad keys came from there.
        """
        known, address = self._let_in(request), address_of(request)
        if known.person is None:
            actor = Actor(f"deployment {known.key.name}", address)
            error = Denied("a deployment's token reads its own secrets, and nothing else")
            self._refuse(request, actor, error)
            raise error
        actor = Actor(f"{known.person.email} (key {known.key.prefix})", address)
        return Caller(known.person, actor, known.allows, known.teams)

    def deployment(self, request: Request) -> DeploymentCaller:
        """The deployment whose token the request bears. Raises as `person` does."""
        known, address = self._let_in(request), address_of(request)
        if known.grant is None:
            raise Denied(
                "this needs a deployment's token, not a person's key", hint="see `gusset token create`"
            )
        return DeploymentCaller(known.grant, Actor(f"deployment {known.grant.deployment}", address))

    def session(self, request: Request, token: str) -> Caller | None:
        """The person whose session that is."""
        person = self._vault.people.session(token)
        if person is None:
            return None
        scopes = frozenset[str](SCOPES)
        return Caller(person, Actor(person.email, address_of(request)), scopes, self._teams(person, scopes))

    def declaring(self, team_id: str) -> Mapping[str, Sequence[str]]:
        """Folded name of a secret -> the deployments of the team that declare it, as of this request."""
        if team_id not in self._declared:
            self._declared[team_id] = self._vault.deployments.declaring(team_id)
        return self._declared[team_id]

    def refused(self, request: Request, caller: Caller | DeploymentCaller, error: Denied) -> None:
        """Record that a known caller was turned away."""
        self._refuse(request, caller.actor, error)

    def close(self) -> None:
        self._looker.close()

    def _let_in(self, request: Request) -> _Known:
        self._forget_what_is_old()
        try:
            key = bearer(request)
            hashed = digest(key)
            known = self._known.get(hashed)
            if known is None or not known.key.good(self._vault.now()):
                known = self._known[hashed] = self._find_out(key)
        except NotSignedIn as error:
            address = address_of(request) or "?"
            if self.failures.count(address):
                self._refuse(request, Actor("somebody", address), error)
                raise
            raise TooManyAttempts(
                "too many requests from there bore no good key", hint="wait a minute, then try a good one"
            ) from None
        self._note(known.key)
        return known

    def _find_out(self, key: SecretValue) -> _Known:
        info = self._vault.access.check(key, kinds=("key", "token"))
        if info.kind == "token":
            return _Known(info, frozenset(), None, (), self._vault.deployments.grant(info))
        person = self._vault.people.get(info.user_id or "")
        if person.disabled_at is not None:
            raise NotSignedIn("that person was disabled")
        allows = frozenset(info.allows)
        return _Known(info, allows, person, self._teams(person, allows), None)

    def _teams(self, person: Person, scopes: frozenset[str]) -> Sequence[TeamInfo]:
        return self._vault.people.teams() if person.admin and "admin" in scopes else person.teams

    def _forget_what_is_old(self) -> None:
        """Look whether something has changed: after each write of this process, else each `_LOOK_EVERY`."""
        now, commits = time.monotonic(), self._vault.commits()
        if commits == self._commits and now < self._look_again:
            return
        self._commits, self._look_again = commits, now + _LOOK_EVERY
        generation = self._looker.generation()
        if generation != self._generation or len(self._known) > _REMEMBERED:
            self._generation = generation
            self._known.clear()
            self._declared.clear()

    def _note(self, key: KeyInfo) -> None:
        """`last_used_at`, once a minute."""
        now = time.monotonic()
        if now - self._noted.get(key.prefix, -_NOTED_EVERY) >= _NOTED_EVERY:
            self._noted[key.prefix] = now
            self._vault.access.used(key)

    def _refuse(self, request: Request, actor: Actor, error: Denied) -> None:
        self._vault.access.refused(actor, f"{request.method} {request.scope.get('route_path', '')}", error)


@dataclass(frozen=True, slots=True)
class _Known:
    """A good key: a person's, or a deployment's."""

    key: KeyInfo
    allows: frozenset[str]
    person: Person | None
    teams: Sequence[TeamInfo]
    grant: Grant | None


_NOTED_EVERY = 60.0  # seconds
_LOOK_EVERY = 0.05  # seconds until what another process has changed is known here
_REMEMBERED = 10_000  # keys


def bearer(request: Request) -> SecretValue:
    """The key in `Authorization: Bearer KEY` or `Api-Key KEY`. Raises NotSignedIn without one."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() not in ("bearer", "api-key") or not key.strip():
        raise NotSignedIn("no key came with the request", hint="send it as `Authorization: Bearer KEY`")
    return SecretValue(key.strip().encode("latin-1", "replace"))


def address_of(request: Request) -> str | None:
    """Where the request comes from: the other end, or what a trusted proxy says of it."""
    return request.client.host if request.client else None


class BootstrapLink:
    """The link of a manager that nobody has set up: who starts it may make the first administrator."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)

    def fits(self, token: str) -> bool:
        return hmac.compare_digest(self.token.encode(), token.encode("utf-8", "surrogateescape"))


class RateLimiter:
    """How often each address, or each e-mail address, failed of late. In memory, bounded."""

    def __init__(self, *, most: int = 20, seconds: float = 60.0, remembered: int = 10_000) -> None:
        self._most = most
        self._seconds = seconds
        self._remembered = remembered
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def count(self, who: str) -> bool:
        """One more failure; False once there were too many."""
        recent = self._recent(who)
        recent.append(time.monotonic())
        self._times[who] = recent[-self._most - 1 :]
        self._times.move_to_end(who)
        while len(self._times) > self._remembered:
            self._times.popitem(last=False)
        return len(recent) <= self._most

    def blocked(self, who: str) -> bool:
        """Whether there were too many already."""
        return len(self._recent(who)) >= self._most

    def forget(self, who: str) -> None:
        self._times.pop(who, None)

    def _recent(self, who: str) -> list[float]:
        since = time.monotonic() - self._seconds
        return [moment for moment in self._times.get(who, ()) if moment > since]
