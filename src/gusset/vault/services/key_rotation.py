"""The keyring in the database: made once, read at the start, rotated while others go on.

The root key's file is read when the vault is opened and when keys are rotated,
and at no other time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update

from gusset.errors import Conflict, RootKeyError
from gusset.vault.audit.audit_log import Clock, Entry, timestamp
from gusset.vault.commit.writer import Done, Writer
from gusset.vault.crypto.envelope import CannotOpen, context_of, kek_number, place_of
from gusset.vault.crypto.keyring import AUDIT, KEK, SIGNING, Keyring, Keys
from gusset.vault.crypto.root_key import RootKey, new_root_key, read_root_key, write_root_key
from gusset.vault.storage.database import alone, file_of, forget_old_pages
from gusset.vault.storage.tables import keyring as keyring_table
from gusset.vault.storage.tables import secret_versions, secrets

REWRAP_BATCH = 500

_k, _v = keyring_table.c, secret_versions.c
_wrapped = select(_k.kind, _k.number, _k.root_key_id, _k.wrapped)
_sealed_after = (
    select(secrets.c.team_id, secrets.c.folded, _v.secret_id, _v.version, _v.sealed)
    .join(secrets, secrets.c.id == _v.secret_id)
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
class Rotated:
    """`kek` is the number of the new KEK, `rewrapped` how many versions it took over."""

    kek: int
    rewrapped: int


class KeyringStore:
    """This process's keyring, and how it is read again when another process has added to it."""

    def __init__(self, root_key_file: Path, vault: str) -> None:
        self._root_key_file = root_key_file
        self._vault = vault
        self._current: Keyring | None = None

    @property
    def current(self) -> Keyring:
        if self._current is None:
            raise RuntimeError("the keyring has not been read yet")
        return self._current

    def open(self, connection: Connection, sealed: bytes, place: bytes) -> bytes:
        """The value in `sealed`; the keyring is read again when another process has rotated the KEK.

        Raises:
            CannotOpen, KeyError: see `Keyring.open`.
        """
        keyring = self.current
        if isinstance(sealed, bytes) and not keyring.knows(sealed):
            keyring = self.reload(connection)
        return keyring.open(sealed, place)

    def reload(self, connection: Connection) -> Keyring:
        """Read the keyring from the database.

        Raises:
            RootKeyError: the root key is lost, unsafe, another vault's, or the keyring was altered.
        """
        self._current = Keyring(self._read(connection, read_root_key(self._root_key_file)))
        return self._current

    def _read(self, connection: Connection, root: RootKey) -> Keys:
        rows = connection.execute(_wrapped).all()
        mine = [row for row in rows if row.root_key_id == root.id]
        if not mine:
            raise RootKeyError(
                f"{self._root_key_file} is not the root key of this vault",
                hint="put this vault's own root key there, or name its place in GUSSET_ROOT_KEY_FILE",
            )
        kinds = {row.kind for row in mine}
        if lost := sorted({KEK, AUDIT, SIGNING} - kinds):
            raise RootKeyError(
                f"the keyring was altered: it has no {' and no '.join(lost)} key",
                hint="put a backup of the database back",
            )
        return {
            (row.kind, row.number): root.unwrap(row.wrapped, self._context(row.kind, row.number))
            for row in mine
        }

    def write(self, connection: Connection, keys: Keys, root: RootKey, at: str) -> None:
        """Store `keys` wrapped by `root`, beside what is there."""
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
        return context_of("keyring", self._vault, kind, number)


class KeyRotation:
    """New keys in place of old ones, while this and other processes go on working."""

    def __init__(
        self, engine: Engine, writer: Writer, keys: KeyringStore, clock: Clock, *, root_key_file: Path
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._root_key_file = root_key_file

    def rotate(self, *, actor: str) -> Rotated:
        """Add a KEK and wrap every version's DEK with it, in small steps that others can write between.

        Interrupted, it leaves some versions wrapped by an older KEK, which
        still opens them; the next rotation takes them along.
        """

        def act(connection: Connection) -> Done[int]:
            keyring = self._keys.reload(connection).with_new_kek()
            root, number = read_root_key(self._root_key_file), keyring.newest
            self._keys.write(connection, {(KEK, number): keyring.keys()[KEK, number]}, root, self._now())
            return Done(number, [Entry(actor, "key.rotate", f"KEK {number}")])

        with self._alone():
            number = self._writer.run(Entry(actor, "key.rotate", "KEK"), act)
        with self._engine.connect() as connection:
            self._keys.reload(connection)
        return Rotated(number, self._rewrap_all(actor))

    def _rewrap_all(self, actor: str) -> int:
        """Rewrap step by step, by primary key, so that each step is short and none is done twice."""
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

        def act(connection: Connection) -> Done[tuple[int, tuple[str, int] | None]]:
            rows = connection.execute(query).all()
            changes = [change for row in rows if (change := self._rewrapped(row))]
            if changes:
                connection.execute(_rewrap, changes)
            last = (rows[-1].secret_id, rows[-1].version) if rows else None
            entries = [
                Entry(
                    actor,
                    "key.rewrap",
                    f"KEK {self._keys.current.newest}",
                    details={"versions": len(changes)},
                )
            ]
            return Done((len(changes), last), entries if changes else [])

        return self._writer.run(Entry(actor, "key.rewrap", "KEK"), act)

    def _rewrapped(self, row: Any) -> dict[str, Any] | None:
        keyring = self._keys.current
        if kek_number(row.sealed) == keyring.newest:
            return None
        try:
            new = keyring.rewrap(row.sealed, place_of(row.team_id, row.secret_id, row.folded, row.version))
        except (CannotOpen, KeyError):
            return None  # damaged: it stays as it is, and whoever reads it is told
        return {"b_id": row.secret_id, "b_version": row.version, "b_old": row.sealed, "b_new": new}

    def rotate_root(self, *, actor: str) -> None:
        """Put a new root key in place of the old one.

        In between, the keyring is wrapped by both, so that an interruption
        leaves a vault that opens with whichever key is in the file.
        """
        with self._alone():
            self._rotate_root(actor, new_root_key())

    def _alone(self) -> AbstractContextManager[None]:
        """Keys that one rotation has just wrapped must not be dropped by another that does not know them."""
        file = file_of(self._engine)
        return alone(file) if file else nullcontext()

    def _rotate_root(self, actor: str, root: RootKey) -> None:
        def wrap(connection: Connection) -> Done[None]:
            keys = self._keys.reload(connection).keys()
            self._keys.write(connection, keys, root, self._now())
            return Done(None, [Entry(actor, "key.rotate_root", f"root key {root.id}")])

        def forget(connection: Connection) -> Done[None]:
            if read_root_key(self._root_key_file).id != root.id:
                raise Conflict(f"somebody else has replaced {self._root_key_file}; no key was dropped")
            connection.execute(delete(keyring_table).where(_k.root_key_id != root.id))
            return Done(None, [])

        self._writer.run(Entry(actor, "key.rotate_root", "root key"), wrap)
        write_root_key(self._root_key_file, root)
        self._writer.run(Entry(actor, "key.rotate_root", "root key"), forget)
        forget_old_pages(self._engine)

    def _now(self) -> str:
        return timestamp(self._clock())
