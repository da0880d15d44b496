"""Whether the secrets in the database are what the audit log says.

Sealed bytes authenticate themselves, but which version is current, and whether
a secret is deleted, are plain columns: anyone who can write the database could
roll a secret back with them. Every change is in the log with the state that it
led to, so the last record of each secret says what its row must hold. Every
delivery is in the log with the versions that it delivered, so a row that was
turned back only for a while is found too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from gusset.secrets.info import SecretInfo
from gusset.secrets.name import fold_name
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditRecord
from gusset.vault.storage.tables import secret_versions, secrets_table

_s, _v = secrets_table.c, secret_versions.c
SECRET_ROWS = select(_s.id, _s.name, _s.folded, _s.current_version, _s.deleted_at)
VERSION_ROWS = select(_s.team_id, _s.folded, _v.secret_id, _v.version, _v.sealed).join(
    secrets_table, _s.id == _v.secret_id
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


def state_details(info: SecretInfo) -> dict[str, Any]:
    """The details of a change's audit event: the state of the secret after it."""
    return {
        "id": info.id,
        "team": info.team_id,
        "version": info.version,
        "deleted": info.deleted_at is not None,
    }


@dataclass(frozen=True, slots=True)
class _State:
    """A secret after its newest change, which record `seq` describes."""

    seq: int
    name: str
    version: int | None
    deleted: bool


class ConsistencyCheck:
    """Follows the log from its start, then compares. `opens` tests whether a version's bytes open."""

    def __init__(self, opens: Callable[[Any], bool]) -> None:
        self._opens = opens
        self._states: dict[str, _State] = {}  # by the secret's id
        self._live: dict[tuple[str, str], str] = {}  # team and folded name -> id
        self._destroyed: set[tuple[str, int]] = set()
        self._wrong_deliveries: list[str] = []

    def follow(self, record: AuditRecord) -> None:
        """Take in the next record of the log."""
        if record.outcome != "ok":
            return
        # An altered record may hold anything; that it was altered is found by the chain.
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            details: Mapping[str, Any] = json.loads(record.details)
            if record.action in CHANGES:
                self._follow_change(record, details)
            elif record.action == Action.SECRET_DELIVER:
                self._follow_delivery(record, details)

    def _follow_change(self, record: AuditRecord, details: Mapping[str, Any]) -> None:
        secret_id, team = details["id"], details["team"]
        state = _State(record.seq, record.target, details["version"], details["deleted"])
        self._states[secret_id] = state
        self._destroyed.update((secret_id, version) for version in details.get("destroyed", ()))
        key = (team, fold_name(state.name))
        if not state.deleted:
            self._live[key] = secret_id
        elif self._live.get(key) == secret_id:
            del self._live[key]

    def _follow_delivery(self, record: AuditRecord, details: Mapping[str, Any]) -> None:
        for name, version in details["versions"].items():
            secret_id = self._live.get((details["team"], fold_name(name)))
            if secret_id is None:
                self._wrong_deliveries.append(
                    f"record {record.seq} delivered {name}, which did not exist then"
                )
            elif version != self._states[secret_id].version:
                self._wrong_deliveries.append(
                    f"record {record.seq} delivered version {version} of {name}, "
                    f"but version {self._states[secret_id].version} was current"
                )

    def problems(self, rows: Iterable[Any], versions: Iterable[Any]) -> list[str]:
        """How the rows (of `SECRET_ROWS` and `VERSION_ROWS`) differ from what the log says."""
        found = {row.id: row for row in rows}
        problems = self._wrong_deliveries + [
            f"the secret {state.name} of record {state.seq} is missing from the database"
            for secret_id, state in self._states.items()
            if secret_id not in found
        ]
        problems += [problem for row in found.values() if (problem := self._state_problem(row))]
        stored = set()
        for row in versions:
            stored.add((row.secret_id, row.version))
            if row.secret_id in found and (problem := self._bytes_problem(row, found[row.secret_id].name)):
                problems.append(problem)
        problems += [
            f"the current version {row.current_version} of {row.name} is missing from the database"
            for row in found.values()
            if row.current_version is not None and (row.id, row.current_version) not in stored
        ]
        return problems

    def _state_problem(self, row: Any) -> str | None:
        state = self._states.get(row.id)
        if state is None:
            return f"the secret {row.name} is in the database, but no record says that it was created"
        if row.name != state.name or row.folded != fold_name(row.name):
            return f"the secret {state.name} of record {state.seq} is named {row.name} in the database"
        if (row.current_version, row.deleted_at is not None) != (state.version, state.deleted):
            return (
                f"record {state.seq} left the secret {row.name} {_state_text(state.version, state.deleted)}, "
                f"but in the database it is {_state_text(row.current_version, row.deleted_at is not None)}"
            )
        return None

    def _bytes_problem(self, row: Any, name: str) -> str | None:
        destroyed = (row.secret_id, row.version) in self._destroyed
        if destroyed and row.sealed is not None:
            return f"version {row.version} of {name} was destroyed, but is in the database again"
        if not destroyed and not self._opens(row):
            return f"the stored bytes of {name} (version {row.version}) do not open"
        return None


def _state_text(version: int | None, deleted: bool) -> str:
    text = "without a version" if version is None else f"at version {version}"
    return f"{text}, deleted" if deleted else text
