"""The keys of an issuer, each with the one algorithm that it verifies."""

# PyJWT is imported in functions: it is slow to import, and few managers need it.

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jwt import PyJWK

MAX_KEYS = 100  # in one set; further ones are not used
_MAX_MODULUS = 1368  # characters in base64url of an RSA modulus: 8192 bits

_OF_CURVE = {
    ("EC", "P-256"): "ES256",
    ("EC", "P-384"): "ES384",
    ("EC", "P-521"): "ES512",
    ("OKP", "Ed25519"): "EdDSA",
}
_OF_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = frozenset((*_OF_CURVE.values(), *_OF_RSA))


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key. It verifies signatures of just one algorithm, whatever a token's header says."""

    key_id: str | None
    algorithm: str
    key: PyJWK


JsonWebKeys = Sequence[VerificationKey]


def parse_keys(data: bytes | str) -> JsonWebKeys:
    """The keys of a JSON Web Key Set that can verify signatures; others are left out.

    Raises:
        ValueError: it is not a JSON Web Key Set. The message repeats none of it.
    """
    try:
        listed = list(json.loads(data)["keys"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("it is not a JSON Web Key Set") from None
    return [key for each in listed[:MAX_KEYS] if (key := _parse_key(each)) is not None]


def find_key(keys: JsonWebKeys, algorithm: str, key_id: str | None) -> VerificationKey | None:
    """The key that a token's header names. Without a key id, its algorithm must have only one key."""
    found = [key for key in keys if key.algorithm == algorithm and key_id in (None, key.key_id)]
    return found[0] if len(found) == 1 or (found and key_id is not None) else None


def _parse_key(data: Any) -> VerificationKey | None:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    if not isinstance(data, dict) or not _is_for_signatures(data):
        return None
    algorithm, key_id = _algorithm_of(data), data.get("kid")
    if algorithm is None or not isinstance(key_id, str | None):
        return None
    try:
        key = PyJWK(data, algorithm)
    except (PyJWTError, ValueError, TypeError):  # a point that is not on its curve, or a missing number
        return None
    if key.Algorithm.check_key_length(key.key) is not None:  # RSA of less than 2048 bits
        return None
    return VerificationKey(key_id, algorithm, key)


def _is_for_signatures(data: Mapping[str, Any]) -> bool:
    operations = data.get("key_ops", ["verify"])
    return (
        data.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and "d" not in data  # whoever publishes a private key lets everybody sign by it
    )


def _algorithm_of(data: Mapping[str, Any]) -> str | None:
    """The algorithm that a key's type allows; for RSA, whose keys fit several, the one it names, or RS256."""
    kind, named = data.get("kty"), data.get("alg")
    if kind == "RSA":
        modulus, algorithm = data.get("n"), "RS256" if named is None else named
        fits = isinstance(modulus, str) and len(modulus) <= _MAX_MODULUS and algorithm in _OF_RSA
        return algorithm if fits else None
    curve = data.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str):
        return None
    algorithm = _OF_CURVE.get((kind, curve))
    return algorithm if named in (None, algorithm) else None
