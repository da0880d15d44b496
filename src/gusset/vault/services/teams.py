"""Teams and their members."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, delete, func, insert, select

from gusset.errors import Conflict, UsageError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.ids import new_id
from gusset.vault.services.access_keys import new_access_generation
from gusset.vault.services.person import TeamInfo, get_person, get_team, teams_from_rows
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import members, teams

_LIST = select(teams)


class Teams:
    """Lists and creates teams, and changes who is in them."""

    def __init__(self, engine: Engine, writer: Writer, clock: Clock) -> None:
        self._engine = engine
        self._writer = writer
        self._clock = clock

    def all(self) -> list[TeamInfo]:
        """Every team: the default one first, then by name."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return teams_from_rows(connection.execute(_LIST))

    def create(self, name: str, *, actor: str) -> TeamInfo:
        """Raises UsageError for a name that is empty, too long or not printable, Conflict for one in use."""
        name = name.strip()
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise UsageError("a team's name must have 1 to 64 printable characters")

        def write(connection: Connection) -> WriteResult[TeamInfo]:
            same_name = func.lower(teams.c.name) == name.lower()
            if connection.execute(select(teams.c.id).where(same_name)).one_or_none():
                raise Conflict(f"there is already a team {name}")
            team = TeamInfo(id=new_id(), name=name, default=False, created_at=timestamp(self._clock()))
            row = {"id": team.id, "name": team.name, "created_at": team.created_at}
            connection.execute(insert(teams), row)
            new_access_generation(connection)
            return WriteResult(team, [AuditEvent(actor, Action.TEAM_CREATE, name, details={"team": team.id})])

        return self._writer.run(AuditEvent(actor, Action.TEAM_CREATE, name), write)

    def add_member(self, team_id: str, user_id: str, *, actor: str) -> None:
        """Add a person to a team; does nothing when they are in it already. Raises NotFound."""

        def write(connection: Connection) -> WriteResult[None]:
            team, person = get_team(connection, team_id), get_person(connection, user_id)
            if any(each.id == team_id for each in person.teams):
                return WriteResult(None, [])
            connection.execute(insert(members), {"team_id": team_id, "user_id": user_id})
            new_access_generation(connection)
            details = {"person": person.email, "team": team_id}
            return WriteResult(None, [AuditEvent(actor, Action.TEAM_ADD_MEMBER, team.name, details=details)])

        self._writer.run(AuditEvent(actor, Action.TEAM_ADD_MEMBER, team_id), write)

    def remove_member(self, team_id: str, user_id: str, *, actor: str) -> None:
        """Remove a person from a team. Raises NotFound."""

        def write(connection: Connection) -> WriteResult[None]:
            team, person = get_team(connection, team_id), get_person(connection, user_id)
            connection.execute(
                delete(members).where(members.c.team_id == team_id, members.c.user_id == user_id)
            )
            new_access_generation(connection)
            details = {"person": person.email, "team": team_id}
            return WriteResult(
                None, [AuditEvent(actor, Action.TEAM_REMOVE_MEMBER, team.name, details=details)]
            )

        self._writer.run(AuditEvent(actor, Action.TEAM_REMOVE_MEMBER, team_id), write)
