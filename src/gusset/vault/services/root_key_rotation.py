"""Replacement of the root key, so that a stop at any moment leaves a vault that opens.

The new root key is first written beside the old one, then the keyring is wrapped by both,
then the new one takes the old one's place, and last the old one is dropped. What the keyring's
manifest says of root keys shows how far a replacement got, and the next one finishes it.

Several machines, each with a copy of the root key, need time between the second step and the
last. So do sources that gusset cannot write to. Then a person copies the new root key, and
`finish` drops the old one when every manager uses the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from gusset.errors import Conflict, GussetError, UsageError
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.root_key import RootKey, new_root_key
from gusset.vault.crypto.root_key_sources import replaceable, write_pending
from gusset.vault.services.managers import ManagerInfo, Managers
from gusset.vault.storage.connection import Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RootKeyResult:
    """What a step of a replacement did. `pending_file` has the new root key, if a person must copy it now."""

    root_key_id: str
    pending_file: Path | None = None
    was_interrupted: bool = False  # an earlier replacement was finished, and no new one was begun


class RootKeyRotation:
    """Replaces the root key."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        clock: Clock,
        *,
        keys: KeyringStore,
        managers: Managers,
        is_shared: bool,
        exclusive_lock: Callable[[], AbstractContextManager[None]],
        erase_overwritten: Callable[[], None],
    ) -> None:
        """`is_shared`: other machines may use the database, too. See `SecretWriter` for the last one."""
        self._store = store
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._managers = managers
        self._file = None if is_shared else replaceable(keys.source)
        self._exclusive_lock = exclusive_lock
        self._erase_overwritten = erase_overwritten

    @property
    def unfinished(self) -> str | None:
        """What a replacement left undone, as a sentence; None when there is one root key."""
        *old, newest = self._keys.current.root_keys
        if not old:
            return None
        return (
            f"a replacement of the root key is not finished: {' and '.join(old)} still opens the vault, "
            f"beside {newest}; finish it with `{self._finishing}`"
        )

    @property
    def _finishing(self) -> str:
        return "gusset key rotate --root" + ("" if self._file else " --finish")

    def rotate(self, *, actor: str) -> RootKeyResult:
        """Replace the root key, or finish a replacement that was interrupted.

        With a source that gusset cannot replace, and with a database that other machines may
        use, the new root key is only added: copy the pending file, then call `finish`.

        Raises:
            Conflict: a new root key was added already.
            HostError: the new root key cannot be written; the old one stays.
        """
        with self._exclusive_lock():
            if self.finish_interrupted(actor=actor):
                return RootKeyResult(root_key_id=self._keys.root_key_id, was_interrupted=True)
            root = new_root_key()
            try:
                pending = write_pending(self._keys.source, root)
            except GussetError as error:
                self._record(AuditEvent(actor, Action.KEY_ROTATE_ROOT, "root key", outcome=error.code))
                raise
            self._add(root, actor)
            if self._file is None:
                return RootKeyResult(root_key_id=root.id, pending_file=pending)
            self._file.install_pending()
            self._drop_others(root.id, actor)
            return RootKeyResult(root_key_id=root.id)

    def finish(self, *, actor: str) -> RootKeyResult:
        """Drop the old root key, after the new one was copied to wherever it is read.

        Raises:
            Conflict: there is nothing to finish; or this machine, or a manager that is alive, has the
                old root key.
        """
        with self._exclusive_lock():
            newest = self._replaced(actor)[-1]
            self._install_if_pending(newest)
            source = self._keys.source
            if source.read_again().id != newest:
                raise self._conflict(
                    actor,
                    f"{source.name} is still the old root key",
                    f"put {source.pending_file} there; `gusset key rotate --root --cancel` if it is lost",
                )
            self._drop_others_if_unused(newest, actor)
            return RootKeyResult(root_key_id=newest)

    def cancel(self, *, actor: str) -> RootKeyResult:
        """Drop the new root key instead, such as one that was lost before it was copied.

        Raises:
            Conflict: there is nothing to cancel; or this machine, or a manager that is alive, has the
                new root key.
        """
        with self._exclusive_lock():
            newest = self._replaced(actor)[-1]
            kept = self._keys.source.read_again().id
            if kept == newest:
                raise self._conflict(
                    actor,
                    f"{self.source_name} is the new root key",
                    "put the old one back, or finish: `gusset key rotate --root --finish`",
                )
            self._drop_others_if_unused(kept, actor)
            return RootKeyResult(root_key_id=kept)

    def _replaced(self, actor: str) -> Sequence[str]:
        """The ids of both root keys, the newest last. Raises Conflict if there is only one."""
        if len(found := self._root_keys()) < 2:
            hint = "`gusset key rotate --root` begins one"
            raise self._conflict(actor, "no replacement of the root key is under way", hint)
        return found

    def _drop_others_if_unused(self, kept: str, actor: str) -> None:
        if others := [each for each in self._managers.alive() if each.root_key_id != kept]:
            raise self._conflict(
                actor,
                f"managers that use another root key: {', '.join(map(_described, others))}",
                "copy the right root key to their machines; they notice it within seconds",
            )
        self._drop_others(kept, actor)

    def _conflict(self, actor: str, message: str, hint: str) -> Conflict:
        """An error to raise, which is recorded."""
        error = Conflict(message, hint=hint)
        self._record(AuditEvent(actor, Action.KEY_ROTATE_ROOT, "root key", outcome=error.code))
        return error

    def _root_keys(self) -> Sequence[str]:
        """The ids of the root keys that open the vault, the newest last, as the database has them now."""
        with self._store.read() as connection:
            self._keys.reload_if_newer(connection)
        return self._keys.current.root_keys

    @property
    def source_name(self) -> str:
        """Where the root key comes from."""
        return self._keys.source.name

    def protect(self, passphrase: SecretValue | None) -> None:
        """Protect the root key's file by `passphrase`; by its mode alone when that is None.

        Raises:
            UsageError: the root key is not in a file that gusset can write.
            Conflict: the root key is being replaced.
            HostError: the file cannot be written.
        """
        with self._exclusive_lock():
            source = replaceable(self._keys.source)
            if source is None:
                raise UsageError(f"{self._keys.source.name} is not a file that gusset can write")
            self._root_keys()
            self.check_single()
            source.rewrite(source.read(), passphrase)

    def check_single(self) -> None:
        """Check, before the keyring is wrapped by one root key, that nobody has begun to replace that key.

        The exclusive lock does not prove this: its session may have ended, for example when the database
        was restarted. What is stored, as this transaction sees it, does.

        Raises:
            Conflict: the keyring is wrapped by two root keys.
        """
        if len(self._keys.current.root_keys) > 1:
            raise Conflict("the root key is being replaced", hint=f"finish that first: `{self._finishing}`")

    def _install_if_pending(self, newest: str) -> None:
        """Put the pending root key of this machine in place, if it is the newest one."""
        file = replaceable(self._keys.source)
        if file is not None and file.read().id != newest:
            pending = file.read_pending()
            if pending is not None and pending.id == newest:
                file.install_pending()

    def finish_interrupted(self, *, actor: str) -> bool:
        """Finish a replacement that was interrupted. Requires the exclusive lock.

        Returns whether there was one, and the new root key is in use now. If that was lost before it was
        in place, it is dropped, and the old root key stays.

        Raises:
            Conflict: it is for a person to finish.
        """
        *old, newest = self._root_keys()
        if not old:
            return False
        if self._file is None:
            raise self._conflict(
                actor,
                "the root key is being replaced, and the old one still opens the vault",
                "finish it: `gusset key rotate --root --finish`",
            )
        self._install_if_pending(newest)
        kept = self._file.read().id
        self._drop_others(kept, actor)
        return kept == newest

    def _add(self, root: RootKey, actor: str) -> None:
        """Wrap the keyring by `root`, too."""

        def write(transaction: Transaction) -> WriteResult[None]:
            self.check_single()
            old = self._keys.source.read()
            keyring = self._keys.current.with_root_keys([old.id, root.id])
            self._keys.write(transaction, keyring, self._now(), old, root)
            self._keys.use(keyring, old)
            details = {"keyring": keyring.generation}
            event = AuditEvent(actor, Action.KEY_ADD_ROOT, f"root key {root.id}", details=details)
            return WriteResult(None, [event])

        self._writer.run(AuditEvent(actor, Action.KEY_ADD_ROOT, "root key"), write)

    def _drop_others(self, root_key_id: str, actor: str) -> None:
        """Drop all root keys but the one with that id, which must be in place."""

        def write(transaction: Transaction) -> WriteResult[None]:
            root, source = self._keys.source.read_again(), self._keys.source
            if root.id != root_key_id:
                raise Conflict(f"{source.name} was replaced during the rotation; no root key was dropped")
            dropped = sorted({*self._keys.current.root_keys} - {root.id})
            keyring = self._keys.current.with_root_keys([root.id])
            self._keys.drop_others(transaction, root)
            self._keys.write(transaction, keyring, self._now(), root)
            self._keys.use(keyring, root)
            details = {"keyring": keyring.generation, "dropped": dropped}
            event = AuditEvent(actor, Action.KEY_ROTATE_ROOT, f"root key {root.id}", details=details)
            return WriteResult(None, [event])

        self._writer.run(AuditEvent(actor, Action.KEY_ROTATE_ROOT, "root key"), write)
        self._erase_overwritten()

    def _record(self, event: AuditEvent) -> None:
        self._writer.run(event, lambda _: WriteResult(None, [event]))

    def _now(self) -> str:
        return timestamp(self._clock())


def _described(manager: ManagerInfo) -> str:
    return f"{manager.host} (since {manager.started_at})"
