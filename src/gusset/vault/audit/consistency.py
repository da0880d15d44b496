"""Compares the rows in the database with what the audit log says they must be.

Each record has the HMACs of the signed rows that it wrote, and the keys of those that
it removed. So the newest record about a row says what the row must be: one that was
altered, added, removed or rolled back to an older state is found. It also has the HMACs
of the rows that these replaced. So a row that was rolled back, and changed by an act after
that, is found although it agrees with its newest record. Every delivery is in the log with
the versions that it delivered, so a row that was rolled back only for a while is found too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import KEY_CHANGES, Action
from gusset.vault.audit.epochs import Epochs
from gusset.vault.audit.events import AuditRecord
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.signed_rows import RowChange, RowSigner, SignedTable, stored_changes
from gusset.vault.storage.tables import ACCESS_KEYS, OVERLAPS

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


# A token may be revoked between the check of a request and its delivery, which may wait for the database.
_IN_FLIGHT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class _RowState:
    """A row as the record `seq` left it: its HMAC, None if it was removed. `act` names the record."""

    seq: int
    mac: bytes | None
    act: str
    at: str | None  # the record's time, of keys and tokens only: for each row it would take much memory


@dataclass(frozen=True, slots=True)
class _SecretState:
    """A secret after its newest change, which record `seq` describes."""

    seq: int
    version: int | None
    deleted: bool


class LogState:
    """The state of all signed rows, and of all secrets, as the log has it. Follows the log from its start."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], _RowState] = {}  # by table and key
        self.secrets: dict[str, _SecretState] = {}  # by the secret's id
        self.problems: list[str] = []  # changes and deliveries that contradict earlier records
        self.keyring = 0  # the generation of the keyring
        self.epochs = Epochs()
        self._live: dict[tuple[str, str], str] = {}  # team and folded name -> id

    def follow(self, record: AuditRecord) -> None:
        """Take in the next record of the log."""
        # An altered record may contain anything; the chain shows that it was altered.
        with suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):
            if record.changes:
                self._follow_rows(record)
            if record.outcome != "ok":
                return
            details: Mapping[str, Any] = json.loads(record.details)
            if record.action in CHANGES:
                self._follow_change(record, details)
            elif record.action == Action.SECRET_DELIVER:
                self._follow_delivery(record, details)
            elif record.action in KEY_CHANGES:
                self.keyring = max(self.keyring, details["keyring"])
            elif record.action == Action.AUDIT_ACCEPT_LOSS and "kept" in details:
                self._follow_epoch(record, details["epoch"])

    def _follow_rows(self, record: AuditRecord) -> None:
        act = f"{record.action} {record.target}"
        for change in stored_changes(record.changes):
            before = self.rows.get((change.table, change.key))
            if (problem := _wrong_change(change, before)) is not None:
                self.problems.append(f"{change.table}: record {record.seq} ({act}) {problem}")
            at = record.at if change.table == ACCESS_KEYS.name else None
            self.rows[change.table, change.key] = _RowState(record.seq, change.mac, act, at)

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
        if "token" in details and (problem := self._wrong_token(record, details)) is not None:
            self.problems.append(f"record {record.seq} delivered values by the token {problem}")
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

    def _wrong_token(self, record: AuditRecord, details: Mapping[str, Any]) -> str | None:
        """How the state of the token by which values were delivered contradicts the log, if it does."""
        prefix, seq = details["token"], details["token_record"]
        state = self.rows.get((ACCESS_KEYS.name, prefix))
        if state is None:
            return f"{prefix}, but no record says that it was written"
        if seq == state.seq:
            return None
        if seq < state.seq and _time_between(state.at, record.at) <= _IN_FLIGHT:
            return None
        return (
            f"{prefix} in its state of record {seq}, but record {state.seq} ({state.act}) had changed it: "
            "it had been rolled back"
        )


def _time_between(earlier: Any, later: Any) -> timedelta:
    return datetime.fromisoformat(later) - datetime.fromisoformat(earlier)


