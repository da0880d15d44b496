"""Rotation of the vault's keys, while this and other processes use the vault."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from gusset.errors import Conflict, IntegrityError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import Actor
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.envelope import CannotOpen, kek_number
from gusset.vault.crypto.keyring import KEK, KINDS, KeyInfo
from gusset.vault.services.root_key_rotation import RootKeyRotation
from gusset.vault.services.secret_rows import context_of
from gusset.vault.storage.connection import Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.tables import SECRET_VERSIONS, SECRETS

REWRAP_BATCH = 500
_LONGEST_WAIT = 20.0  # seconds for another rotation

_SEALED_AFTER = Select(
    SECRET_VERSIONS,
    "sealed IS NOT NULL",
    also="secret_id > :secret OR (secret_id = :secret AND version > :version)",
    then="ORDER BY secret_id, version LIMIT :limit",
)
_FIND_SECRETS = Select(SECRETS, "id IN (:ids...)")


@dataclass(frozen=True, slots=True)
class RotationResult:
    """The numbers of the newest keys by kind, and how many versions were rewrapped."""

    newest: Mapping[str, int]
    rewrapped: int


class KeyRotation:
    """Replaces keys of the keyring while this and other processes use the vault."""

    def __init__(
        self,
        writer: Writer,
        clock: Clock,
        *,
        keys: KeyringStore,
        root: RootKeyRotation,
        exclusive_lock: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`exclusive_lock` lets only one rotation run at a time, across all processes."""
        self._exclusive_lock = exclusive_lock
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._root = root

    def rotate(self, kinds: Sequence[str] = (KEK,), *, actor: str) -> RotationResult:
        """Add a key of each of `kinds`, to be used from the next audit record on.

        A new KEK then wraps every version's DEK, in small steps between which others can
        write. If that is interrupted, some versions stay wrapped by an older KEK, which
        still opens them; the next rotation rewraps them, too.

        Raises:
            Conflict: the root key is being replaced on several machines, or another rotation took long.
            RootKeyError: the root key cannot be read.
        """
        begun = time.monotonic()
        with self._exclusive_lock():
            if (
                getattr(actor, "rights", ()) and time.monotonic() - begun > _LONGEST_WAIT
            ):  # they may have ended
                raise Conflict(
                    "another rotation of keys was going on until now",
                    hint="see `gusset key status`, and try again if another is needed",
                )
            self._root.finish_interrupted(actor=actor)
            newest = self._add(kinds, actor)
            # That rests on the actor's rights; minutes later these may rest on other rows.
            person = Actor(actor, getattr(actor, "address", None))
            return RotationResult(newest, self._rewrap_all(person) if KEK in kinds else 0)

    def infos(self) -> list[KeyInfo]:
        """The vault's keys by kind and number, without the keys themselves."""
        keyring = self._keys.current
        return [
            KeyInfo(kind, number, key.first, number == keyring.newest(kind))
            for (kind, number), key in keyring.keys().items()
        ]

    def _add(self, kinds: Sequence[str], actor: str) -> Mapping[str, int]:
        def write(transaction: Transaction) -> WriteResult[Mapping[str, int]]:
            self._root.check_single()
            # The record of this rotation is the last one of the old keys.
            keyring = self._keys.current.with_new(kinds, first=transaction.seq + 1)
            root = self._keys.source.read()
            self._keys.write(transaction, keyring, timestamp(self._clock()), root)
            self._keys.use(keyring, root)
            newest = {kind: keyring.newest(kind) for kind in kinds}
            target = ", ".join(f"{KINDS[kind]} {number}" for kind, number in newest.items())
            details = {"keyring": keyring.generation}
            return WriteResult(newest, [AuditEvent(actor, Action.KEY_ROTATE, target, details=details)])

        target = ", ".join(KINDS[kind] for kind in kinds)
        return self._writer.run(AuditEvent(actor, Action.KEY_ROTATE, target), write)

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
            keys = [(row.secret_id, row.version) for row in [*rows, *altered]]
            if any(type(secret) is not str or type(version) is not int for secret, version in keys):
                raise IntegrityError(
                    "the key of a row in secret_versions was altered", hint="`gusset audit verify` says which"
                )
            last = max(keys, default=None)
            target, details = f"KEK {self._keys.current.keks.newest}", {"versions": count}
            events = [AuditEvent(actor, Action.KEY_REWRAP, target, details=details)] if count else []
            return WriteResult((count, last), events)

        return self._writer.run(AuditEvent(actor, Action.KEY_REWRAP, "KEK"), write)

    def _rewrap(self, transaction: Transaction, row: Any, secret: Any | None) -> None:
        keks = self._keys.current.keks
        if secret is None or kek_number(row.sealed) == keks.newest:
            return
        try:
            sealed = keks.rewrap(row.sealed, context_of(secret, row.version, row.write_id))
        except (CannotOpen, KeyError):
            return  # damaged: left as it is; reading it raises
        transaction.update(SECRET_VERSIONS, row, sealed=sealed)
