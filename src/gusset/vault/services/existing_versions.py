"""Whether versions that replicas report exist."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from gusset.errors import Conflict
from gusset.secrets.name import fold_name
from gusset.vault.storage.connection import Store
from gusset.vault.storage.sql import Statement

_NOTED_SECONDS = 5.0
_MAX_NOTED = 10_000

_LIST_VERSIONS = Statement(
    "SELECT s.folded, v.version FROM secrets s JOIN secret_versions v ON v.secret_id = s.id "
    "WHERE s.team_id = :team AND s.folded IN (:folded...) AND v.version IN (:versions...)"
)


class ExistingVersions:
    """Checks versions of secrets, by name and number. Those that were read a moment ago are not read again.

    After each rotation all replicas report the version that they have just been delivered. Thread-safe.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[tuple[str, str, int], float] = {}  # team, folded name, number: until when

    def check(self, team_id: str, versions: Collection[tuple[str, int]]) -> None:
        """Raises Conflict if one of them does not exist."""
        now = time.monotonic()
        unknown = [
            (name, version)
            for name, version in versions
            if self._noted.get((team_id, fold_name(name), version), 0.0) < now
        ]
        if not unknown:
            return
        parameters = {
            "team": team_id,
            "folded": sorted({fold_name(name) for name, _ in unknown}),
            "versions": sorted({version for _, version in unknown}),
        }
        with self._store.read() as connection:
            rows = connection.all(_LIST_VERSIONS, parameters)
        existing = {(row.folded, row.version) for row in rows}
        for name, version in sorted(unknown):
            if (fold_name(name), version) not in existing:
                raise Conflict(f"{name} has no version {version}", hint="fetch the secrets again")
        self.note(team_id, unknown)

    def note(self, team_id: str, versions: Iterable[tuple[str, int]]) -> None:
        """Note versions that were just read; 0 stands for none."""
        now = time.monotonic()
        if len(self._noted) > _MAX_NOTED:
            self._noted = {key: until for key, until in self._noted.copy().items() if until > now}
        until = now + _NOTED_SECONDS
        self._noted.update({(team_id, fold_name(name), number): until for name, number in versions if number})
