"""Whether the secrets are what the audit log says that they are.

Sealed bytes vouch for themselves, but which version is current, and whether a
secret is deleted, are plain columns: whoever can write the database could roll
a secret back with them. Every change is in the log, with what it led to, so
the last record of each secret tells what its row must say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select

from gusset.secrets.name import fold_name
from gusset.vault.info import SecretInfo
from gusset.vault.tables import secrets

ROWS = select(secrets.c.id, secrets.c.name, secrets.c.folded, secrets.c.current_version, secrets.c.deleted_at)
CHANGES = frozenset(
    f"secret.{verb}" for verb in ("create", "write", "rollback", "delete", "restore", "destroy")
)


def outcome_of(info: SecretInfo) -> dict[str, Any]:
    """What the record of a change says of the secret after it."""
    return {"id": info.id, "version": info.version, "deleted": info.deleted_at is not None}


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


class Agreement:
    """Follows the log from its start, then compares."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}

    def follow(self, record: Recorded) -> None:
        if record.outcome != "ok" or record.action not in CHANGES:
            return
        # An altered record may say anything; the chain tells that it was altered.
        with suppress(KeyError, TypeError, ValueError):
            said: Mapping[str, Any] = json.loads(record.details)
            self._last[said["id"]] = _Last(record.seq, record.target, said["version"], said["deleted"])

    def problems(self, rows: Iterable[Any]) -> list[str]:
        """What the rows of the secrets (see `ROWS`) say otherwise than the log."""
        found = {row.id: row for row in rows}
        problems = [
            f"the secret {last.name} of record {last.seq} is gone from the database"
            for key, last in self._last.items()
            if key not in found
        ]
        for key, row in found.items():
            last = self._last.get(key)
            if last is None:
                problems.append(f"the secret {row.name} is in the database, but was never written")
            elif row.name != last.name or row.folded != fold_name(row.name):
                problems.append(
                    f"the secret {last.name} of record {last.seq} is named {row.name} in the database"
                )
            elif (row.current_version, row.deleted_at is not None) != (last.version, last.deleted):
                problems.append(
                    f"record {last.seq} left the secret {row.name} {_state(last.version, last.deleted)}, "
                    f"but it is {_state(row.current_version, row.deleted_at is not None)} in the database"
                )
        return problems


def _state(version: int | None, deleted: bool) -> str:
    text = "without a version" if version is None else f"at version {version}"
    return f"{text}, deleted" if deleted else text
