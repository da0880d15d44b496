"""The public keys of a vault: with them, an auditor verifies checkpoints without any other key."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_HEADER = "gusset-public-key-1:"
_BYTES = 32


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public part of a signing key, which signs checkpoints of records from `first` on."""

    number: int
    first: int
    key: bytes

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether the signing key made `signature` over `data`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """The public keys of a vault, the oldest first: they verify checkpoints, and reveal nothing.

    As text, each is a line `gusset-public-key-1:VAULT:NUMBER:FIRST:KEY`.
    """

    vault: str
    keys: Sequence[PublicKey]

    def key_of(self, seq: int) -> PublicKey | None:
        """The key that signs the checkpoint of the audit record `seq`."""
        return next((key for key in reversed(self.keys) if seq >= key.first), None)

    def text(self) -> str:
        """All keys as text, one a line."""
        return "\n".join(
            f"{_HEADER}{self.vault}:{key.number}:{key.first}:{base64.b64encode(key.key).decode()}"
            for key in self.keys
        )

    @classmethod
    def parse(cls, text: str) -> PublicKeys:
        """The keys in such lines. Raises ValueError."""
        vaults, keys = set(), []
        for line in text.split():
            if not line.startswith(_HEADER):
                raise ValueError("not a public key")
            vault, number, first, key = line.removeprefix(_HEADER).split(":")
            vaults.add(vault)
            keys.append(PublicKey(int(number), int(first), base64.b64decode(key, validate=True)))
        if len(vaults) != 1 or any(len(key.key) != _BYTES for key in keys):
            raise ValueError("not the public keys of one vault")
        return cls(vaults.pop(), sorted(keys, key=lambda key: key.first))
