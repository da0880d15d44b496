"""The vault's keys: KEKs, and those for the audit log, for rows, for checkpoints and for repeated requests.

Each key has a kind and a number. The newest KEK wraps, every KEK unwraps. A key that
authenticates audit records, or what belongs to one, is valid for the records from its
`first` up to, but not including, the next key's `first`: whoever learns a key that was replaced
can forge nothing newer. A keyring is immutable: adding a key makes a new one, of the
next generation. This module does not know where the root key is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from gusset.vault.crypto.envelope import KEY_BYTES, kek_number, open_sealed, rewrap, seal
from gusset.vault.crypto.public_keys import PublicKey

KEK, AUDIT, SIGNING, STATE, IDEMPOTENCY = "kek", "audit", "signing", "state", "idempotency"
KINDS = {
    KEK: "KEK",
    AUDIT: "audit key",
    STATE: "state key",
    SIGNING: "signing key",
    IDEMPOTENCY: "idempotency key",
}


@dataclass(frozen=True, slots=True)
class VaultKey:
    """32 random bytes, and the number of the first audit record that they are for."""

    secret: bytes = field(repr=False)
    first: int = 0


VaultKeys = Mapping[tuple[str, int], VaultKey]  # by kind and number


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is public about a key. Newer keys replace it from their own first audit record on."""

    kind: str
    number: int
    first: int
    newest: bool

    def data(self) -> dict[str, Any]:
        """The key as a JSON object."""
        return {"kind": self.kind, "number": self.number, "first": self.first, "newest": self.newest}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranged:
    """A key, for the audit records from `first` up to, but not including, the next key's `first`."""

    first: int
    number: int
    secret: bytes = field(repr=False)
    hmac: HMAC = field(repr=False)  # under the key, of nothing yet: a copy of it costs less than a new one

    def mac(self, data: bytes) -> bytes:
        """HMAC-SHA-256 of `data`."""
        copy = self.hmac.copy()
        copy.update(data)
        return copy.finalize()


class Keks:
    """The KEKs by number: they seal and open values."""

    def __init__(self, keks: Mapping[int, bytes]) -> None:
        self._keks = {number: AESGCM(key) for number, key in keks.items()}
        self.newest = max(self._keks)

    def seal(self, value: bytes, context: bytes) -> bytes:
        """Seal `value` for `context` under the newest KEK."""
        return seal(value, context=context, kek=self._keks[self.newest], number=self.newest)

    def open(self, sealed: Any, context: bytes) -> bytes:
        """Raises CannotOpen, or KeyError for a KEK that was added after the keyring was read."""
        return open_sealed(sealed, context=context, keks=self._keks.__getitem__)

    def knows(self, sealed: bytes) -> bool:
        """Whether there is the KEK that `sealed` names."""
        return kek_number(sealed) in self._keks

    def rewrap(self, sealed: Any, context: bytes) -> bytes:
        """`sealed` with its DEK wrapped by the newest KEK."""
        kek = self._keks[self.newest]
        return rewrap(sealed, context=context, keks=self._keks.__getitem__, kek=kek, number=self.newest)


