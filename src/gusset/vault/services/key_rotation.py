"""The keyring in the database: created with the vault, read when it is opened, rotated while it is in use.

The root key's file is read only when the vault is opened and when keys are rotated.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update

from gusset.errors import Conflict, RootKeyError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.envelope import CannotOpen, aad_for, encode_context, kek_number
from gusset.vault.crypto.keyring import AUDIT, KEK, SIGNING, Keyring, Keys
from gusset.vault.crypto.root_key import RootKey, new_root_key, read_root_key, write_root_key
from gusset.vault.storage.database import exclusive_lock, file_of, truncate_wal
from gusset.vault.storage.tables import keyring_table, secret_versions, secrets_table

REWRAP_BATCH = 500

_k, _v = keyring_table.c, secret_versions.c
_wrapped = select(_k.kind, _k.number, _k.root_key_id, _k.wrapped)
_sealed_after = (
    select(secrets_table.c.team_id, secrets_table.c.folded, _v.secret_id, _v.version, _v.sealed)
    .join(secrets_table, secrets_table.c.id == _v.secret_id)
    .where(_v.sealed.is_not(None))
)
_rewrap = (
    update(secret_versions)
    .where(
        _v.secret_id == bindparam("b_id"),
        _v.version == bindparam("b_version"),
        _v.sealed == bindparam("b_old"),
    )
    .values(sealed=bindparam("b_new"))
)


@dataclass(frozen=True, slots=True)
class RotationResult:
    """`kek` is the number of the new KEK, `rewrapped` how many versions it wraps now."""

    kek: int
    rewrapped: int


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

    def open(self, connection: Connection, sealed: bytes, aad: bytes) -> bytes:
        """The value in `sealed`. Reads the keyring again when another process has rotated the KEK.

        Raises:
            CannotOpen, KeyError: see `Keyring.open`.
        """
        keyring = self.current
        if isinstance(sealed, bytes) and not keyring.knows(sealed):
            keyring = self.reload(connection)
        return keyring.open(sealed, aad)

    def reload(self, connection: Connection) -> Keyring:
        """Read the keyring from the database.

        Raises:
            RootKeyError: the root key is missing, unsafe or belongs to another vault, or the
                keyring was altered.
        """
        self._current = Keyring(self._read(connection, read_root_key(self._root_key_file)))
        return self._current

    def _read(self, connection: Connection, root: RootKey) -> Keys:
        rows = connection.execute(_wrapped).all()
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
        connection.execute(insert(keyring_table), rows)

    def _context(self, kind: str, number: int) -> bytes:
        return encode_context("keyring", self._vault, kind, number)


class KeyRotation:
    """Replaces keys while this and other processes use the vault."""

    def __init__(
        self, engine: Engine, writer: Writer, keys: KeyringStore, clock: Clock, *, root_key_file: Path
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._root_key_file = root_key_file

    def rotate(self, *, actor: str) -> RotationResult:
        """Add a KEK and wrap every version's DEK with it, in small steps between which others can write.

        If it is interrupted, some versions stay wrapped by an older KEK, which
        still opens them; the next rotation rewraps them too.
        """

        def write(connection: Connection) -> WriteResult[int]:
            keyring = self._keys.reload(connection).with_new_kek()
            root, number = read_root_key(self._root_key_file), keyring.newest
            self._keys.write(connection, {(KEK, number): keyring.keys()[KEK, number]}, root, self._now())
            return WriteResult(number, [AuditEvent(actor, Action.KEY_ROTATE, f"KEK {number}")])

        with self._exclusive_lock():
            number = self._writer.run(AuditEvent(actor, Action.KEY_ROTATE, "KEK"), write)
        with self._engine.connect() as connection:
            self._keys.reload(connection)
        return RotationResult(number, self._rewrap_all(actor))

    def _rewrap_all(self, actor: str) -> int:
        """Rewrap in steps, by primary key, so that each transaction is short and no row is done twice."""
        total, after = 0, ("", 0)
        while True:
            count, last = self._rewrap_some(actor, after)
            total += count
            if last is None:
                return total
            after = last

    def _rewrap_some(self, actor: str, after: tuple[str, int]) -> tuple[int, tuple[str, int] | None]:
        query = (
            _sealed_after.where(
                (_v.secret_id > after[0]) | ((_v.secret_id == after[0]) & (_v.version > after[1]))
            )
            .order_by(_v.secret_id, _v.version)
            .limit(REWRAP_BATCH)
        )

        def write(connection: Connection) -> WriteResult[tuple[int, tuple[str, int] | None]]:
            rows = connection.execute(query).all()
            changes = [change for row in rows if (change := self._rewrapped(row))]
            if changes:
                connection.execute(_rewrap, changes)
            last = (rows[-1].secret_id, rows[-1].version) if rows else None
            target, details = f"KEK {self._keys.current.newest}", {"versions": len(changes)}
            events = [AuditEvent(actor, Action.KEY_REWRAP, target, details=details)] if changes else []
            return WriteResult((len(changes), last), events)

        return self._writer.run(AuditEvent(actor, Action.KEY_REWRAP, "KEK"), write)

    def _rewrapped(self, row: Any) -> dict[str, Any] | None:
        keyring = self._keys.current
        if kek_number(row.sealed) == keyring.newest:
            return None
        try:
            new = keyring.rewrap(row.sealed, aad_for(row.team_id, row.secret_id, row.folded, row.version))
        except (CannotOpen, KeyError):
            return None  # damaged: left as it is; reading it raises
        return {"b_id": row.secret_id, "b_version": row.version, "b_old": row.sealed, "b_new": new}

    def rotate_root(self, *, actor: str) -> None:
        """Replace the root key.

        Meanwhile the keyring is stored wrapped by both keys: if the rotation is
        interrupted, the vault opens with whichever key is in the file.
        """
        with self._exclusive_lock():
            self._rotate_root(actor, new_root_key())

    def _exclusive_lock(self) -> AbstractContextManager[None]:
        """One rotation must not drop the keys that another has just added."""
        file = file_of(self._engine)
        return exclusive_lock(file) if file else nullcontext()

    def _rotate_root(self, actor: str, root: RootKey) -> None:
        def wrap(connection: Connection) -> WriteResult[None]:
            keys = self._keys.reload(connection).keys()
            self._keys.write(connection, keys, root, self._now())
            return WriteResult(None, [AuditEvent(actor, Action.KEY_ROTATE_ROOT, f"root key {root.id}")])

        def drop_old(connection: Connection) -> WriteResult[None]:
            if read_root_key(self._root_key_file).id != root.id:
                raise Conflict(f"{self._root_key_file} was replaced during the rotation; no key was dropped")
            connection.execute(delete(keyring_table).where(_k.root_key_id != root.id))
            return WriteResult(None, [])

        self._writer.run(AuditEvent(actor, Action.KEY_ROTATE_ROOT, "root key"), wrap)
        write_root_key(self._root_key_file, root)
        self._writer.run(AuditEvent(actor, Action.KEY_ROTATE_ROOT, "root key"), drop_old)
        truncate_wal(self._engine)

    def _now(self) -> str:
        return timestamp(self._clock())
