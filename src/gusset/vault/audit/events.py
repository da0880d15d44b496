"""`AuditEvent`, which is to be recorded, and `AuditRecord`, which is recorded as part of the chain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from json.encoder import encode_basestring_ascii as json_string
from typing import TYPE_CHECKING, Any

from gusset.vault.audit.actions import Action

if TYPE_CHECKING:
    from gusset.secrets.info import SecretInfo

# As `json.dumps` would write them; that makes a new encoder for each call with such options. Details have no
# cycles, and it takes a fifth of the time to look for them.
details_text = json.JSONEncoder(sort_keys=True, check_circular=False).encode
compact_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(slots=True)  # not frozen: that would take nearly three times as long, and each write makes two
class AuditEvent:
    """One act or refusal, to be recorded. `outcome` is "ok" or the code of the error."""

    actor: str
    action: Action
    target: str
    _: KW_ONLY
    outcome: str = "ok"
    details: Mapping[str, Any] = field(default_factory=dict)

    def stored_details(self) -> Mapping[str, Any]:
        """The details, with the actor's address where it is known."""
        address = getattr(self.actor, "address", None)
        return {**self.details, "from": address} if address else self.details


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """An event in the chain. `details` is JSON text; `changes`, too, or None: see `RowChange`.

    All but the number may have any type if the row was altered: SQLite's columns hold any. Unaltered, `hash`
    and `mac` are bytes, and the others texts.
    """

    seq: int
    at: Any
    actor: Any
    action: Any
    target: Any
    outcome: Any
    details: Any
    changes: Any
    hash: Any
    mac: Any

    def data(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return {
            "seq": self.seq,
            "at": self.at,
            "actor": self.actor,
            "action": self.action,
            "target": self.target,
            "outcome": self.outcome,
            "details": json.loads(self.details),
            **({"changes": json.loads(self.changes)} if self.changes else {}),
            "hash": self.hash.hex(),
            "mac": self.mac.hex(),
        }

    @classmethod
    def parse(cls, line: bytes) -> AuditRecord:
        """The record in a line with such a JSON object. Raises ValueError."""
        try:
            data = json.loads(line)
            changes = data.pop("changes", None)
            details = details_text(data.pop("details"))
            hashed, mac = bytes.fromhex(data.pop("hash")), bytes.fromhex(data.pop("mac"))
            if type(data["seq"]) is not int:
                raise ValueError("not a number")
            text = compact_json(changes) if changes else None
            return cls(**data, details=details, changes=text, hash=hashed, mac=mac)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not an audit record") from error

    def hash_after(self, previous: bytes) -> bytes:
        """The hash that this record must have when it follows a record with the hash `previous`."""
        fields = (self.seq, self.at, self.actor, self.action, self.target, self.outcome, self.details)
        return chain_hash(previous, *fields, *((self.changes,) if self.changes else ()))


RECORD_COLUMNS = tuple(each.name for each in fields(AuditRecord))  # of the table `audit`, too


def chain_hash(previous: bytes, *fields: str | int) -> bytes:
    """SHA-256 over the previous hash and the fields as compact JSON. Raises TypeError for other types."""
    texts = [str(each) if isinstance(each, int) else json_string(each) for each in fields]
    return hashlib.sha256(previous + f"[{','.join(texts)}]".encode()).digest()


def genesis_hash(vault: str) -> bytes:
    """The hash that the first record of the vault with this id follows."""
    return chain_hash(b"", "gusset audit 1", vault)


def state_details(info: SecretInfo) -> dict[str, Any]:
    """The details of a change's audit event: the state of the secret after it."""
    return {
        "id": info.id,
        "team": info.team_id,
        "version": info.version,
        "deleted": info.deleted_at is not None,
    }
