"""The root key, which wraps the keyring, and the two forms in which a file keeps it.

Both are one line, so that a key can be recognised, copied and printed: `gusset-root-key-1:` and
32 bytes in base64; or `gusset-root-key-passphrase-1:` and the key wrapped by one that
argon2id derives from a passphrase. This module does not know what the key wraps.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gusset.errors import RootKeyError
from gusset.secrets.value import SecretValue

_PLAIN = b"gusset-root-key-1:"
_PROTECTED = b"gusset-root-key-passphrase-1:"
_BYTES = 32
_SALT = 16

# argon2id as RFC 9106 recommends it where memory is limited: passes, KiB, lanes.
_COST = (3, 65_536, 4)
_MOST = (100, 4_194_304, 64)  # a damaged file does not take all memory


@dataclass(frozen=True)
class RootKey:
    """32 random bytes; `id` identifies the key and reveals nothing of it."""

    key: bytes = field(repr=False)

    @property
    def id(self) -> str:
        return hmac.new(self.key, b"gusset root key id", hashlib.sha256).hexdigest()[:16]

    def wrap(self, data: bytes, context: bytes) -> bytes:
        return _wrap(self.key, data, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises RootKeyError when `wrapped` was made with another key or context."""
        try:
            return AESGCM(self.key).decrypt(wrapped[:12], wrapped[12:], context)
        except (InvalidTag, ValueError, TypeError):  # SQLite's columns hold any type
            raise RootKeyError("the keyring was altered: its root key does not open it") from None


def new_root_key() -> RootKey:
    return RootKey(os.urandom(_BYTES))


def encode_root_key(key: RootKey) -> bytes:
    """The line of a key that no passphrase protects."""
    return _PLAIN + base64.b64encode(key.key) + b"\n"


def parse_root_key(data: bytes, name: str) -> RootKey:
    """The key in such a line. `name` says where it is from. Raises RootKeyError."""
    key = _decoded(data.removeprefix(_PLAIN)) if data.startswith(_PLAIN) else b""
    if len(key) != _BYTES:
        raise _not_a_root_key(name)
    return RootKey(key)


def is_protected(data: bytes) -> bool:
    """Whether a passphrase is needed to open the line."""
    return data.startswith(_PROTECTED)


def protect(key: RootKey, passphrase: SecretValue) -> bytes:
    """The line of a key that `passphrase` protects. Slow by design."""
    salt = os.urandom(_SALT)
    wrapped = _wrap(_derive(passphrase, salt, _COST), key.key, _PROTECTED)
    cost = ",".join(map(str, _COST)).encode()
    return _PROTECTED + b":".join([cost, base64.b64encode(salt), base64.b64encode(wrapped)]) + b"\n"


def open_protected(data: bytes, passphrase: SecretValue, name: str) -> RootKey:
    """The key in a line that a passphrase protects. Slow by design.

    Raises:
        RootKeyError: the passphrase is wrong, or the line is damaged.
    """
    try:
        costs, salt, wrapped = data.removeprefix(_PROTECTED).strip().split(b":")
        passes, memory, lanes = (int(each) for each in costs.split(b","))
    except ValueError:
        raise _not_a_root_key(name) from None
    cost = (passes, memory, lanes)
    if any(not 0 < each <= most for each, most in zip(cost, _MOST, strict=True)):
        raise _not_a_root_key(name)
    sealed = _decoded(wrapped)
    try:
        key = AESGCM(_derive(passphrase, _decoded(salt), cost)).decrypt(sealed[:12], sealed[12:], _PROTECTED)
    except InvalidTag:
        raise RootKeyError(f"the passphrase does not open {name}", hint="try again") from None
    except ValueError:
        raise _not_a_root_key(name) from None
    return RootKey(key)


def _derive(passphrase: SecretValue, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    from argon2.exceptions import HashingError  # slow to import, and rarely needed
    from argon2.low_level import Type, hash_secret_raw

    passes, memory, lanes = cost
    try:
        return hash_secret_raw(
            passphrase.reveal(),
            salt,
            time_cost=passes,
            memory_cost=memory,
            parallelism=lanes,
            hash_len=_BYTES,
            type=Type.ID,
        )
    except HashingError:
        raise ValueError("argon2id refuses the salt or the cost") from None


def _wrap(key: bytes, data: bytes, context: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, data, context)


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        return b""


def _not_a_root_key(name: str) -> RootKeyError:
    return RootKeyError(f"{name} is not a root key", hint="restore the right file from a copy")
