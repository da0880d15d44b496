"""The chain: how the audit log grows.

Each record's hash covers the hash before it; its HMAC proves that a holder of
the keyring wrote it. A signed checkpoint names the newest record, at most once
per `CHECKPOINT_INTERVAL`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from gusset.vault.audit.checkpoints import Checkpoint
from gusset.vault.audit.events import AuditEvent, chain_hash, genesis_hash
from gusset.vault.clock import Clock, timestamp
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.compiled_sql import CompiledStatement
from gusset.vault.storage.tables import audit_table, checkpoints_table

CHECKPOINT_INTERVAL = 1.0  # seconds, while there are writes

_last = select(func.max(audit_table.c.seq)).scalar_subquery()
_find_head = CompiledStatement(
    select(audit_table.c.seq, audit_table.c.hash).where(audit_table.c.seq == _last)
)
_add_record = CompiledStatement(insert(audit_table), audit_table.c.keys())
_add_checkpoint = insert(checkpoints_table)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain: the newest record's number and hash."""

    seq: int
    hash: bytes


class Chain:
    """Extends the chain, for the writer: within its transaction, once per batch."""

    def __init__(self, vault: str, keyring: Callable[[], Keyring], clock: Clock) -> None:
        self._vault = vault
        self._keyring = keyring
        self._clock = clock
        self._genesis = genesis_hash(vault)
        self._signed_at: datetime | None = None

    def head(self, connection: Connection) -> Head:
        """The newest record's number and hash; number 0 for an empty log."""
        row = _find_head.one(connection, {})
        return Head(row.seq, row.hash) if row else Head(0, self._genesis)

    def extend(self, connection: Connection, events: Sequence[AuditEvent]) -> Checkpoint | None:
        """Append `events`. Returns the checkpoint if one was due; it is stored already."""
        head, keyring, now = self.head(connection), self._keyring(), self._clock()
        at, rows = timestamp(now), []
        for event in events:
            details = json.dumps(event.stored_details(), sort_keys=True)
            actor, action = str(event.actor), str(event.action)
            fields = (head.seq + 1, at, actor, action, event.target, event.outcome, details)
            head = Head(head.seq + 1, chain_hash(head.hash, *fields))
            mac = keyring.mac(head.hash)
            rows.append(dict(zip(audit_table.c.keys(), (*fields, head.hash, mac), strict=True)))
        _add_record.run_many(connection, rows)
        return self._checkpoint(connection, head, now) if self._checkpoint_due(now) else None

    def _checkpoint_due(self, now: datetime) -> bool:
        return self._signed_at is None or (now - self._signed_at).total_seconds() >= CHECKPOINT_INTERVAL

    def _checkpoint(self, connection: Connection, head: Head, now: datetime) -> Checkpoint:
        unsigned = Checkpoint(vault=self._vault, seq=head.seq, at=timestamp(now), hash=head.hash)
        checkpoint = replace(unsigned, signature=self._keyring().sign(unsigned.signed_bytes()))
        values = {
            "seq": checkpoint.seq,
            "at": checkpoint.at,
            "hash": checkpoint.hash,
            "signature": checkpoint.signature,
        }
        connection.execute(_add_checkpoint, values)
        self._signed_at = now
        return checkpoint

    def final_checkpoint(self, connection: Connection) -> Checkpoint | None:
        """On close: a checkpoint of the newest record, unless it has one."""
        head = self.head(connection)
        known = select(checkpoints_table.c.seq).where(checkpoints_table.c.seq == head.seq)
        if head.seq == 0 or connection.execute(known).one_or_none():
            return None
        return self._checkpoint(connection, head, self._clock())
