"""The keyring in the database, wrapped by the root key.

The root key's file is read only when the vault is opened and when keys are rotated.
"""

from __future__ import annotations

from pathlib import Path

from gusset.errors import RootKeyError
from gusset.vault.crypto.envelope import encode_context
from gusset.vault.crypto.keyring import AUDIT, KEK, SIGNING, Keyring, Keys
from gusset.vault.crypto.root_key import RootKey, read_root_key
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.sql import Statement

_LIST = Statement("SELECT kind, number, root_key_id, wrapped FROM keyring")
_INSERT = Statement(
    "INSERT INTO keyring (kind, number, root_key_id, wrapped, created_at) "
    "VALUES (:kind, :number, :root_key_id, :wrapped, :created_at)"
)


class KeyringStore:
    """Caches the keyring, and loads it again when a value names a KEK that is not in it."""

    def __init__(self, root_key_file: Path, vault: str) -> None:
        self._root_key_file = root_key_file
        self._vault = vault
        self._current: Keyring | None = None

    @property
    def current(self) -> Keyring:
        """The keyring as it was last read."""
        if self._current is None:
            raise RuntimeError("the keyring has not been read yet")
        return self._current

    def open(self, connection: Connection, sealed: bytes, context: bytes) -> bytes:
        """The value in `sealed`. Reads the keyring again when another process has rotated the KEK.

        Raises:
            CannotOpen, KeyError: see `Keyring.open`.
        """
        keyring = self.current
        if isinstance(sealed, bytes) and not keyring.knows(sealed):
            keyring = self.reload(connection)
        return keyring.open(sealed, context)

    def reload(self, connection: Connection) -> Keyring:
        """Read the keyring from the database.

        Raises:
            RootKeyError: the root key is missing, unsafe or belongs to another vault, or the
                keyring was altered.
        """
        self._current = Keyring(self._read(connection, read_root_key(self._root_key_file)))
        return self._current

    def _read(self, connection: Connection, root: RootKey) -> Keys:
        rows = connection.all(_LIST)
        mine = [row for row in rows if row.root_key_id == root.id]
        if not mine:
            raise RootKeyError(
                f"{self._root_key_file} is not the root key of this vault",
                hint="put this vault's root key there, or set GUSSET_ROOT_KEY_FILE to its path",
            )
        kinds = {row.kind for row in mine}
        if lost := sorted({KEK, AUDIT, SIGNING} - kinds):
            raise RootKeyError(
                f"the keyring was altered: it has no {' and no '.join(lost)} key",
                hint="restore the database from a backup",
            )
        return {
            (row.kind, row.number): root.unwrap(row.wrapped, self._context(row.kind, row.number))
            for row in mine
        }

    def write(self, connection: Connection, keys: Keys, root: RootKey, at: str) -> None:
        """Add `keys`, wrapped by `root`; existing rows stay."""
        rows = [
            {
                "kind": kind,
                "number": number,
                "root_key_id": root.id,
                "wrapped": root.wrap(key, self._context(kind, number)),
                "created_at": at,
            }
            for (kind, number), key in keys.items()
        ]
        connection.run_many(_INSERT, rows)

    def _context(self, kind: str, number: int) -> bytes:
        return encode_context("keyring", self._vault, kind, number)
