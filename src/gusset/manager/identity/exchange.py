"""The exchange: a workload's JSON Web Token for a token that reads its deployment's secrets."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gusset.addresses import network_of
from gusset.errors import TokenAmbiguous, TokenRefused, TooManyAttempts
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.manager.identity.issuer_keys import IssuerKeys, UnknownKey
from gusset.manager.identity.json_web_token import read_token, seconds_left, verified_claims
from gusset.printable import printable
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actor import Actor
from gusset.vault.services.identities import IdentityInfo
from gusset.vault.services.identity_rules import audiences
from gusset.vault.services.identity_tokens import IssuedToken, is_identity_token
from gusset.vault.wiring import Vault

REFUSALS = 20  # a minute, of one address


class IdentityExchange:
    """Exchanges tokens. For the event loop's thread, in a greenlet: it may wait for an issuer's keys."""

    def __init__(self, vault: Vault, keys: IssuerKeys) -> None:
        self._vault = vault
        self._keys = keys
        self._refusals = RateLimiter(REFUSALS, 60.0)

    def exchange(
        self, token: SecretValue, *, route: str, address: str | None, target: str | None = None
    ) -> IssuedToken:
        """A short-lived token for a workload's JSON Web Token.

        `target` names the deployment, as NAME or TEAM/NAME, where the token stands for more than one.
        `route` is the request's, as audit records show it, `address` the client's.

        Raises:
            TokenRefused: the token is not valid, or stands for no deployment, or not for `target`.
            TooManyAttempts: too many tokens from this address were refused. A valid one never is.
            Unreachable: the keys of its issuer are not known at the moment, or the vault does not respond.
        """
        try:
            return self._exchange(token, address, target)
        except (TokenRefused, UnknownKey) as error:
            if isinstance(error, TokenRefused):
                self._vault.access_keys.record_refusal(Actor("somebody", address or "?"), route, error)
            if wait := self._refusals.take(network_of(address)):
                raise TooManyAttempts(
                    "too many tokens from this address were refused",
                    hint="find out why: the audit log has the first of them",
                    retry_after=wait,
                ) from None
            raise

    def _exchange(self, token: SecretValue, address: str | None, target: str | None) -> IssuedToken:
        if is_identity_token(token):
            raise TokenRefused(
                "subject_token is a token of gusset's, which cannot be exchanged again",
                hint="send the token of the workload's issuer",
            )
        unverified = read_token(token)
        issuer = self._vault.issuers.find(unverified.issuer)
        if issuer is None:
            raise TokenRefused(
                "the token's issuer is not trusted here",
                hint="an administrator adds it: gusset issuer add URL",
            )
        claims = verified_claims(unverified, self._keys.find(issuer, unverified))
        left = seconds_left(claims, datetime.fromisoformat(self._vault.now()).timestamp())
        identity = self._choose(claims, target)
        return self._vault.identity_tokens.issue(
            identity,
            seconds_left=left,
            details={"issuer": issuer.url, "subject": claims["sub"], "key": unverified.key_id},
            actor=Actor(f"deployment {identity.deployment}", address, rights=(issuer.right,)),
        )

    def _choose(self, claims: Mapping[str, Any], target: str | None) -> IdentityInfo:
        """The identity that a verified token stands for."""
        found = self._vault.identities.matching(claims)
        if not found:
            raise TokenRefused(
                f"no identity matches the token of {_described(claims)}",
                hint="compare it with `gusset identity list`: everything must match exactly\nbind it: "
                f"gusset identity add NAME --deployment DEPLOYMENT {_options(claims)}",
            )
        if target is not None:
            found = [each for each in found if target in _names(each)]
            if not found:
                raise TokenRefused("the token does not stand for that deployment", wrong_target=True)
        targets = sorted({each.target for each in found})
        if len({each.deployment_id for each in found}) > 1:
            raise TokenAmbiguous(
                f"the token stands for several deployments: {', '.join(targets)}",
                hint="name one in the parameter audience, as TEAM/DEPLOYMENT",
            )
        return found[0]


def _names(identity: IdentityInfo) -> Sequence[str]:
    return identity.target, f"{identity.team_id}/{identity.deployment}", identity.deployment


def _options(claims: Mapping[str, Any]) -> str:
    """The options that bind a verified token, for a shell: its issuer chose these texts."""
    return (
        f"--issuer {shlex.quote(printable(claims['iss']))} --subject {shlex.quote(printable(claims['sub']))}"
    )


def _described(claims: Mapping[str, Any]) -> str:
    """Whose verified token it is, made printable for a message: its issuer chose these texts."""
    subject, listed = printable(str(claims["sub"])), ", ".join(map(printable, audiences(claims)))
    return f"the subject {subject!r} for the audience {listed[:200]!r}"
