"""Reading and verifying JSON Web Tokens (RFC 7519, with the advice of RFC 8725). Pure, without I/O.

No message repeats a part of a token.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gusset.errors import TokenRefused
from gusset.manager.identity.json_web_keys import ALGORITHMS, VerificationKey
from gusset.secrets.value import SecretValue
from gusset.vault.services.identity_rules import is_exact_text

MAX_BYTES = 16_384
MAX_VALIDITY = 24 * 3600.0  # seconds from `iat` to `exp`
SKEW = 60.0  # seconds by which the clocks of issuer and manager may differ
_FORMAT = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_TYPES = ("jwt", "at+jwt", "application/jwt", "application/at+jwt")
_HINT = "send a new token of the workload's issuer"

# A token may not bring the key that verifies it, nor extensions, of which none is understood here.
_REFUSED_HEADERS = ("jwk", "jku", "x5u", "x5c", "crit", "b64", "enc", "zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedToken:
    """A token as it was sent: everything in it may be forged."""

    algorithm: str
    key_id: str | None
    issuer: str
    text: bytes = field(repr=False)


def read_token(token: SecretValue) -> UnverifiedToken:
    """Read what is needed to find the key of a token.

    Raises:
        TokenRefused: it is not a JSON Web Token that could be accepted.
    """
    text = token.reveal()
    match = _FORMAT.fullmatch(text) if len(text) <= MAX_BYTES else None
    if match is None:
        raise TokenRefused("subject_token is not a signed JSON Web Token", hint=_HINT)
    header, claims = _decoded(match[1]), _decoded(match[2])
    if refused := [name for name in _REFUSED_HEADERS if name in header]:
        raise TokenRefused(f"the token's header has {refused[0]}, which is not accepted")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenRefused("the token is of another type than JWT")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenRefused(
            "the token's algorithm is not accepted: it must be signed by an RSA, EC or Ed25519 key"
        )
    if key_id is not None and not is_exact_text(key_id):
        raise TokenRefused("the token's header has an invalid kid")
    issuer = claims.get("iss")
    if not is_exact_text(issuer) or not is_exact_text(claims.get("sub")):
        raise TokenRefused("the token has no issuer or no subject")
    return UnverifiedToken(algorithm=algorithm, key_id=key_id, issuer=str(issuer), text=text)


def verified_claims(token: UnverifiedToken, key: VerificationKey) -> Mapping[str, Any]:
    """The claims of a token that `key` has signed. Raises TokenRefused."""
    from jwt import PyJWS  # slow to import; the key has imported it
    from jwt.exceptions import PyJWTError

    verifier = PyJWS(algorithms=[key.algorithm], options={"enforce_minimum_key_length": True})
    try:
        payload: bytes = verifier.decode(token.text, key.key, algorithms=[key.algorithm])
    except PyJWTError:
        raise TokenRefused("the token's signature is not valid", hint=_HINT) from None
    return _object(payload)


def seconds_left(claims: Mapping[str, Any], now: float) -> float:
    """For how many seconds a token is valid at the time `now`.

    Raises:
        TokenRefused: it is not valid yet, or any more; it has no times, or is valid for too long.
    """
    expiry, issued = _time(claims, "exp"), _time(claims, "iat")
    start = _time(claims, "nbf") if "nbf" in claims else issued
    if now >= expiry + SKEW:
        raise TokenRefused("the token has expired", hint=_HINT)
    if max(start, issued) > now + SKEW:
        raise TokenRefused("the token is not valid yet", hint="compare the clocks of both machines")
    if not 0 < expiry - issued <= MAX_VALIDITY:
        raise TokenRefused(
            "the token is valid for more than 24 hours", hint="have it issued for a shorter time"
        )
    return expiry - now if now < expiry else expiry + SKEW - now


def _time(claims: Mapping[str, Any], name: str) -> float:
    value: Any = claims.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= 2**53:  # false for NaN, too; larger integers may fit no float
        raise TokenRefused(f"the token has no valid {name}")
    return float(value)


def _decoded(segment: bytes) -> dict[str, Any]:
    try:
        return _object(base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)))
    except binascii.Error:
        raise TokenRefused("subject_token is not a signed JSON Web Token", hint=_HINT) from None


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object. What two readers could read differently is refused."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise TokenRefused("a part of the token is not a JSON object", hint=_HINT)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
