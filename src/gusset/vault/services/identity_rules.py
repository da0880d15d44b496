"""Which JSON Web Tokens an identity accepts, and which issuers may be trusted. Pure, without I/O.

Everything matches exactly: there are no patterns, no prefixes, and no case folding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gusset.addresses import is_loopback
from gusset.errors import UsageError
from gusset.vault.services.json_pointer import check_pointer, look_up

DEFAULT_AUDIENCE = "gusset"
MAX_TEXT = 1000  # characters of an issuer, audience, subject or value of a claim
MAX_CLAIMS = 20
MAX_JWKS = 262_144  # bytes

ClaimValue = str | int | bool
_PUBLIC_MEMBERS = ("kty", "use", "key_ops", "alg", "kid", "n", "e", "crv", "x", "y")
_SECRET_MEMBERS = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRule:
    """What a verified token must have: `claims` are values by JSON Pointer."""

    issuer: str
    audience: str
    subject: str
    claims: Mapping[str, ClaimValue]

    def check(self) -> None:
        """Raises UsageError for a rule that is not valid."""
        check_issuer_url(self.issuer)
        for what, text in (("audience", self.audience), ("subject", self.subject)):
            if not is_exact_text(text):
                raise UsageError(f"the {what} must have 1 to {MAX_TEXT} printable characters")
        if len(self.claims) > MAX_CLAIMS:
            raise UsageError(f"an identity can compare at most {MAX_CLAIMS} claims")
        for pointer, value in self.claims.items():
            _check_claim(pointer, value)

    def claims_text(self) -> str:
        """The claims as they are stored: equal claims have equal texts."""
        return json.dumps(dict(self.claims), sort_keys=True, separators=(",", ":"))

    def matches(self, token: Mapping[str, Any]) -> bool:
        """Whether the claims of a verified token are those of the rule."""
        return (
            is_equal(token.get("iss"), self.issuer)
            and self.audience in audiences(token)
            and is_equal(token.get("sub"), self.subject)
            and all(is_equal(look_up(token, pointer), value) for pointer, value in self.claims.items())
        )


def _check_claim(pointer: str, value: ClaimValue) -> None:
    check_pointer(pointer)
    if not pointer or not is_exact_text(pointer):
        raise UsageError(f"a claim's JSON Pointer must have 2 to {MAX_TEXT} printable characters")
    if isinstance(value, str) and not is_exact_text(value):
        raise UsageError(f"the value of the claim {pointer} must have 1 to {MAX_TEXT} printable characters")
    if isinstance(value, int) and abs(value) >= 2**53:
        raise UsageError(f"the number of the claim {pointer} is too large to be exact in JSON")


def audiences(token: Mapping[str, Any]) -> list[str]:
    """The audiences of a token: JSON has one as a text, or several as a list."""
    found = token.get("aud")
    listed = found if isinstance(found, list) else [found]
    return [each for each in listed if isinstance(each, str)]


def is_equal(found: Any, expected: ClaimValue) -> bool:
    """Whether two values of JSON are the same, with the same type: 1 is neither true nor "1"."""
    return type(found) is type(expected) and found == expected


def is_exact_text(text: object) -> bool:
    """Whether a text can be compared and stored as it is: not empty, not long, printable."""
    return isinstance(text, str) and 1 <= len(text) <= MAX_TEXT and text.isprintable()


def check_issuer_url(url: str) -> None:
    """Check the URL of an issuer, or of its keys.

    Raises:
        UsageError: it is neither https nor of this machine, or has parts that do not belong there.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, or a broken IPv6 address
        host = port = None
    if not host or port == 0 or not is_exact_text(url) or not url.isascii() or " " in url or "\\" in url:
        raise UsageError("an issuer, and the address of its keys, is a URL such as https://issuer.example")
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise UsageError("the URL of an issuer must have no user, password, query or fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise UsageError(
            "an issuer's URL must begin with https://",
            hint="plain HTTP would let others on the network replace its keys",
        )


def checked_jwks(text: str) -> str:
    """The public keys in a JSON Web Key Set, as they are stored.

    Raises:
        UsageError: it is not one, is too large, or has a private key. The message repeats none of it.
    """
    if len(text.encode("utf-8", "replace")) > MAX_JWKS:
        raise UsageError(f"a JSON Web Key Set has at most {MAX_JWKS} bytes")
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        keys = None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise UsageError(
            "that is not a JSON Web Key Set",
            hint='it is a JSON object such as {"keys": [{"kty": "EC", ...}]}',
        )
    if any(_SECRET_MEMBERS & key.keys() for key in keys):
        raise UsageError(
            "the JSON Web Key Set has a private or symmetric key",
            hint="remove it: gusset needs only the public keys, and nobody else may have the others",
        )
    if not keys:
        raise UsageError("the JSON Web Key Set has no keys")
    public = [{name: key[name] for name in _PUBLIC_MEMBERS if name in key} for key in keys]
    return json.dumps({"keys": public}, separators=(",", ":"))
