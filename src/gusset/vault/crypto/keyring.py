"""The vault's keys: KEKs by number, the audit log's HMAC key and its signing key.

The newest KEK wraps, every KEK unwraps. A keyring is immutable: adding a KEK
makes a new one. This module does not know where the root key is kept.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gusset.vault.crypto.envelope import KEY_BYTES, kek_number, open_sealed, rewrap, seal

KEK, AUDIT, SIGNING, STATE = "kek", "audit", "signing", "state"
KINDS = (KEK, AUDIT, SIGNING, STATE)

# (kind, number) -> key; stored wrapped by the root key.
Keys = Mapping[tuple[str, int], bytes]


class Keyring:
    """Seals and opens values, and authenticates the audit log."""

    def __init__(self, keys: Keys) -> None:
        self._keys = dict(keys)
        self._keks = {number: AESGCM(key) for (kind, number), key in keys.items() if kind == KEK}
        self.newest = max(self._keks)

    @classmethod
    def new(cls) -> Keyring:
        return cls(cls.new_keys(*KINDS))

    @staticmethod
    def new_keys(*kinds: str) -> Keys:
        """The first key of each kind."""
        return {(kind, 1): os.urandom(KEY_BYTES) for kind in kinds}

    def has(self, kind: str) -> bool:
        """Whether there is a key of that kind."""
        return any(each == kind for each, _ in self._keys)

    def with_new_kek(self) -> Keyring:
        """A keyring with one more KEK, which is now the newest."""
        return Keyring({**self._keys, (KEK, self.newest + 1): AESGCM.generate_key(256)})

    def keys(self) -> Keys:
        """Every key, to be wrapped and stored."""
        return dict(self._keys)

    def seal(self, value: bytes, context: bytes) -> bytes:
        """Seal `value` for `context` under the newest KEK."""
        return seal(value, context=context, kek=self._keks[self.newest], number=self.newest)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Raises CannotOpen, or KeyError for a KEK that was added after this keyring was read."""
        return open_sealed(sealed, context=context, keks=self._keks.__getitem__)

    def knows(self, sealed: bytes) -> bool:
        """Whether this keyring has the KEK that `sealed` names."""
        return kek_number(sealed) in self._keks

    def rewrap(self, sealed: bytes, context: bytes) -> bytes:
        """`sealed` with its DEK wrapped by the newest KEK."""
        kek = self._keks[self.newest]
        return rewrap(sealed, context=context, keks=self._keks.__getitem__, kek=kek, number=self.newest)

    def audit_mac(self, data: bytes, seq: int) -> bytes:
        """The HMAC of the audit record `seq`, whose hash is `data`."""
        return hmac.digest(self._keys[AUDIT, 1], data, "sha256")

    def state_mac(self, data: bytes, seq: int) -> bytes:
        """The HMAC of a row that the audit record `seq` wrote."""
        return hmac.digest(self._keys[STATE, 1], data, "sha256")

    def derive(self, purpose: str) -> bytes:
        """A key for one purpose outside the vault. It differs from every MAC of the audit log."""
        data = f"gusset: a key derived for the purpose of: {purpose}".encode()
        return hmac.digest(self._keys[AUDIT, 1], data, "sha256")

    def sign(self, data: bytes) -> bytes:
        return self._signing.sign(data)

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Whether `signature` over `data` was made with this keyring's signing key."""
        try:
            self._signing.public_key().verify(signature, data)
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _signing(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._keys[SIGNING, 1])

    def __repr__(self) -> str:
        return f"Keyring({len(self._keks)} KEKs)"
