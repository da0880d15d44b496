"""Notices changes of secrets: SQLite's change counter first, then the secrets' revisions. Not audited."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, bindparam, select

from gusset.vault.services.access_keys import ACCESS_GENERATION, READ_META
from gusset.vault.storage.database import change_counter
from gusset.vault.storage.tables import secrets_table

# (team id, folded name) -> id and revision of a secret that is not deleted.
Revisions = Mapping[tuple[str, str], tuple[str, int]]

_s = secrets_table.c
_LIST_REVISIONS = select(_s.team_id, _s.folded, _s.id, _s.revision).where(
    _s.team_id == bindparam("team"),
    _s.folded.in_(bindparam("folded", expanding=True)),
    _s.deleted_at.is_(None),
)


class ChangePoller:
    """Polls the database on a connection of its own, which it closes. For use by one thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def counter(self) -> int:
        """A number that changes whenever another connection has written anything; cheap to read."""
        return change_counter(self._connection)

    def generation(self) -> str:
        """A text that every change of keys, people, teams or deployments replaces."""
        row = READ_META.one(self._connection, {"key": ACCESS_GENERATION})
        return str(row.value) if row else ""

    def revisions(self, wanted: Collection[tuple[str, str]]) -> Revisions:
        """The current revisions of the secrets `wanted`, pairs of team id and folded name."""
        by_team: dict[str, list[str]] = {}
        for team, folded in wanted:
            by_team.setdefault(team, []).append(folded)
        found = {}
        for team, names in by_team.items():
            for row in self._connection.execute(_LIST_REVISIONS, {"team": team, "folded": sorted(names)}):
                found[row.team_id, row.folded] = (row.id, row.revision)
        self._connection.rollback()
        return found

    def close(self) -> None:
        self._connection.close()
