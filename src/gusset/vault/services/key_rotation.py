"""Rotation of KEKs and of the root key, while this and other processes use the vault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gusset.errors import Conflict
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.envelope import CannotOpen, kek_number
from gusset.vault.crypto.keyring import KEK
from gusset.vault.crypto.root_key import RootKey, new_root_key, read_root_key, write_root_key
from gusset.vault.services.secret_rows import context_of
from gusset.vault.storage.connection import Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import SECRET_VERSIONS, SECRETS

REWRAP_BATCH = 500

_SEALED_AFTER = Select(
    SECRET_VERSIONS,
    "WHERE sealed IS NOT NULL AND (secret_id > :secret OR (secret_id = :secret AND version > :version)) "
    "ORDER BY secret_id, version LIMIT :limit",
)
_FIND_SECRETS = Select(SECRETS, "WHERE id IN (:ids...)")
_DROP_OTHERS = Statement("DELETE FROM keyring WHERE root_key_id <> :root_key_id")


@dataclass(frozen=True, slots=True)
class RotationResult:
    """`kek` is the number of the new KEK, `rewrapped` how many versions it wraps now."""

    kek: int
    rewrapped: int


class KeyRotation:
    """Replaces keys while this and other processes use the vault."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        clock: Clock,
        *,
        keys: KeyringStore,
        root_key_file: Path,
        exclusive_lock: Callable[[], AbstractContextManager[None]],
        forget_overwritten: Callable[[], None],
    ) -> None:
        """For `forget_overwritten` see `SecretWriter`; under the lock one rotation runs at a time."""
        self._store = store
        self._exclusive_lock = exclusive_lock
        self._forget_overwritten = forget_overwritten
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._root_key_file = root_key_file

    def rotate(self, *, actor: str) -> RotationResult:
        """Add a KEK and wrap every version's DEK with it, in small steps between which others can write.

        If it is interrupted, some versions stay wrapped by an older KEK, which
        still opens them; the next rotation rewraps them too.
        """

        def write(transaction: Transaction) -> WriteResult[int]:
            keyring = self._keys.reload(transaction).with_new_kek()
            root, number = read_root_key(self._root_key_file), keyring.newest
            self._keys.write(transaction, {(KEK, number): keyring.keys()[KEK, number]}, root, self._now())
            return WriteResult(number, [AuditEvent(actor, Action.KEY_ROTATE, f"KEK {number}")])

        with self._exclusive_lock():
            number = self._writer.run(AuditEvent(actor, Action.KEY_ROTATE, "KEK"), write)
        with self._store.read() as connection:
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
        wanted = {"secret": after[0], "version": after[1], "limit": REWRAP_BATCH}

        def write(transaction: Transaction) -> WriteResult[tuple[int, tuple[str, int] | None]]:
            rows, altered = transaction.all_valid(_SEALED_AFTER, wanted)  # an altered one stays as it is
            secrets, _ = transaction.all_valid(
                _FIND_SECRETS, {"ids": sorted({row.secret_id for row in rows})}
            )
            by_id = {secret.id: secret for secret in secrets}
            for row in rows:
                self._rewrap(transaction, row, by_id.get(row.secret_id))
            count = len(transaction.changes)
            last = max(((row.secret_id, row.version) for row in [*rows, *altered]), default=None)
            target, details = f"KEK {self._keys.current.newest}", {"versions": count}
            events = [AuditEvent(actor, Action.KEY_REWRAP, target, details=details)] if count else []
            return WriteResult((count, last), events)

        return self._writer.run(AuditEvent(actor, Action.KEY_REWRAP, "KEK"), write)

    def _rewrap(self, transaction: Transaction, row: Any, secret: Any | None) -> None:
        keyring = self._keys.current
        if secret is None or kek_number(row.sealed) == keyring.newest:
            return
        try:
            sealed = keyring.rewrap(row.sealed, context_of(secret, row.version, row.write_id))
        except (CannotOpen, KeyError):
            return  # damaged: left as it is; reading it raises
        transaction.update(SECRET_VERSIONS, row, sealed=sealed)

    def rotate_root(self, *, actor: str) -> None:
        """Replace the root key.

        Meanwhile the keyring is stored wrapped by both keys: if the rotation is
        interrupted, the vault opens with whichever key is in the file.
        """
        with self._exclusive_lock():
            self._rotate_root(actor, new_root_key())

    def _rotate_root(self, actor: str, root: RootKey) -> None:
        def wrap(transaction: Transaction) -> WriteResult[None]:
            keys = self._keys.reload(transaction).keys()
            self._keys.write(transaction, keys, root, self._now())
            return WriteResult(None, [AuditEvent(actor, Action.KEY_ROTATE_ROOT, f"root key {root.id}")])

        def drop_old(transaction: Transaction) -> WriteResult[None]:
            if read_root_key(self._root_key_file).id != root.id:
                raise Conflict(f"{self._root_key_file} was replaced during the rotation; no key was dropped")
            transaction.run(_DROP_OTHERS, {"root_key_id": root.id})
            return WriteResult(None, [])

        self._writer.run(AuditEvent(actor, Action.KEY_ROTATE_ROOT, "root key"), wrap)
        write_root_key(self._root_key_file, root)
        self._writer.run(AuditEvent(actor, Action.KEY_ROTATE_ROOT, "root key"), drop_old)
        self._forget_overwritten()

    def _now(self) -> str:
        return timestamp(self._clock())
