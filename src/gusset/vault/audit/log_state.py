"""What the audit log says that all rows must be, and where it contradicts itself.

Each record has the HMACs of the signed rows that it wrote, and the keys of those that
it removed. It also has the HMACs of the rows that these replaced. So a row that was rolled
back, and changed by an act after that, is found although it agrees with its newest record.
What a row that was rolled back only for a while gave is found, too: each record has the rows
on which its actor's rights rested, and each delivery the versions that it delivered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from typing import Any

from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import KEY_CHANGES, Action
from gusset.vault.audit.actor import person_of
from gusset.vault.audit.epochs import Epochs
from gusset.vault.audit.events import AuditRecord
from gusset.vault.storage.signed_rows import RowChange, mac_beginning, stored_changes
from gusset.vault.storage.tables import (
    ACCESS_KEYS,
    DEPLOYMENTS,
    IDENTITIES,
    ISSUERS,
    MEMBERS,
    OVERLAPS,
    SESSIONS,
    USERS,
)

CHANGES = frozenset(
    (
        Action.SECRET_CREATE,
        Action.SECRET_WRITE,
        Action.SECRET_ANNOTATE,
        Action.SECRET_ROLLBACK,
        Action.SECRET_DELETE,
        Action.SECRET_RESTORE,
        Action.SECRET_DESTROY,
    )
)


# Tables of rows on which rights rest.
_RIGHTS = frozenset(
    table.name for table in (ACCESS_KEYS, DEPLOYMENTS, IDENTITIES, ISSUERS, MEMBERS, SESSIONS, USERS)
)
# A right may end between the check of a request and what it does, which may wait for the database.
_IN_FLIGHT = timedelta(minutes=1)

# Tables of rows that end, or pass to somebody else, when the person is disabled whose they are: the one who
# added them, or the target, who gets a link, or as the first administrator a key.
_OWNED = frozenset((ACCESS_KEYS.name, IDENTITIES.name))
_ADDED_BY_ACTOR = frozenset(
    (Action.API_KEY_CREATE, Action.DEPLOYMENT_REGISTER, Action.IDENTITY_ADD, Action.ISSUER_ADD)
)
_ADDED_FOR_TARGET = frozenset((Action.PERSON_CREATE, Action.PERSON_LINK))

_RowKey = tuple[str, str]  # a table, and a row's key as records have it


@dataclass(frozen=True, slots=True)
class RowState:
    """A row as the record `seq` left it: its HMAC, None if it was removed. `act` names the record.

    Of a row on which rights may rest, also the record's time, and the HMACs that the row had in the last
    minute before, each with the time of its end.
    """

    seq: int
    mac: bytes | None
    act: str
    _: KW_ONLY
    at: str | None = None
    replaced: tuple[tuple[bytes | None, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _SecretState:
    """A secret after its newest change, which record `seq` describes."""

    seq: int
    version: int | None
    deleted: bool


class LogState:
    """The state of all signed rows, and of all secrets, as the log has it. Follows the log from its start."""

    def __init__(self) -> None:
        self.rows: dict[_RowKey, RowState] = {}
        self.secrets: dict[str, _SecretState] = {}  # by the secret's id
        self.problems: list[str] = []  # records that contradict earlier ones
        self.keyring = 0  # the generation of the keyring
        self.epochs = Epochs()
        self._live: dict[tuple[str, str], str] = {}  # team and folded name -> id
        self._owned: dict[str, dict[_RowKey, int]] = {}  # by person, with the record that wrote the row
        self._links: dict[str, tuple[str, int]] = {}  # by person: the newest link, and its record
        self._deployments: dict[tuple[str, str], _RowKey] = {}  # by team and name: those that are not removed
        self._named: set[tuple[_RowKey, str]] = set()  # wrong rights that were named: each might act often

    def follow(self, record: AuditRecord) -> None:
        """Take in the next record of the log."""
        # An altered record may contain anything; the chain shows that it was altered.
        with suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):
            added = self._follow_rows(record) if record.changes else []
            if record.outcome != "ok":
                return
            details: Mapping[str, Any] = json.loads(record.details)
            self._follow_rights(record, details)
            self._follow_owners(record, details, added)
            if record.action in CHANGES:
                self._follow_change(record, details)
            elif record.action in (Action.DEPLOYMENT_REGISTER, Action.DEPLOYMENT_REMOVE):
                self._follow_deployment(record, details, added)
            elif record.action == Action.SECRET_DELIVER:
                self._follow_delivery(record, details)
            elif record.action in KEY_CHANGES:
                self.keyring = max(self.keyring, details["keyring"])
            elif record.action == Action.AUDIT_ACCEPT_LOSS and "kept" in details:
                self._follow_epoch(record, details["epoch"])

    def _follow_rows(self, record: AuditRecord) -> list[_RowKey]:
        """Take in the changes of rows. Returns the rows that were not there before."""
        added: list[_RowKey] = []
        for change in stored_changes(record.changes):
            before = self.rows.get((change.table, change.key))
            if (problem := _wrong_change(change, before)) is not None:
                self.problems.append(f"{change.table}: record {record.seq} ({_act(record)}) {problem}")
            if before is None and change.mac is not None:
                added.append((change.table, change.key))
            self._set_row((change.table, change.key), record, change.mac)
        return added

    def _set_row(self, row: _RowKey, record: AuditRecord, mac: bytes | None) -> None:
        if row[0] not in _RIGHTS:
            self.rows[row] = RowState(record.seq, mac, _act(record))
            return
        before, at = self.rows.get(row), record.at
        ended = () if before is None else (*before.replaced, (before.mac, at))
        replaced = tuple([each for each in ended if _is_in_flight(each[1], at)])
        self.rows[row] = RowState(record.seq, mac, _act(record), at=at, replaced=replaced)

    def _follow_rights(self, record: AuditRecord, details: Mapping[str, Any]) -> None:
        if record.action == Action.SESSION_END and "session" in details:  # whether or not it had a row then
            self._set_row((SESSIONS.name, details["session"]), record, None)
        for table, key, seq, beginning in details.get("rights", ()):
            problem = self._wrong_right(record, (table, key), seq, beginning)
            if problem is not None and ((table, key), beginning) not in self._named:
                self._named.add(((table, key), beginning))
                self.problems.append(f"{table}: record {record.seq} ({_act(record)}) rests on {key}{problem}")

    def _wrong_right(self, record: AuditRecord, row: _RowKey, seq: int, beginning: str) -> str | None:
        """How a row on which an actor's right rested contradicts the log, if it does."""
        state = self.rows.get(row)
        if state is None or seq > state.seq:
            return ", but no record says that it was written"
        in_flight = [mac for mac, ended_at in state.replaced if _is_in_flight(ended_at, record.at)]
        if beginning in [mac_beginning(mac) for mac in (state.mac, *in_flight) if mac is not None]:
            return None
        last = f"record {state.seq} ({state.act})"
        if state.mac is None:
            return f" in its state of record {seq}, but {last} had removed it: it had been put back"
        return f" in its state of record {seq}, but {last} had changed it: it had been rolled back"

    def _follow_owners(
        self, record: AuditRecord, details: Mapping[str, Any], added: Sequence[_RowKey]
    ) -> None:
        if record.action == Action.PERSON_DISABLE and "tokens" in details:  # an older gusset ends less
            self._follow_disabling(record, details)
        elif record.action in _ADDED_BY_ACTOR:
            self._add_owned(person_of(record.actor), record, added)
        elif record.action in _ADDED_FOR_TARGET:
            self._add_owned(record.target, record, added)
            for table, key in added:
                if table == ACCESS_KEYS.name:
                    self._links[record.target] = (key, record.seq)
        elif record.action == Action.PERSON_PASSWORD and "link" in details:
            self._follow_link(record, details["link"])

    def _add_owned(self, person: str, record: AuditRecord, added: Sequence[_RowKey]) -> None:
        owned = {row: record.seq for row in added if row[0] in _OWNED}
        self._owned.setdefault(person, {}).update(owned)

    def _follow_link(self, record: AuditRecord, link: str) -> None:
        newest, seq = self._links.get(record.target, (link, 0))
        if link != newest:
            self.problems.append(
                f"{ACCESS_KEYS.name}: record {record.seq} ({_act(record)}) rests on the link {link}, "
                f"which that of record {seq} had replaced: that had been removed"
            )

    def _follow_deployment(
        self, record: AuditRecord, details: Mapping[str, Any], added: Sequence[_RowKey]
    ) -> None:
        name = (details["team"], record.target)
        if record.action == Action.DEPLOYMENT_REMOVE:
            self._deployments.pop(name, None)
        for row in added:
            if row[0] == DEPLOYMENTS.name:
                if name in self._deployments:
                    other = self.rows[self._deployments[name]]
                    self.problems.append(
                        f"{row[0]}: record {record.seq} ({_act(record)}) added {row[1]}, "
                        f"but the deployment of record {other.seq} had its name: that had been removed"
                    )
                self._deployments[name] = row

    def _follow_disabling(self, record: AuditRecord, details: Mapping[str, Any]) -> None:
        """None of the person's rows stays as it is: one that does was hidden, or altered."""
        passed = details.get("passed", ())
        for row, seq in self._owned.pop(record.target, {}).items():
            (table, key), state = row, self.rows[row]
            if state.seq == seq:
                self.problems.append(
                    f"{table}: record {record.seq} ({_act(record)}) left {key} as it was, "
                    f"which record {seq} ({state.act}) had written: it had been removed or altered"
                )
            elif state.at == record.at and state.mac and (key in passed or table == IDENTITIES.name):
                self._owned.setdefault(person_of(record.actor), {})[row] = state.seq

    def _follow_epoch(self, record: AuditRecord, number: Any) -> None:
        if type(number) is int:  # numbers of epochs are compared, also when this is over
            self.epochs.begin(number, record.seq)

    def _follow_change(self, record: AuditRecord, details: Mapping[str, Any]) -> None:
        secret_id, team = details["id"], details["team"]
        state = _SecretState(record.seq, details["version"], details["deleted"])
        self.secrets[secret_id] = state
        key = (team, fold_name(record.target))
        if not state.deleted:
            other = self._live.get(key, secret_id)
            if other != secret_id:
                self.problems.append(
                    f"record {record.seq} ({record.action} {record.target}) wrote the secret {secret_id}, "
                    f"but the one of record {self.secrets[other].seq} had its name: that had been removed"
                )
            self._live[key] = secret_id
        elif self._live.get(key) == secret_id:
            del self._live[key]

    def _follow_delivery(self, record: AuditRecord, details: Mapping[str, Any]) -> None:
        ids = details.get("ids", {})  # an older gusset has stored none
        for name, version in details["versions"].items():
            secret_id = self._live.get((details["team"], fold_name(name)))
            if secret_id is None:
                self.problems.append(f"record {record.seq} delivered {name}, which did not exist then")
            elif ids.get(name, secret_id) != secret_id:
                self.problems.append(
                    f"record {record.seq} delivered {name} of the secret {ids[name]}, "
                    f"but the secret with that name was {secret_id}"
                )
            elif version != self.secrets[secret_id].version:
                self.problems.append(
                    f"record {record.seq} delivered version {version} of {name}, "
                    f"but version {self.secrets[secret_id].version} was current"
                )
        for name, version in details.get("previous", {}).items():
            secret_id = self._live.get((details["team"], fold_name(name)))
            overlap = self.rows.get((OVERLAPS.name, secret_id or ""))
            if overlap is None or overlap.mac is None or version >= details["versions"][name]:
                self.problems.append(
                    f"record {record.seq} delivered the replaced version {version} of {name}, "
                    "which no overlap kept readable"
                )


def _act(record: AuditRecord) -> str:
    return f"{record.action} {record.target}"


def _is_in_flight(ended_at: Any, now: Any) -> bool:
    """Whether a request may go on `now` that was checked before something ended. A clock may be set back."""
    try:
        return abs(datetime.fromisoformat(now) - datetime.fromisoformat(ended_at)) <= _IN_FLIGHT
    except (TypeError, ValueError):
        return False  # of an altered record


def _wrong_change(change: RowChange, state: RowState | None) -> str | None:
    """How a change contradicts the state in which the log had the row before, if it does."""
    if change.mac is None or change.before == b"":
        return None  # what it replaced is not stored
    if change.before == (None if state is None else state.mac):
        return None
    if state is None:
        return f"changed the row {change.key}, but no record says that it was written"
    last = f"record {state.seq} ({state.act})"
    if state.mac is None:
        return f"changed the row {change.key}, but {last} had removed it: it had been put back"
    if change.before is None:
        return f"added the row {change.key}, but {last} had written it: it had been removed"
    return (
        f"changed the row {change.key}, which was not as {last} had written it: "
        "it had been rolled back to an older state"
    )
