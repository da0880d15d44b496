"""Notices changes of secrets: a counter of the database first, then the secrets' revisions. Not audited."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import NamedTuple

from gusset.vault.storage.connection import Store
from gusset.vault.storage.database import ChangeSignal
from gusset.vault.storage.meta import ACCESS_GENERATION, READ_META
from gusset.vault.storage.sql import Statement


class Revision(NamedTuple):
    """What differs when a secret's current value may differ.

    `write_id` is the random id of the current version; of one that an older version of gusset wrote,
    when it was written. Numbers alone could repeat, after an older copy of the database was restored.
    """

    id: str
    number: int
    write_id: str | None


# (team id, folded name) -> the revision of a secret that is not deleted.
Revisions = Mapping[tuple[str, str], Revision]

LIST_REVISIONS = Statement(
    "SELECT s.team_id, s.folded, s.id, s.revision, coalesce(v.write_id, v.created_at) AS write_id "
    "FROM secrets s LEFT JOIN secret_versions v ON v.secret_id = s.id AND v.version = s.current_version "
    "WHERE s.team_id = :team AND s.folded IN (:folded...) AND s.deleted_at IS NULL"
)


class ChangePoller:
    """Polls the database. For use by one thread, but for `wake`; `close` it."""

    def __init__(self, store: Store, open_signal: Callable[[], ChangeSignal]) -> None:
        """`open_signal` is called when changes are first followed: it takes a connection."""
        self._store = store
        self._open_signal = open_signal

    @cached_property
    def _signal(self) -> ChangeSignal:
        return self._open_signal()

    def counter(self) -> int:
        """A number that changes whenever another connection has changed a secret; cheap to read."""
        return self._signal.counter()

    def wait(self) -> None:
        """Return when the counter may have changed, after a call of `wake`, or after a while."""
        self._signal.wait()

    def wake(self) -> None:
        """Make the current call of `wait` return, or else the next one. Thread-safe."""
        self._signal.wake()

    def generation(self) -> str:
        """A text that every change of keys, people, teams or deployments replaces."""
        with self._store.read() as connection:
            row = connection.one(READ_META, {"key": ACCESS_GENERATION})
        return str(row.value) if row else ""

    def revisions(self, wanted: Collection[tuple[str, str]]) -> Revisions:
        """The current revisions of the secrets `wanted`, pairs of team id and folded name."""
        by_team: dict[str, list[str]] = {}
        for team, folded in wanted:
            by_team.setdefault(team, []).append(folded)
        found = {}
        with self._store.snapshot() as connection:
            for team, names in by_team.items():
                for row in connection.all(LIST_REVISIONS, {"team": team, "folded": sorted(names)}):
                    found[row.team_id, row.folded] = Revision(row.id, row.revision, row.write_id)
        return found

    def close(self) -> None:
        if "_signal" in self.__dict__:
            self._signal.close()