class Keyring:
    """The KEKs, and the keys that authenticate the audit log and rows.

    `generation` grows with each change of the keyring. `root_keys` are the ids of the root
    keys that open it, the newest last: two while the root key is being replaced.
    """

    def __init__(self, keys: VaultKeys, *, generation: int = 1, root_keys: Iterable[str] = ()) -> None:
        self.generation = generation
        self.root_keys = tuple(root_keys)
        self._keys = dict(keys)
        self.keks = Keks({number: key.secret for (kind, number), key in keys.items() if kind == KEK})
        self._ranges = {kind: self._range(kind) for kind in KINDS}
        self._public_keys: Sequence[PublicKey] | None = None  # derived when they are first used

    def _range(self, kind: str) -> list[_Ranged]:
        """The keys of a kind, the newest first."""
        found = [(number, key) for (each, number), key in self._keys.items() if each == kind]
        return [
            _Ranged(first=key.first, number=number, secret=key.secret, hmac=HMAC(key.secret, SHA256()))
            for number, key in sorted(found, key=lambda each: each[0], reverse=True)
        ]

    @classmethod
    def new(cls, root_key: str) -> Keyring:
        """The keyring of a new vault, which the root key with that id opens."""
        keys = {(kind, 1): VaultKey(os.urandom(KEY_BYTES)) for kind in KINDS}
        return cls(keys, root_keys=[root_key])

    def has(self, kind: str) -> bool:
        """Whether there is a key of that kind."""
        return bool(self._ranges[kind])

    def newest(self, kind: str) -> int:
        """The number of the newest key of a kind; 0 when there is none."""
        return max((key.number for key in self._ranges[kind]), default=0)

    def with_new(self, kinds: Iterable[str], first: int) -> Keyring:
        """The next generation, with a new key of each of `kinds`, for the records from `first` on."""
        new = {(kind, self.newest(kind) + 1): VaultKey(os.urandom(KEY_BYTES), first) for kind in kinds}
        return Keyring(self._keys | new, generation=self.generation + 1, root_keys=self.root_keys)

    def complete(self) -> Keyring:
        """This keyring, or the next generation with a key of each kind that it lacks."""
        missing = [kind for kind in KINDS if not self.has(kind)]
        return self if self.generation and not missing else self.with_new(missing, first=0)

    def with_root_keys(self, root_keys: Iterable[str]) -> Keyring:
        """The next generation, which the root keys with these ids open."""
        return Keyring(self._keys, generation=self.generation + 1, root_keys=root_keys)

    def keys(self) -> VaultKeys:
        """Every key, to be wrapped and stored."""
        return dict(self._keys)

    def audit_mac(self, data: bytes, seq: int) -> bytes:
        """The HMAC of the audit record `seq`, whose hash is `data`."""
        return self._key_of(AUDIT, seq).mac(data)

    def state_mac(self, data: bytes, seq: int) -> bytes:
        """The HMAC of a row that the audit record `seq` wrote."""
        return self._key_of(STATE, seq).mac(data)

    def request_macs(self, data: bytes) -> tuple[bytes, ...]:
        """HMACs of a request: under the newest idempotency key, and under those that it replaced.

        Store the first, and compare with all: a request may be repeated after a rotation.
        """
        return tuple(key.mac(data) for key in self._ranges[IDEMPOTENCY])

    def derive(self, purpose: str) -> bytes:
        """A key for one purpose outside the vault, until the audit key is replaced."""
        return self.derive_all(purpose)[0]

    def derive_all(self, purpose: str) -> Sequence[bytes]:
        """That key, and those that it replaced, the newest first."""
        data = f"gusset: a key derived for the purpose of: {purpose}".encode()
        return [key.mac(data) for key in self._ranges[AUDIT]]

    def signing_key(self, seq: int) -> int:
        """The number of the key that signs the checkpoint of the audit record `seq`."""
        return self._key_of(SIGNING, seq).number

    def sign(self, data: bytes, seq: int) -> bytes:
        """Sign `data`, the checkpoint of the audit record `seq`."""
        return _private_key(self._key_of(SIGNING, seq).secret).sign(data)

    @property
    def public_keys(self) -> Sequence[PublicKey]:
        """The public part of each signing key, the oldest first."""
        if self._public_keys is None:
            self._public_keys = [
                PublicKey(key.number, key.first, _private_key(key.secret).public_key().public_bytes_raw())
                for key in reversed(self._ranges[SIGNING])
            ]
        return self._public_keys

    def _key_of(self, kind: str, seq: int) -> _Ranged:
        """The key for the audit record `seq`. Raises KeyError."""
        for key in self._ranges[kind]:
            if seq >= key.first:
                return key
        raise KeyError(kind)

    def __repr__(self) -> str:
        return f"Keyring(generation {self.generation}, {len(self._keys)} keys)"


def _private_key(secret: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(secret)
