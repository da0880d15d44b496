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
        """The details, with the actor's address where it is known, and the rows on which their rights rest.

        A refusal has no such rows.
        """
        actor: Any = self.actor
        address, rights = getattr(actor, "address", None), getattr(actor, "rights", ())
        if not address and not rights:
            return self.details
        details = dict(self.details)
        if address:
            details["from"] = address
        if rights and self.outcome == "ok":
            details["rights"] = rights
        return details


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """An event in the chain. `details` is JSON text; `changes`, too, or None: see `RowChange`.

    All may have any type if the row was altered: SQLite's columns hold any. Unaltered, `hash` and `mac` are
    bytes, the number is an int, and the others are texts.
    """

    seq: Any
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
        """The record as a JSON object. Of one that was altered, what cannot be read is a text."""
        return {
            **self._act(),
            "details": _json(self.details, dict),
            **({"changes": _json(self.changes, list)} if self.changes else {}),
            "hash": _text(self.hash),
            "mac": _text(self.mac),
        }

    def shown(self) -> dict[str, Any]:
        """As `data`, but without what only verifications read, and with an object as details for any record.

        Details that cannot be read are under the key `unreadable`.
        """
        details = _json(self.details, dict)
        if not isinstance(details, dict):
            details = {"unreadable": details}
        for name in ("rights", "session"):
            details.pop(name, None)
        return {
            **self._act(),
            "details": details,
            "hash": _text(self.hash),
            "mac": _text(self.mac),
        }

    def _act(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "at": _text(self.at),
            "actor": _text(self.actor),
            "action": _text(self.action),
            "target": _text(self.target),
            "outcome": _text(self.outcome),
        }

    @classmethod
    def parse(cls, line: bytes) -> AuditRecord:
        """The record in a line with such a JSON object. Raises ValueError."""
        try:
            data = json.loads(line)
            changes = data.pop("changes", None)
            details = data.pop("details")
            hashed, mac = bytes.fromhex(data.pop("hash")), bytes.fromhex(data.pop("mac"))
            if type(data["seq"]) is not int:
                raise ValueError("not a number")
            if not isinstance(details, str):  # else the record was altered, see `data`
                details = details_text(details)
            text = changes if isinstance(changes, str) else compact_json(changes) if changes else None
            return cls(**data, details=details, changes=text, hash=hashed, mac=mac)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("not an audit record") from error

    def hash_after(self, previous: bytes) -> bytes:
        """The hash that this record must have when it follows a record with the hash `previous`."""
        fields = (self.seq, self.at, self.actor, self.action, self.target, self.outcome, self.details)
        return chain_hash(previous, *fields, *((self.changes,) if self.changes else ()))


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _json(text: Any, kind: type) -> Any:
    """The JSON value in `text`, which has that type; `text` itself if gusset cannot have written it."""
    try:
        value = json.loads(text)
        if type(value) is kind and _is_plain(value, _MAX_DEPTH):
            return value
    except (ValueError, TypeError, RecursionError):
        pass
    return _text(text)


def _is_plain(value: Any, depth: int) -> bool:
    """Whether each JSON encoder takes `value`: some fail by deep nesting, large numbers or surrogates."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int):
        return -(2**63) <= value < 2**63
    elif isinstance(value, dict | list):
        values = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(each, depth - 1) for each in values)
    return True


_MAX_DEPTH = 20

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
