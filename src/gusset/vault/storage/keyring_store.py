"""The keyring in the database, wrapped by the root key.

A row of the kind `manifest` lists every key of the keyring with its range, and the root keys
that open it; its number is the keyring's generation. It is wrapped, too. So a key that was
removed or added behind gusset's back is noticed, and nobody can widen the range of a key.

Each write transaction compares the generation first: nothing is sealed or signed with a
keyring that another process has replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from gusset.errors import IntegrityError, RootKeyError
from gusset.vault.crypto.envelope import encode_context
from gusset.vault.crypto.keyring import AUDIT, KEK, KINDS, SIGNING, Keyring, VaultKey, VaultKeys
from gusset.vault.crypto.root_key import RootKey
from gusset.vault.crypto.root_key_sources import RootKeySource
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.sql import Statement

MANIFEST = "manifest"

Read = Callable[[], AbstractContextManager[Connection]]

_LIST = Statement("SELECT kind, number, root_key_id, wrapped FROM keyring")
_INSERT = Statement(
    "INSERT INTO keyring (kind, number, root_key_id, wrapped, created_at) "
    "VALUES (:kind, :number, :root_key_id, :wrapped, :created_at)"
)
_DELETE_MANIFESTS = Statement(f"DELETE FROM keyring WHERE kind = '{MANIFEST}'")
_DROP_OTHERS = Statement("DELETE FROM keyring WHERE root_key_id <> :root_key_id")
_FIND_GENERATION = Statement(f"SELECT max(number) AS generation FROM keyring WHERE kind = '{MANIFEST}'")
_FIND_CHECKPOINT = Statement("SELECT keyring FROM checkpoints WHERE seq = (SELECT max(seq) FROM checkpoints)")


class KeyringStore:
    """Caches the keyring, and loads it again when another process has changed it."""

    def __init__(self, source: RootKeySource, vault: str) -> None:
        self.source = source
        self.root_key_id = ""  # of the root key that has opened the keyring
        self._vault = vault
        self._current: Keyring | None = None
        self._may_be_rolled_back = False  # the current one: its transaction may fail
        self._committed = 0  # the newest generation that was opened, and certainly in the database

    @property
    def current(self) -> Keyring:
        """The keyring as it was last read."""
        if self._current is None:
            raise RuntimeError("the keyring has not been read yet")
        return self._current

    def open(self, connection: Connection, sealed: Any, context: bytes) -> bytes:
        """The value in `sealed`. Reads the keyring again when another process has rotated the KEK.

        Raises:
            CannotOpen, KeyError: see `Keks.open`.
        """
        keyring = self.current
        if isinstance(sealed, bytes) and not keyring.keks.knows(sealed):
            keyring = self.reload(connection)
        return keyring.keks.open(sealed, context)

    def reload(self, connection: Connection) -> Keyring:
        """The keyring in the database; it is cached unless it is older than the cached one.

        Raises:
            RootKeyError: the root key is missing, unsafe or belongs to another vault, or the
                keyring was altered.
            IntegrityError: the keyring was altered.
        """
        keyring, root = self._read(connection)
        if self._current is None or keyring.generation >= self._current.generation:
            self._current, self.root_key_id = keyring, root.id
        return keyring

    def reload_if_newer(self, connection: Connection) -> bool:
        """Read the keyring again if its generation is newer. Raises the same errors as `reload`."""
        if self._stored_generation(connection) <= self.current.generation:
            return False
        self.reload(connection)
        return True

    def find_derived(self, purpose: str, fits: Callable[[bytes], bool], read: Read) -> int | None:
        """Which of the keys derived for a purpose fits: 0 is the newest one. None if none does.

        Before that the keyring is read again, with a connection from `read`, if it is newer: another
        process may have replaced the key. Raises the same errors as `reload`.
        """

        def find() -> int | None:
            keys = self.current.derive_all(purpose)
            return next((number for number, key in enumerate(keys) if fits(key)), None)

        found = find()
        if found is None:
            with read() as connection:
                is_newer = self.reload_if_newer(connection)
            if is_newer:
                found = find()
        return found

    def check(self, connection: Connection) -> None:
        """Read the keyring again if it, or the root key, has changed. Not for a snapshot.

        Raises:
            RootKeyError, IntegrityError: see `reload`; the keyring was rolled back to an older one.
        """
        generation = self._stored_generation(connection)
        self._check_not_older(generation)
        is_replaced = len(self.current.root_keys) > 1  # else what a command printed is still right
        root = self.source.read_again() if is_replaced else self.source.read()
        if root.id != self.root_key_id or not self._is_current(generation):
            generation = self.reload(connection).generation
            self._check_not_older(generation)
        self._committed = generation

    def refresh(self, connection: Connection, generation: int) -> None:
        """Use the keyring of that generation, the one in the database, in a write transaction that begins.

        Raises:
            RootKeyError, IntegrityError: see `reload`; the keyring was rolled back to an older one.
        """
        self._check_not_older(generation)
        if not self._is_current(generation):
            keyring, root = self._read(connection)
            self._check_not_older(keyring.generation)
            self._current, self.root_key_id = keyring, root.id
            self._may_be_rolled_back = False
        self._committed = self.current.generation

    def _is_current(self, generation: int) -> bool:
        return generation == self.current.generation and not self._may_be_rolled_back

    def _check_not_older(self, generation: int) -> None:
        if generation < self._committed:
            raise keyring_rolled_back(generation, self._committed)

    def use(self, keyring: Keyring, root: RootKey) -> None:
        """Use a keyring that was just written, for the rest of its transaction and afterwards.

        The next transaction's `refresh` reads what is in the database: this one may be rolled back.
        """
        self._current, self.root_key_id, self._may_be_rolled_back = keyring, root.id, True

    def load(self, connection: Connection) -> None:
        """Read the keyring of a vault that is being opened.

        Raises:
            RootKeyError, IntegrityError: see `reload`; or the newest checkpoint in the database has a
                newer generation.
        """
        self.reload(connection)
        row = connection.one(_FIND_CHECKPOINT)
        if row is not None and type(row.keyring) is int and row.keyring > self.current.generation:
            raise keyring_rolled_back(self.current.generation, row.keyring)

    def _read(self, connection: Connection) -> tuple[Keyring, RootKey]:
        rows = connection.all(_LIST)
        root = self.source.read()
        if all(row.root_key_id != root.id for row in rows):
            root = self.source.read_again()
        wrapped = self._wrapped_by(rows, root)
        manifests = [number for kind, number in wrapped if kind == MANIFEST]
        if not manifests:
            raise IntegrityError(
                "the keyring was altered: it has no manifest for this root key", hint=_RESTORE_HINT
            )
        generation = max(manifests)
        # Whoever counts by the newest number, of whichever root key, must come to this one.
        if any(row.number != generation for row in rows if row.kind == MANIFEST):
            raise IntegrityError(
                "the keyring was altered: it has manifests of several generations", hint=_RESTORE_HINT
            )
        text = root.unwrap(wrapped[MANIFEST, generation], self._context(MANIFEST, generation))
        manifest: dict[str, Any] = json.loads(text)
        firsts = {(kind, number): first for kind, number, first in manifest["keys"]}
        found = {key: data for key, data in wrapped.items() if key[0] != MANIFEST}
        _compare(found.keys(), firsts.keys())
        keys = {
            key: VaultKey(root.unwrap(data, self._context(*key)), firsts[key]) for key, data in found.items()
        }
        return Keyring(keys, generation=generation, root_keys=manifest["root_keys"]), root

    def _wrapped_by(self, rows: Sequence[Any], root: RootKey) -> dict[tuple[str, int], bytes]:
        """The wrapped keys and manifests of a root key, by kind and number."""
        mine = {(row.kind, row.number): row.wrapped for row in rows if row.root_key_id == root.id}
        if any(type(kind) is not str or type(number) is not int for kind, number in mine):
            raise _other_type()
        if not mine:
            raise RootKeyError(
                f"{self.source.name} is not the root key of this vault", hint=self.source.wrong_key_hint
            )
        return mine

    def read_without_manifest(self, connection: Connection) -> Keyring:
        """The keyring that an older version of gusset wrote: generation 0, its keys are for all records."""
        rows, root = connection.all(_LIST), self.source.read()
        wrapped = self._wrapped_by(rows, root)
        if lost := sorted({KEK, AUDIT, SIGNING} - {kind for kind, _ in wrapped}):
            names = " and no ".join(KINDS[kind] for kind in lost)
            raise IntegrityError(f"the keyring was altered: it has no {names}", hint=_RESTORE_HINT)
        keys: VaultKeys = {
            key: VaultKey(root.unwrap(data, self._context(*key))) for key, data in wrapped.items()
        }
        others = sorted({row.root_key_id for row in rows} - {root.id})
        return Keyring(keys, generation=0, root_keys=[*others, root.id])

    def has_manifest(self, connection: Connection) -> bool:
        """Whether the keyring has a manifest, for any root key."""
        return self._stored_generation(connection) > 0

    def _stored_generation(self, connection: Connection) -> int:
        """The generation of the keyring in the database; 0 without a manifest. Raises IntegrityError."""
        row = connection.one(_FIND_GENERATION)
        if row is None or row.generation is None:
            return 0
        if type(row.generation) is not int:
            raise _other_type()
        generation: int = row.generation
        return generation

    def write(self, connection: Connection, keyring: Keyring, at: str, *roots: RootKey) -> None:
        """Store `keyring`, wrapped by each of `roots`: the keys that are missing, and a new manifest."""
        stored = {(row.root_key_id, row.kind, row.number) for row in connection.all(_LIST)}
        keys = keyring.keys()
        listed = [[kind, number, key.first] for (kind, number), key in sorted(keys.items())]
        manifest = json.dumps({"keys": listed, "root_keys": keyring.root_keys}).encode()
        connection.run(_DELETE_MANIFESTS)
        for root in roots:
            missing = {
                key: each.secret for key, each in keys.items() if (root.id, key[0], key[1]) not in stored
            }
            missing[MANIFEST, keyring.generation] = manifest
            connection.run_many(_INSERT, [self._row(root, key, data, at) for key, data in missing.items()])

    def drop_others(self, connection: Connection, root: RootKey) -> None:
        """Remove everything that other root keys wrap."""
        connection.run(_DROP_OTHERS, {"root_key_id": root.id})

    def _row(self, root: RootKey, key: tuple[str, int], data: bytes, at: str) -> dict[str, Any]:
        return {
            "kind": key[0],
            "number": key[1],
            "root_key_id": root.id,
            "wrapped": root.wrap(data, self._context(*key)),
            "created_at": at,
        }

    def _context(self, kind: str, number: int) -> bytes:
        return encode_context("keyring", self._vault, kind, number)


_RESTORE_HINT = "restore the database from a backup"


def _other_type() -> IntegrityError:
    return IntegrityError("the keyring was altered: a column holds another type", hint=_RESTORE_HINT)


def _compare(found: Any, listed: Any) -> None:
    """Raises IntegrityError unless the keyring has just the keys that its manifest lists."""
    for keys, problem in (
        (listed - found, "lacks"),
        (found - listed, "has, but its manifest does not list,"),
    ):
        if keys:
            names = ", ".join(f"{KINDS.get(kind, 'key')} {number}" for kind, number in sorted(keys))
            raise IntegrityError(f"the keyring was altered: it {problem} {names}", hint=_RESTORE_HINT)


def keyring_rolled_back(found: int, known: int) -> IntegrityError:
    """The error about a keyring of an older generation than is known."""
    return IntegrityError(
        f"the keyring was rolled back to an older state: generation {found} instead of {known}",
        hint="find out who can write to the database; restore the whole database, not the keyring alone",
    )
