"""Teams and their members."""

from __future__ import annotations

from gusset.errors import Conflict, NotFound, UsageError
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.ids import id_or, new_id
from gusset.vault.services.access_keys import new_access_generation
from gusset.vault.services.person import (
    FIND_TEAM,
    LIST_MEMBERSHIPS,
    LIST_TEAMS,
    Person,
    TeamInfo,
    get_person,
    get_team,
    get_user,
    person_from_row,
    teams_from_rows,
)
from gusset.vault.storage.connection import Store, Transaction
from gusset.vault.storage.tables import MEMBERS, TEAMS


class Teams:
    """Lists and creates teams, and changes who is in them."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def all(self) -> list[TeamInfo]:
        """Every team: the default one first, then by name. One that was altered is left out."""
        with self._store.read() as connection:
            rows, _ = connection.all_valid(LIST_TEAMS)
        return teams_from_rows(rows)

    def check(self) -> None:
        """Raises IntegrityError if a team was altered in the database, so that `all` leaves it out."""
        with self._store.read() as connection:
            connection.all(LIST_TEAMS)

    def create(self, name: str, *, actor: str) -> TeamInfo:
        """Create a team. Raises UsageError for an invalid name, and Conflict for one that is in use."""
        name = name.strip()
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise UsageError("a team's name must have 1 to 64 printable characters")

        def write(transaction: Transaction) -> WriteResult[TeamInfo]:
            if any(row.name.lower() == name.lower() for row in transaction.all(LIST_TEAMS)):
                raise Conflict(f"there is already a team {name}")
            team = TeamInfo(id=new_id(), name=name, default=False, created_at=timestamp(self._clock()))
            transaction.insert(TEAMS, {"id": team.id, "name": team.name, "created_at": team.created_at})
            new_access_generation(transaction)
            return WriteResult(team, [AuditEvent(actor, Action.TEAM_CREATE, name, details={"team": team.id})])

        return self._writer.run(AuditEvent(actor, Action.TEAM_CREATE, name), write)

    def add_member(self, team_id: str, user_id: str, *, actor: str) -> Person:
        """Add a person to a team; does nothing when they are in it already. Raises NotFound."""

        def write(transaction: Transaction) -> WriteResult[Person]:
            team, person = get_team(transaction, team_id), get_person(transaction, user_id)
            valid, altered = transaction.all_valid(LIST_MEMBERSHIPS, {"user": user_id})
            if any(each.team_id == team_id for each in valid):
                return WriteResult(person, [])
            for row in altered:  # in whose place the new one comes
                if (row.team_id, row.user_id) == (team_id, user_id):
                    transaction.delete(MEMBERS, row)
            transaction.insert(MEMBERS, {"team_id": team_id, "user_id": user_id})
            new_access_generation(transaction)
            details = {"person": person.email, "team": team_id}
            added = get_person(transaction, user_id)
            return WriteResult(added, [AuditEvent(actor, Action.TEAM_ADD_MEMBER, team.name, details=details)])

        return self._writer.run(AuditEvent(actor, Action.TEAM_ADD_MEMBER, id_or(team_id, "a team")), write)

    def remove_member(self, team_id: str, user_id: str, *, actor: str) -> Person:
        """Remove a person from a team. Raises NotFound."""

        def write(transaction: Transaction) -> WriteResult[Person]:
            valid, altered = transaction.all_valid(FIND_TEAM, {"id": team_id})
            if not (valid or altered):
                raise NotFound("there is no such team")
            name, user = valid[0].name if valid else team_id, get_user(transaction, user_id)
            _end_membership(transaction, team_id, user_id)
            new_access_generation(transaction)
            details = {"person": user.email, "team": team_id}
            event = AuditEvent(actor, Action.TEAM_REMOVE_MEMBER, name, details=details)
            return WriteResult(person_from_row(transaction, user), [event])

        return self._writer.run(AuditEvent(actor, Action.TEAM_REMOVE_MEMBER, id_or(team_id, "a team")), write)


def _end_membership(transaction: Transaction, team_id: str, user_id: str) -> None:
    """Have no such row, and the audit record say so.

    Whether or not there is one now: somebody who writes the database may have removed it, to put it back.
    """
    valid, altered = transaction.all_valid(LIST_MEMBERSHIPS, {"user": user_id})
    rows = [row for row in (*valid, *altered) if (row.team_id, row.user_id) == (team_id, user_id)]
    if not rows:
        rows = [transaction.insert(MEMBERS, {"team_id": team_id, "user_id": user_id})]
    for row in rows:
        transaction.delete(MEMBERS, row)
