"""The root key, which unlocks the keyring: for now a file that its owner alone can read.

The file is one line, `gusset-root-key-1:` and 32 bytes in base64, so that it
can be recognised, copied and printed. Knows nothing of what the key unlocks.
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
from gusset.vault.file_permissions import fault_of

_PREFIX = b"gusset-root-key-1:"
_BYTES = 32


@dataclass(frozen=True)
class RootKey:
    """32 random bytes; `id` names the key without telling anything of it."""

    key: bytes = field(repr=False)

    @property
    def id(self) -> str:
        return hmac.new(self.key, b"gusset root key id", hashlib.sha256).hexdigest()[:16]

    def wrap(self, data: bytes, context: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + AESGCM(self.key).encrypt(nonce, data, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises RootKeyError when `wrapped` is not of this key or this context."""
        try:
            return AESGCM(self.key).decrypt(wrapped[:12], wrapped[12:], context)
        except (InvalidTag, ValueError):
            raise RootKeyError("the keyring was altered: it does not open with its root key") from None


def new_root_key() -> RootKey:
    return RootKey(os.urandom(_BYTES))


def read_root_key(path: Path) -> RootKey:
    """The key in the file at `path`.

    Raises:
        RootKeyError: it is not there, not a root key, another account's, or others may read it.
    """
    try:
        with path.open("rb") as file:
            fault = fault_of(path, os.fstat(file.fileno()), private=True)
            data = file.read(4096)
    except FileNotFoundError:
        raise RootKeyError(
            f"the root key is not at {path}",
            hint="put it back there, or name its place in GUSSET_ROOT_KEY_FILE; nothing else opens the vault",
        ) from None
    except OSError as error:
        raise RootKeyError(f"the root key at {path} cannot be read: {error.strerror}") from None
    if fault:
        raise RootKeyError(fault.message, hint=fault.hint)
    return _parsed(data, path)


def _parsed(data: bytes, path: Path) -> RootKey:
    try:
        key = base64.b64decode(data.removeprefix(_PREFIX).strip(), validate=True)
    except binascii.Error:
        key = b""
    if not data.startswith(_PREFIX) or len(key) != _BYTES:
        raise RootKeyError(
            f"{path} is not a root key", hint="put the right file back from its copy"
        ) from None
    return RootKey(key)


def write_root_key(path: Path, key: RootKey) -> None:
    """Put a key at `path`, whole or not at all, for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)  # left by a crash, or laid there by somebody: never written into
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(_PREFIX + base64.b64encode(key.key) + b"\n")
        file.flush()
        os.fchmod(fd, 0o600)
        os.fsync(fd)
    scratch.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
