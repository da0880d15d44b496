"""Follows the records of a log from its start, and verifies each."""

from __future__ import annotations

from typing import Any

from gusset.vault.audit.chain import Head
from gusset.vault.audit.events import RECORD_COLUMNS, AuditRecord, genesis_hash
from gusset.vault.audit.log_state import LogState
from gusset.vault.crypto.keyring import Keyring
from gusset.vault.storage.sql import Statement

RECORD = f"SELECT {', '.join(RECORD_COLUMNS)} FROM audit"
ALL_RECORDS = Statement(f"{RECORD} ORDER BY seq")


class ChainWalk:
    """How far the log was followed, and the state of all rows after that."""

    def __init__(self, vault: str) -> None:
        self.head = Head(0, genesis_hash(vault))
        self.state = LogState()

    def follow(self, record: AuditRecord, keyring: Keyring | None) -> str | None:
        """Verify the next record, and take it in. Returns what is wrong with it.

        Without a keyring, its HMAC is not verified. A record that can have no place in the log is not taken
        in.
        """
        # Whoever makes the table anew can leave out its key, and with SQLite the types of its columns.
        if type(record.seq) is not int:
            return "a record in the log has no number: it was added"
        if record.seq < 1:
            return f"record {record.seq} was added: the first one has the number 1"
        if record.seq <= self.head.seq:
            return f"record {record.seq} is in the log more than once"
        problem = None
        if record.seq != self.head.seq + 1:
            problem = f"records {self.head.seq + 1} to {record.seq - 1} are missing"
        elif not self._follows(record):
            problem = f"record {record.seq} was altered or moved"
        elif keyring is not None and not self.is_signed(record, keyring):
            problem = f"record {record.seq} was not written with this vault's keyring"
        self.state.follow(record)
        self.head = Head(record.seq, record.hash)
        return problem

    def is_signed(self, record: AuditRecord, keyring: Keyring) -> bool:
        """Whether a holder of the audit key wrote the record, if its hash is right."""
        if type(record.hash) is not bytes or type(record.seq) is not int:
            return False
        try:
            return bool(keyring.audit_mac(record.hash, record.seq) == record.mac)
        except KeyError:  # no key is for a record with that number
            return False

    def _follows(self, record: AuditRecord) -> bool:
        try:
            return bool(record.hash_after(self.head.hash) == record.hash)
        except TypeError:  # SQLite's columns hold any type
            return False


def record_of(row: Any) -> AuditRecord:
    """The record in a row of `RECORD`."""
    return AuditRecord(**row._asdict())
