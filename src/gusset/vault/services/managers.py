"""Managers that use this vault: each reports its root key, its witness file and the schema that it supports.

Their times are those of the database: clocks of machines may differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from gusset.vault.audit.actions import Action
from gusset.vault.audit.checkpoints import Checkpoint
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.ids import new_id
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.revision import REVISION
from gusset.vault.storage.schema import ALIVE, check_revision
from gusset.vault.storage.sql import Statement

_FORGOTTEN = timedelta(hours=1)
_REPORT_EVERY = 10.0  # seconds

_LIST = Statement(
    "SELECT id, host, started_at, seen_at, root_key_id, keyring, checkpoint, revision FROM managers "
    "WHERE seen_at >= :since ORDER BY started_at, id"
)
_INSERT = Statement(
    "INSERT INTO managers (id, host, started_at, seen_at, root_key_id, keyring, checkpoint, revision) "
    "VALUES (:id, :host, :at, :at, :root_key_id, :keyring, :checkpoint, :revision)"
)
_UPDATE = Statement(
    "UPDATE managers SET seen_at = :at, root_key_id = :root_key_id, keyring = :keyring, "
    "checkpoint = :checkpoint WHERE id = :id"
)
_FIND = Statement("SELECT id FROM managers WHERE id = :id")
_DELETE = Statement("DELETE FROM managers WHERE id = :id OR seen_at < :since")
_REVISION = Statement("SELECT version_num FROM alembic_version")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerInfo:
    """A manager, as it last reported.

    `checkpoint` is the newest audit record of which its witness file had a checkpoint, 0 without one:
    its loss would be noticed there, also after a restart. `revision` is the schema that it supports.
    """

    id: str
    host: str
    started_at: str
    seen_at: str
    root_key_id: str
    keyring: int
    checkpoint: int
    revision: str


class Managers:
    """Reports of managers. Not signed: they can only hold up a root key rotation or a migration."""

    def __init__(
        self, store: Store, writer: Writer, keys: KeyringStore, witnessed: Callable[[], Checkpoint | None]
    ) -> None:
        """`witnessed` reads the newest checkpoint of the witness file."""
        self._store = store
        self._writer = writer
        self._keys = keys
        self._witnessed = witnessed
        self._id = new_id()
        self._reported: tuple[str, int] | None = None  # root key and keyring
        self._reported_at = 0.0

    def report(self, host: str) -> None:
        """Report that this manager, on `host`, is alive. Call it every few seconds.

        Writes only when there is something new, and every ten seconds.

        Raises:
            RootKeyError, IntegrityError: the root key or the keyring cannot be read again.
            VaultTooNew: a newer gusset has migrated the vault, and this one can no longer use it.
        """
        with self._store.read() as connection:
            check_revision(self._revision(connection), connection)
            self._keys.check(connection)
        now = (self._keys.root_key_id, self._keys.current.generation)
        if now == self._reported and time.monotonic() - self._reported_at < _REPORT_EVERY:
            return

        newest = self._witnessed()

        def write(transaction: Transaction) -> WriteResult[None]:
            row = {
                "id": self._id,
                "host": host,
                "at": timestamp(transaction.dialect.now()),
                "root_key_id": self._keys.root_key_id,
                "keyring": self._keys.current.generation,
                "checkpoint": newest.seq if newest else 0,
                "revision": REVISION,
            }
            known = transaction.one(_FIND, {"id": self._id}) is not None
            transaction.run(_UPDATE if known else _INSERT, row)
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.VAULT_PROBE, "vault"), write)
        self._reported, self._reported_at = now, time.monotonic()

    def _revision(self, connection: Connection) -> str:
        row = connection.one(_REVISION)
        return str(row.version_num) if row else REVISION

    def leave(self) -> None:
        """Remove this manager's report, and those of managers that ended without doing so."""

        def write(transaction: Transaction) -> WriteResult[None]:
            since = timestamp(transaction.dialect.now() - _FORGOTTEN)
            transaction.run(_DELETE, {"id": self._id, "since": since})
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.VAULT_PROBE, "vault"), write)

    def alive(self) -> list[ManagerInfo]:
        """The managers that have reported in the last 30 seconds."""
        with self._store.read() as connection:
            return self.alive_in(connection)

    def alive_in(self, connection: Connection) -> list[ManagerInfo]:
        """`alive`, as `connection` sees them."""
        since = timestamp(connection.dialect.now() - ALIVE)
        return [ManagerInfo(**row._asdict()) for row in connection.all(_LIST, {"since": since})]
