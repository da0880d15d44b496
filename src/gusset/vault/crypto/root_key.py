"""The root key, which wraps the keyring: a file that only its owner can read.

The file is one line, `gusset-root-key-1:` and 32 bytes in base64, so that it
can be recognised, copied and printed. This module does not know what the key wraps.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gusset.errors import RootKeyError
from gusset.portable import write_private_file
from gusset.vault.file_permissions import file_problem

_HEADER = b"gusset-root-key-1:"
_BYTES = 32


@dataclass(frozen=True)
class RootKey:
    """32 random bytes; `id` identifies the key and reveals nothing of it."""

    key: bytes = field(repr=False)

    @property
    def id(self) -> str:
        return hmac.new(self.key, b"gusset root key id", hashlib.sha256).hexdigest()[:16]

    def wrap(self, data: bytes, context: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + AESGCM(self.key).encrypt(nonce, data, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises RootKeyError when `wrapped` was made with another key or context."""
        try:
            return AESGCM(self.key).decrypt(wrapped[:12], wrapped[12:], context)
        except (InvalidTag, ValueError):
            raise RootKeyError("the keyring was altered: its root key does not open it") from None


def new_root_key() -> RootKey:
    return RootKey(os.urandom(_BYTES))


def read_root_key(path: Path) -> RootKey:
    """The key in the file at `path`.

    Raises:
        RootKeyError: the file is missing, is not a root key, belongs to another account,
            or other accounts can read it.
    """
    try:
        with path.open("rb") as file:
            problem = file_problem(path, os.fstat(file.fileno()), private=True)
            data = file.read(4096)
    except FileNotFoundError:
        raise RootKeyError(
            f"there is no root key at {path}",
            hint="restore it from a copy, or set GUSSET_ROOT_KEY_FILE; nothing else opens the vault",
        ) from None
    except OSError as error:
        raise RootKeyError(f"cannot read the root key at {path}: {error.strerror}") from None
    if problem:
        raise RootKeyError(problem.message, hint=problem.hint)
    return _parsed(data, path)


def _parsed(data: bytes, path: Path) -> RootKey:
    try:
        key = base64.b64decode(data.removeprefix(_HEADER).strip(), validate=True)
    except binascii.Error:
        key = b""
    if not data.startswith(_HEADER) or len(key) != _BYTES:
        raise RootKeyError(f"{path} is not a root key", hint="restore the right file from a copy") from None
    return RootKey(key)


def write_root_key(path: Path, key: RootKey) -> None:
    """Write a key to `path`, atomically and with mode 0600."""
    write_private_file(path, _HEADER + base64.b64encode(key.key) + b"\n")