def _wrong_change(change: RowChange, state: _RowState | None) -> str | None:
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


class RowComparison:
    """Compares the rows of all signed tables with a `LogState`."""

    def __init__(self, state: LogState, signer: RowSigner) -> None:
        self.state = state
        self._signer = signer
        self._seen: set[tuple[str, str]] = set()
        self._seen_again: set[tuple[str, str]] = set()
        self._unreadable: set[str] = set()  # names of tables

    def unreadable(self, table: SignedTable) -> None:
        """Note that not all rows of a table could be read."""
        self._unreadable.add(table.name)

    def has_read(self, *tables: SignedTable) -> bool:
        """Whether all rows of these tables could be read."""
        return self._unreadable.isdisjoint([table.name for table in tables])

    def table_problems(self, table: SignedTable, rows: Iterable[Any]) -> Iterator[str]:
        """How the rows of one table differ from what the log says. Pass each row once."""
        for row in rows:
            yield from self.duplicates(table, [row])
            yield from self.differences(table, [row])

    def duplicates(self, table: SignedTable, rows: Iterable[Any]) -> Iterator[str]:
        """Which rows of one table there are more than once. Pass each row once."""
        for row in rows:
            key = (table.name, table.key_text(row))
            if key in self._seen and key not in self._seen_again:
                self._seen_again.add(key)
                yield f"{table.name}: {table.describe(row)} is in the database more than once"
            self._seen.add(key)

    def differences(self, table: SignedTable, rows: Iterable[Any]) -> Iterator[str]:
        """How rows of one table differ from what the log says."""
        for row in rows:
            state = self.state.rows.get((table.name, table.key_text(row)))
            if (problem := self._row_problem(table, row, state)) is not None:
                yield f"{table.name}: {table.describe(row)} {problem}"

    def _row_problem(self, table: SignedTable, row: Any, state: _RowState | None) -> str | None:
        valid = self._signer.is_valid(table, row)
        if valid and (state is None or row.changed_seq > state.seq):
            return f"was written by record {row.changed_seq}, but the log has no record of that"
        if state is None:
            return "is in the database, but no record says that it was written"
        if state.mac is None:
            return f"was removed by record {state.seq} ({state.act}), but is in the database again"
        if valid and row.mac == state.mac:
            return None
        if valid and row.changed_seq < state.seq:
            return (
                f"was rolled back to its state of record {row.changed_seq}; "
                f"record {state.seq} ({state.act}) has changed it since"
            )
        return f"was altered after record {state.seq} ({state.act}) wrote it"

    def missing(self, until: int | None = None) -> Iterator[str]:
        """The rows that only the log has, but for tables that could not be read.

        Call it after `table_problems` for each table. With `until`, only rows that no record after that one
        has changed.
        """
        for (table, key), state in self.state.rows.items():
            if table in self._unreadable or (until is not None and state.seq > until):
                continue
            if state.mac is not None and (table, key) not in self._seen:
                yield f"{table}: the row {key} of record {state.seq} ({state.act}) is missing"


def contradiction(connection: Connection, table: SignedTable) -> Iterator[str]:
    """How the table and its indexes contradict each other: a comparison may see one, and use the other."""
    found = connection.dialect.contradiction(connection.driver, table.name)
    if found is not None:
        yield f"{table.name}: its rows and indexes contradict each other ({found})"


def unreadable(what: str, error: Exception) -> str:
    """The problem that gusset fails by what it reads of `what`."""
    return (
        f"{what}: cannot be read ({type(error).__name__}): the type of a column was altered, or what it holds"
    )


def unopened(
    versions: Iterable[Any], secrets: Mapping[str, Any], opens: Callable[[Any, Any], bool]
) -> Iterator[str]:
    """Which stored versions do not open. `secrets` are rows by id; `opens` gets both rows."""
    for row in versions:
        secret = secrets.get(row.secret_id)
        if secret is not None and row.sealed is not None and not opens(secret, row):
            yield f"secret_versions: the bytes of {secret.name} (version {row.version}) do not open"
