"""Notices when secrets change: SQLite's change counter first, then the secrets' own revisions. Unaudited."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, Engine, bindparam, select

from gusset.vault.services.access_keys import ACCESS, GENERATION
from gusset.vault.storage.database import change_counter
from gusset.vault.storage.tables import secrets

# (team id, folded name) -> id and revision of a live secret.
Revisions = Mapping[tuple[str, str], tuple[str, int]]

_s = secrets.c
_REVISIONS = select(_s.team_id, _s.folded, _s.id, _s.revision).where(
    _s.team_id == bindparam("team"),
    _s.folded.in_(bindparam("folded", expanding=True)),
    _s.deleted_at.is_(None),
)


class ChangePoller:
    """One connection that looks at the database again and again. For one thread."""

    def __init__(self, engine: Engine) -> None:
        self._connection: Connection = engine.connect()

    def counter(self) -> int:
        """Moves whenever another connection has written anything; cheap to ask."""
        return change_counter(self._connection)

    def generation(self) -> str:
        """Differs after any change to keys, people, teams or deployments."""
        row = GENERATION.one(self._connection, {"key": ACCESS})
        return str(row.value) if row else ""

    def revisions(self, wanted: Collection[tuple[str, str]]) -> Revisions:
        """What the live ones among these (team, folded name) are at."""
        by_team: dict[str, list[str]] = {}
        for team, folded in wanted:
            by_team.setdefault(team, []).append(folded)
        found = {}
        for team, names in by_team.items():
            for row in self._connection.execute(_REVISIONS, {"team": team, "folded": sorted(names)}):
                found[row.team_id, row.folded] = (row.id, row.revision)
        self._connection.rollback()
        return found

    def close(self) -> None:
        self._connection.close()
