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
from dataclasses import dataclass

from starlette.requests import Request

from gusset.errors import Denied, NotFound, NotSignedIn, TooManyAttempts
from gusset.secrets.value import SecretValue
from gusset.vault.access import SCOPES, KeyInfo, Scope
from gusset.vault.audit import Actor
from gusset.vault.deployments import Grant
from gusset.vault.opening import Vault
from gusset.vault.people import Person, TeamInfo


@dataclass(frozen=True, slots=True)
class Caller:
    """A person, and what the key or session that they came with lets them do."""

    person: Person
    actor: Actor
    scopes: frozenset[str]

    def need(self, scope: Scope) -> None:
        """Raises Denied when the key lacks the scope, or the person the role."""
        if scope not in self.scopes:
            raise Denied(
                f"that key may not do this: it lacks the scope {scope}", hint="make a key that has it"
            )
        if scope == "admin" and not self.person.admin:
            raise Denied("only an administrator may do this")

    def teams(self, vault: Vault) -> list[TeamInfo]:
        """The teams that this caller sees: an administrator's every one, where the key has that scope."""
        if self.person.admin and "admin" in self.scopes:
            return vault.people.teams()
        return list(self.person.teams)

    def team(self, vault: Vault, team_id: str | None) -> TeamInfo:
        """The team of that id; without one, the caller's default team: `default` where they are in it.

        Raises:
            NotFound: no such team, or none that they may know of.
        """
        for team in self.teams(vault):
            if team_id is None or team.id == team_id:
                return team
        if team_id is None:
            raise NotFound("you are in no team", hint="ask an administrator to put you in one")
        raise NotFound("there is no such team")


@dataclass(frozen=True, slots=True)
class DeploymentCaller:
    """A running deployment, and what its token lets it read."""

    grant: Grant
    key: KeyInfo
    actor: Actor


class Doorkeeper:
    """Finds out who calls."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.failures = Failures()

    def person(self, request: Request) -> Caller:
        """The person whose API key the request bears.

        Raises:
            NotSignedIn: no key, or not a good one.
            Denied: a deployment's token, which opens nothing here.
            TooManyAttempts: too many bad keys came from there.
        """
        info = self._key(request)
        if info.kind == "token":
            actor = Actor(f"deployment {info.name}", address_of(request))
            error = Denied("a deployment's token reads its own secrets, and nothing else")
            self._refuse(request, actor, error)
            raise error
        person = self._vault.people.get(info.user_id or "")
        if person.disabled_at is not None:
            raise NotSignedIn("that person was disabled")
        self._vault.access.used(info)
        actor = Actor(f"{person.email} (key {info.prefix})", address_of(request))
        return Caller(person, actor, frozenset(info.allows))

    def deployment(self, request: Request) -> DeploymentCaller:
        """The deployment whose token the request bears. Raises as `person` does."""
        info = self._key(request)
        if info.kind != "token":
            raise Denied(
                "this needs a deployment's token, not a person's key", hint="see `gusset token create`"
            )
        grant = self._vault.deployments.grant(info)
        self._vault.access.used(info)
        return DeploymentCaller(grant, info, Actor(f"deployment {grant.deployment}", address_of(request)))

    def session(self, request: Request, token: str) -> Caller | None:
        """The person whose session that is."""
        person = self._vault.people.session(token)
        if person is None:
            return None
        return Caller(person, Actor(person.email, address_of(request)), frozenset(SCOPES))

    def refused(self, request: Request, caller: Caller | DeploymentCaller, error: Denied) -> None:
        """Record that a known caller was turned away."""
        self._refuse(request, caller.actor, error)

    def _key(self, request: Request) -> KeyInfo:
        address = address_of(request) or "?"
        try:
            return self._vault.access.check(bearer(request), kinds=("key", "token"))
        except NotSignedIn as error:
            if self.failures.count(address):
                self._refuse(request, Actor("somebody", address), error)
                raise
            raise TooManyAttempts(
                "too many keys from there were not good", hint="wait a minute, then try a good one"
            ) from None

    def _refuse(self, request: Request, actor: Actor, error: Denied) -> None:
        self._vault.access.refused(actor, f"{request.method} {request.scope.get('route_path', '')}", error)


def bearer(request: Request) -> SecretValue:
    """The key in `Authorization: Bearer KEY` or `Api-Key KEY`. Raises NotSignedIn without one."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() not in ("bearer", "api-key") or not key.strip():
        raise NotSignedIn("no key came with the request", hint="send it as `Authorization: Bearer KEY`")
    return SecretValue(key.strip().encode("latin-1", "replace"))


def address_of(request: Request) -> str | None:
    """Where the request comes from: the other end, or what a trusted proxy says of it."""
    return request.client.host if request.client else None


class FirstLink:
    """The link of a manager that nobody has set up: who starts it may make the first administrator."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)

    def fits(self, token: str) -> bool:
        return hmac.compare_digest(self.token.encode(), token.encode("utf-8", "surrogateescape"))


class Failures:
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
