"""People and teams as rows: what people, sessions, invitations and teams share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gusset.errors import NotFound, UsageError
from gusset.secrets.info import DEFAULT_TEAM
from gusset.vault.ids import new_id
from gusset.vault.storage.connection import Connection, Transaction
from gusset.vault.storage.signed_rows import Right, Select
from gusset.vault.storage.tables import MEMBERS, TEAMS, USERS

Role = Literal["admin", "member"]
ROLES: tuple[Role, ...] = get_args(Role)

# Without characters that could disguise an address in a page or a log: control, bidirectional, quotes; nor
# lone surrogates, which no database stores.
_EMAIL = re.compile(
    r"[^@\s<>\"'\\\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]{1,64}@[A-Za-z0-9.-]{1,189}"
)

FIND_USER = Select(USERS, "id = :id")
FIND_USER_BY_EMAIL = Select(USERS, "email = :email")
LIST_TEAMS = Select(TEAMS, then="ORDER BY name")
FIND_TEAM = Select(TEAMS, "id = :id")
LIST_MEMBERSHIPS = Select(MEMBERS, "user_id = :user")
_FIND_TEAMS = Select(TEAMS, "id IN (:ids...)")


@dataclass(frozen=True, slots=True)
class TeamInfo:
    """A team: it owns secrets and deployments."""

    id: str
    name: str
    default: bool
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who may sign in. An admin sees every team.

    `rights` are the rows on which theirs rest: of the account and the memberships. With `has_altered_teams`,
    a membership of theirs was altered in the database, or its team altered or removed: `teams` lacks it.
    """

    id: str
    email: str
    name: str
    role: Role
    created_at: str
    disabled_at: str | None
    teams: tuple[TeamInfo, ...]
    has_altered_teams: bool
    invited: bool  # has not chosen a password yet
    rights: tuple[Right, ...]

    @property
    def admin(self) -> bool:
        return self.role == "admin"


def check_email(text: str) -> str:
    """The e-mail address in lower case. Raises UsageError for a text that is not one."""
    email = text.strip().lower()
    if not is_email(email):
        raise UsageError("that is not an e-mail address")
    return email


def is_email(text: str) -> bool:
    """Whether a text in lower case is an e-mail address."""
    return _EMAIL.fullmatch(text) is not None


def check_role(role: str) -> None:
    """Raises UsageError for an unknown role."""
    if role not in ROLES:
        raise UsageError(f"unknown role; known: {', '.join(ROLES)}")


def get_person(connection: Connection, user_id: str) -> Person:
    """The person with that id. Raises NotFound."""
    return person_from_row(connection, get_user(connection, user_id))


def get_user(connection: Connection, user_id: str) -> Any:
    """The row of the `users` table with that id. Raises NotFound."""
    row = connection.one(FIND_USER, {"id": user_id})
    if row is None:
        raise NotFound("there is no such person")
    return row


def person_from_row(connection: Connection, row: Any) -> Person:
    """A person from a row of the `users` table, with their teams.

    A membership or team that was altered gives nothing and is left out: it must keep nobody from signing
    in, and no right from being ended. Verification names it.
    """
    memberships, altered = connection.all_valid(LIST_MEMBERSHIPS, {"user": row.id})
    teams, _ = connection.all_valid(_FIND_TEAMS, {"ids": [each.team_id for each in memberships]})
    return Person(
        id=row.id,
        email=row.email,
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        teams=tuple(teams_from_rows(teams)),
        has_altered_teams=bool(altered) or len(teams) < len(memberships),
        invited=row.password is None,
        rights=(USERS.right(row), *map(MEMBERS.right, memberships)),
    )


def insert_person(
    transaction: Transaction, email: str, *, name: str, role: Role, password_hash: str | None, at: str
) -> Any:
    """Add a person; returns the row. A new person is in no team."""
    return transaction.insert(
        USERS,
        {
            "id": new_id(),
            "email": email,
            "name": name,
            "role": role,
            "password": password_hash,
            "created_at": at,
        },
    )


def get_team(connection: Connection, team_id: str) -> TeamInfo:
    """The team with that id. Raises NotFound."""
    row = connection.one(FIND_TEAM, {"id": team_id})
    if row is None:
        raise NotFound("there is no such team")
    return _team(row)


def check_teams(connection: Connection, ids: Iterable[str]) -> None:
    """Raises IntegrityError if one of the teams with these ids was altered in the database."""
    connection.all(_FIND_TEAMS, {"ids": sorted(set(ids))})


def team_names(connection: Connection, ids: Iterable[str]) -> dict[str, str]:
    """The names of the teams with these ids, by id, but of those that are missing or were altered."""
    rows, _ = connection.all_valid(_FIND_TEAMS, {"ids": sorted(set(ids))})
    return {row.id: row.name for row in rows}


def teams_from_rows(rows: Iterable[Any]) -> list[TeamInfo]:
    """Teams from rows of the `teams` table: the default one first, then by name."""
    return sorted(map(_team, rows), key=lambda team: (not team.default, team.name))


def _team(row: Any) -> TeamInfo:
    return TeamInfo(id=row.id, name=row.name, default=row.name == DEFAULT_TEAM, created_at=row.created_at)
