"""Whether the secrets are what the audit log says that they are.

Sealed bytes vouch for themselves, but which version is current, and whether a
secret is deleted, are plain columns: whoever can write the database could roll
a secret back with them. Every change is in the log, with what it led to, so
the last record of each secret tells what its row must say; and every delivery
is there with the versions that it gave, so a row that was turned back only for
a while is found, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select

from gusset.secrets.info import SecretInfo
from gusset.secrets.name import fold_name
from gusset.vault.storage.tables import secret_versions, secrets

ROWS = select(secrets.c.id, secrets.c.name, secrets.c.folded, secrets.c.current_version, secrets.c.deleted_at)
VERSION_ROWS = select(
    secrets.c.team_id,
    secrets.c.folded,
    secret_versions.c.secret_id,
    secret_versions.c.version,
    secret_versions.c.sealed,
).join(secrets, secrets.c.id == secret_versions.c.secret_id)
CHANGES = frozenset(
    f"secret.{verb}" for verb in ("create", "write", "annotate", "rollback", "delete", "restore", "destroy")
)


def outcome_of(info: SecretInfo) -> dict[str, Any]:
    """What the record of a change says of the secret after it."""
    return {
        "id": info.id,
        "team": info.team_id,
        "version": info.version,
        "deleted": info.deleted_at is not None,
    }


class Recorded(Protocol):
    """What is read of a record."""

    @property
    def seq(self) -> int: ...
    @property
    def outcome(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def details(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Last:
    """Where a secret stood after its newest change."""

    seq: int
    name: str
    version: int | None
    deleted: bool


class ConsistencyCheck:
    """Follows the log from its start, then compares. `opens` says whether a version's bytes open."""

    def __init__(self, opens: Callable[[Any], bool]) -> None:
        self._opens = opens
        self._last: dict[str, _Last] = {}
        self._live: dict[tuple[str, str], str] = {}  # team and folded name -> id
        self._destroyed: set[tuple[str, int]] = set()
        self._astray: list[str] = []

    def follow(self, record: Recorded) -> None:
        if record.outcome != "ok":
            return
        # An altered record may say anything; the chain tells that it was altered.
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            said: Mapping[str, Any] = json.loads(record.details)
            if record.action in CHANGES:
                self._changed(record, said)
            elif record.action == "secret.deliver":
                self._delivered(record, said)

    def _changed(self, record: Recorded, said: Mapping[str, Any]) -> None:
        key, team = said["id"], said["team"]
        last = _Last(record.seq, record.target, said["version"], said["deleted"])
        self._last[key] = last
        self._destroyed.update((key, version) for version in said.get("destroyed", ()))
        place = (team, fold_name(last.name))
        if not last.deleted:
            self._live[place] = key
        elif self._live.get(place) == key:
            del self._live[place]

    def _delivered(self, record: Recorded, said: Mapping[str, Any]) -> None:
        for name, version in said["versions"].items():
            key = self._live.get((said["team"], fold_name(name)))
            if key is None:
                self._astray.append(f"record {record.seq} delivered {name}, which did not exist then")
            elif version != self._last[key].version:
                self._astray.append(
                    f"record {record.seq} delivered version {version} of {name}, "
                    f"but version {self._last[key].version} was current"
                )

    def problems(self, rows: Iterable[Any], versions: Iterable[Any]) -> list[str]:
        """What the rows (see `ROWS`, `VERSION_ROWS`) say otherwise than the log."""
        found = {row.id: row for row in rows}
        problems = self._astray + [
            f"the secret {last.name} of record {last.seq} is gone from the database"
            for key, last in self._last.items()
            if key not in found
        ]
        problems += [problem for row in found.values() if (problem := self._state_problem(row))]
        held = set()
        for row in versions:
            held.add((row.secret_id, row.version))
            if row.secret_id in found and (problem := self._bytes_problem(row, found[row.secret_id].name)):
                problems.append(problem)
        problems += [
            f"the current version {row.current_version} of {row.name} is gone from the database"
            for row in found.values()
            if row.current_version is not None and (row.id, row.current_version) not in held
        ]
        return problems

    def _state_problem(self, row: Any) -> str | None:
        last = self._last.get(row.id)
        if last is None:
            return f"the secret {row.name} is in the database, but was never written"
        if row.name != last.name or row.folded != fold_name(row.name):
            return f"the secret {last.name} of record {last.seq} is named {row.name} in the database"
        if (row.current_version, row.deleted_at is not None) != (last.version, last.deleted):
            return (
                f"record {last.seq} left the secret {row.name} {_state(last.version, last.deleted)}, "
                f"but it is {_state(row.current_version, row.deleted_at is not None)} in the database"
            )
        return None

    def _bytes_problem(self, row: Any, name: str) -> str | None:
        destroyed = (row.secret_id, row.version) in self._destroyed
        if destroyed and row.sealed is not None:
            return f"version {row.version} of {name} was destroyed, but is in the database again"
        if not destroyed and not self._opens(row):
            return f"the stored bytes of {name} (version {row.version}) do not open"
        return None


def _state(version: int | None, deleted: bool) -> str:
    text = "without a version" if version is None else f"at version {version}"
    return f"{text}, deleted" if deleted else text
