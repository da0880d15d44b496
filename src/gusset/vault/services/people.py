"""People: who they are, which teams they are in, how they sign in.

Passwords are hashed by the caller's thread, outside the writer: it takes long
on purpose. Sessions and links are kept as hashes, like keys.
"""

from __future__ import annotations

import hashlib
import re
import secrets as random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, select, update

from gusset.errors import Conflict, Denied, NotFound, NotSignedIn, UsageError
from gusset.secrets.info import DEFAULT_TEAM
from gusset.secrets.value import SecretValue
from gusset.vault.audit.audit_log import Actor, Clock, Entry, timestamp
from gusset.vault.commit.writer import Done, Writer
from gusset.vault.crypto.passwords import fits, hash_password
from gusset.vault.services.access_keys import AccessKeys, KeyInfo, add_key, revoke_keys, touch
from gusset.vault.services.secret_store import new_id
from gusset.vault.storage.compiled_sql import Prepared
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import access_keys, members, sessions, teams, users

Role = Literal["admin", "member"]
ROLES: tuple[Role, ...] = get_args(Role)
SESSION = timedelta(hours=12)  # of silence; then one signs in again
LINK = timedelta(hours=72)
_SEEN_EVERY = timedelta(minutes=1)
_EMAIL = re.compile(
    r"[^@\s<>\"'\\\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]{1,64}@[A-Za-z0-9.-]{1,189}"
)


@dataclass(frozen=True, slots=True)
class TeamInfo:
    """A team: the scope that owns secrets."""

    id: str
    name: str
    default: bool
    created_at: str


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may sign in. An admin sees every team."""

    id: str
    email: str
    name: str
    role: Role
    created_at: str
    disabled_at: str | None
    teams: tuple[TeamInfo, ...]
    invited: bool  # has not chosen a password yet

    @property
    def admin(self) -> bool:
        return self.role == "admin"


_u, _t = users.c, teams.c
_TEAMS = select(teams)
_TEAMS_OF = Prepared(
    select(_t.id, _t.name, _t.created_at)
    .join(members, members.c.team_id == _t.id)
    .where(members.c.user_id == bindparam("user"))
)
_USER = Prepared(select(users).where(_u.id == bindparam("id")))
_SESSION = Prepared(
    select(sessions.c.user_id, sessions.c.seen_at, sessions.c.expires_at).where(
        sessions.c.hash == bindparam("hash")
    )
)


class People:
    """People, teams, sessions."""

    def __init__(self, engine: Engine, writer: Writer, keys: AccessKeys, clock: Clock) -> None:
        self._engine = engine
        self._writer = writer
        self._keys = keys
        self._clock = clock

    # --- who is there

    def anybody(self) -> bool:
        """Whether there is a person at all; without one the manager waits to be set up."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return connection.execute(select(_u.id).limit(1)).one_or_none() is not None

    def get(self, user_id: str) -> Person:
        """Raises NotFound."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return self._need(connection, user_id)

    def everybody(self) -> list[Person]:
        """Everybody, by e-mail address."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(select(users).order_by(_u.email)).all()
            return [self._person(connection, row) for row in rows]

    def teams(self) -> list[TeamInfo]:
        """Every team, the default one first."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return _sorted(connection.execute(_TEAMS))

    # --- coming in

    def create_first(self, email: str, password: SecretValue, *, actor: str) -> tuple[Person, SecretValue]:
        """The first administrator, and an API key of theirs.

        Raises:
            Conflict: there is somebody already.
        """
        hashed = hash_password(password)
        address = checked_email(email)

        def act(connection: Connection) -> Done[tuple[Person, SecretValue]]:
            user_id = self._insert_first(connection, address, hashed)
            key, value = add_key(
                connection,
                "key",
                at=self._now(),
                name="first key",
                allows=("secrets:read", "secrets:write", "deployments", "admin"),
                created_by=actor,
                expires_at=None,
                user_id=user_id,
            )
            made = Entry(actor, "person.create", address, details={"role": "admin"})
            return Done(
                (self._need(connection, user_id), value), [made, Entry(actor, "api_key.create", key.prefix)]
            )

        return self._writer.run(Entry(actor, "person.create", address), act)

    def set_up(self, email: str, password: SecretValue, *, actor: str) -> Person:
        """The first administrator, without a key. Raises as `create_first` does."""
        hashed = hash_password(password)
        address = checked_email(email)

        def act(connection: Connection) -> Done[Person]:
            person = self._need(connection, self._insert_first(connection, address, hashed))
            return Done(person, [Entry(actor, "person.create", address, details={"role": "admin"})])

        return self._writer.run(Entry(actor, "person.create", address), act)

    def _insert_first(self, connection: Connection, address: str, hashed: str) -> str:
        if connection.execute(select(_u.id).limit(1)).one_or_none():
            raise Conflict("the manager has an administrator already", hint="sign in, or ask them for a key")
        user_id = self._insert(connection, address, address.split("@")[0], "admin", hashed)
        team = connection.execute(select(_t.id).where(_t.name == DEFAULT_TEAM)).scalar_one()
        connection.execute(insert(members), {"team_id": team, "user_id": user_id})
        return user_id

    def sign_in(
        self, email: str, password: SecretValue, *, address: str | None = None
    ) -> tuple[Person, SecretValue]:
        """The person and the token of a new session. Slow on purpose.

        Raises:
            NotSignedIn: e-mail address and password do not belong together, or the person is disabled.
        """
        try:
            wanted = checked_email(email)
        except UsageError:
            wanted = ""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            row = connection.execute(select(users).where(_u.email == wanted)).one_or_none()
        good = fits(row.password if row else None, password)
        actor = Actor(row.email if row else "somebody", address)
        token = random.token_urlsafe(32)

        def act(connection: Connection) -> Done[Person]:
            person = self._need(connection, row.id) if row else None
            if not good or person is None or person.disabled_at is not None:
                raise NotSignedIn("that e-mail address and password do not belong together")
            now = self._clock()
            values = {
                "hash": _digest(token),
                "user_id": person.id,
                "created_at": timestamp(now),
                "seen_at": timestamp(now),
                "expires_at": timestamp(now + SESSION),
            }
            connection.execute(delete(sessions).where(sessions.c.expires_at < timestamp(now)))
            connection.execute(insert(sessions), values)
            return Done(person, [Entry(actor, "session.create", person.email)])

        person = self._writer.run(Entry(actor, "session.create", row.email if row else "unknown"), act)
        return person, SecretValue(token.encode())

    def session(self, token: str) -> Person | None:
        """Whose session that is, if it still is one; it lasts on while it is used."""
        hashed, now = _digest(token), self._clock()
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            row = _SESSION.one(connection, {"hash": hashed})
            if row is None or row.expires_at <= timestamp(now):
                return None
            person = self._need(connection, row.user_id)
        if person.disabled_at is not None:
            return None
        if row.seen_at < timestamp(now - _SEEN_EVERY):
            self._seen(hashed, person)
        return person

    def _seen(self, hashed: bytes, person: Person) -> None:
        def act(connection: Connection) -> Done[None]:
            now = self._clock()
            values = {"seen_at": timestamp(now), "expires_at": timestamp(now + SESSION)}
            connection.execute(update(sessions).where(sessions.c.hash == hashed).values(**values))
            return Done(None, [])

        self._writer.run(Entry(person.email, "session.use", person.email), act)

    def sign_out(self, token: str, *, actor: str) -> None:
        def act(connection: Connection) -> Done[None]:
            connection.execute(delete(sessions).where(sessions.c.hash == _digest(token)))
            return Done(None, [Entry(actor, "session.end", actor)])

        self._writer.run(Entry(actor, "session.end", actor), act)

    def change_password(
        self, person: Person, old: SecretValue, new: SecretValue, *, keep: str, actor: str
    ) -> None:
        """A new password; every session but that of the token `keep` ends.

        Raises:
            Denied: `old` is not the password.
            InvalidValue: see `hash_password`.
        """
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            stored = connection.execute(select(_u.password).where(_u.id == person.id)).scalar_one()
        good, hashed = fits(stored, old), hash_password(new)

        def act(connection: Connection) -> Done[None]:
            if not good:
                raise Denied("that is not the password you have now")
            connection.execute(update(users).where(_u.id == person.id).values(password=hashed))
            connection.execute(
                delete(sessions).where(sessions.c.user_id == person.id, sessions.c.hash != _digest(keep))
            )
            return Done(None, [Entry(actor, "person.password", person.email)])

        self._writer.run(Entry(actor, "person.password", person.email), act)

    # --- people come and go

    def invite(
        self, email: str, *, name: str | None = None, role: Role, team_ids: Collection[str], actor: str
    ) -> tuple[Person, SecretValue]:
        """Add a person; the link's key lets them choose a password, once, within three days.

        Raises:
            UsageError: the address or the role is none.
            Conflict: somebody has that address.
            NotFound: a team that is not there.
        """
        address = checked_email(email)
        if role not in ROLES:
            raise UsageError(f"a role is one of {', '.join(ROLES)}")

        def act(connection: Connection) -> Done[tuple[Person, SecretValue]]:
            if connection.execute(select(_u.id).where(_u.email == address)).one_or_none():
                raise Conflict(f"{address} is there already")
            user_id = self._insert(
                connection, address, (name or "").strip() or address.split("@")[0], role, None
            )
            for team_id in sorted(set(team_ids)):
                self._need_team(connection, team_id)
                connection.execute(insert(members), {"team_id": team_id, "user_id": user_id})
            link = self._link(connection, user_id, actor)
            details = {"role": role, "teams": sorted(set(team_ids))}
            person = self._need(connection, user_id)
            return Done((person, link), [Entry(actor, "person.create", address, details=details)])

        return self._writer.run(Entry(actor, "person.create", address), act)

    def new_link(self, user_id: str, *, actor: str) -> SecretValue:
        """Another link to choose a password with, for who lost it; earlier links end."""

        def act(connection: Connection) -> Done[SecretValue]:
            person = self._need(connection, user_id)
            return Done(self._link(connection, user_id, actor), [Entry(actor, "person.link", person.email)])

        return self._writer.run(Entry(actor, "person.link", user_id), act)

    def accept(self, link: SecretValue, password: SecretValue, *, address: str | None = None) -> Person:
        """Choose a password by a link, which then is spent.

        Raises:
            NotSignedIn: the link is spent, expired or none.
            InvalidValue: see `hash_password`.
        """
        info = self._keys.check(link, kinds=("link",))
        hashed = hash_password(password)

        def act(connection: Connection) -> Done[Person]:
            person = self._need(connection, info.user_id or "")
            spent = connection.execute(
                update(access_keys)
                .where(access_keys.c.prefix == info.prefix, access_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._now())
            )
            if not spent.rowcount or person.disabled_at is not None:
                raise NotSignedIn("that link was used already")
            connection.execute(update(users).where(_u.id == person.id).values(password=hashed))
            connection.execute(delete(sessions).where(sessions.c.user_id == person.id))
            who = Actor(person.email, address)
            return Done(self._need(connection, person.id), [Entry(who, "person.password", person.email)])

        return self._writer.run(Entry(Actor("somebody", address), "person.password", info.prefix), act)

    def link_of(self, link: SecretValue) -> KeyInfo:
        """What a link is for. Raises NotSignedIn when it is spent, expired or none."""
        return self._keys.check(link, kinds=("link",))

    def set_role(self, user_id: str, role: Role, *, actor: str) -> Person:
        """Raises Conflict when nobody would be left to administer, UsageError for no such role."""
        if role not in ROLES:
            raise UsageError(f"a role is one of {', '.join(ROLES)}")
        return self._change(user_id, actor, "person.role", {"role": role}, role=role)

    def disable(self, user_id: str, *, actor: str) -> Person:
        """End a person's sessions and keys, and let them in no more."""
        return self._change(user_id, actor, "person.disable", {}, disabled_at=self._now())

    def enable(self, user_id: str, *, actor: str) -> Person:
        """Let a person in again; keys that were revoked stay so."""
        return self._change(user_id, actor, "person.enable", {}, disabled_at=None)

    def _change(
        self, user_id: str, actor: str, action: str, details: dict[str, Any], **values: Any
    ) -> Person:
        def act(connection: Connection) -> Done[Person]:
            before = self._need(connection, user_id)
            connection.execute(update(users).where(_u.id == user_id).values(**values))
            touch(connection)
            admins = select(func.count()).where(
                _u.role == "admin", _u.disabled_at.is_(None), _u.password.is_not(None)
            )
            if not connection.execute(admins).scalar_one():
                raise Conflict("nobody would be left to administer", hint="make somebody else admin first")
            if values.get("disabled_at"):
                connection.execute(delete(sessions).where(sessions.c.user_id == user_id))
                revoke_keys(connection, self._now(), access_keys.c.user_id == user_id)
            return Done(
                self._need(connection, user_id), [Entry(actor, action, before.email, details=details)]
            )

        return self._writer.run(Entry(actor, action, user_id), act)

    # --- teams

    def create_team(self, name: str, *, actor: str) -> TeamInfo:
        """Raises UsageError for a name that is empty or long, Conflict for one that is taken."""
        wanted = name.strip()
        if not 1 <= len(wanted) <= 64 or not wanted.isprintable():
            raise UsageError("a team's name has 1 to 64 printable characters")

        def act(connection: Connection) -> Done[TeamInfo]:
            if connection.execute(select(_t.id).where(func.lower(_t.name) == wanted.lower())).one_or_none():
                raise Conflict(f"there is a team {wanted} already")
            row = {"id": new_id(), "name": wanted, "created_at": self._now()}
            connection.execute(insert(teams), row)
            touch(connection)
            team = TeamInfo(row["id"], wanted, False, row["created_at"])
            return Done(team, [Entry(actor, "team.create", wanted, details={"team": team.id})])

        return self._writer.run(Entry(actor, "team.create", wanted), act)

    def add_member(self, team_id: str, user_id: str, *, actor: str) -> None:
        """Put a person in a team; nothing happens when they are in it. Raises NotFound."""

        def act(connection: Connection) -> Done[None]:
            team, person = self._need_team(connection, team_id), self._need(connection, user_id)
            if any(known.id == team_id for known in person.teams):
                return Done(None, [])
            connection.execute(insert(members), {"team_id": team_id, "user_id": user_id})
            touch(connection)
            details = {"person": person.email, "team": team_id}
            return Done(None, [Entry(actor, "team.add_member", team.name, details=details)])

        self._writer.run(Entry(actor, "team.add_member", team_id), act)

    def remove_member(self, team_id: str, user_id: str, *, actor: str) -> None:
        """Take a person out of a team. Raises NotFound."""

        def act(connection: Connection) -> Done[None]:
            team, person = self._need_team(connection, team_id), self._need(connection, user_id)
            connection.execute(
                delete(members).where(members.c.team_id == team_id, members.c.user_id == user_id)
            )
            touch(connection)
            details = {"person": person.email, "team": team_id}
            return Done(None, [Entry(actor, "team.remove_member", team.name, details=details)])

        self._writer.run(Entry(actor, "team.remove_member", team_id), act)

    # --- inside

    def _insert(self, connection: Connection, email: str, name: str, role: Role, password: str | None) -> str:
        user_id = new_id()
        row = {
            "id": user_id,
            "email": email,
            "name": name,
            "role": role,
            "password": password,
            "created_at": self._now(),
        }
        connection.execute(insert(users), row)
        return user_id

    def _link(self, connection: Connection, user_id: str, actor: str) -> SecretValue:
        at = self._now()
        revoke_keys(connection, at, (access_keys.c.user_id == user_id) & (access_keys.c.kind == "link"))
        until = timestamp(self._clock() + LINK)
        link = add_key(
            connection,
            "link",
            at=at,
            name="link",
            allows=(),
            created_by=actor,
            expires_at=until,
            user_id=user_id,
        )
        return link[1]

    def _need(self, connection: Connection, user_id: str) -> Person:
        row = _USER.one(connection, {"id": user_id})
        if row is None:
            raise NotFound("there is no such person")
        return self._person(connection, row)

    def _person(self, connection: Connection, row: Any) -> Person:
        found = _TEAMS_OF.all(connection, {"user": row.id})
        return Person(
            row.id,
            row.email,
            row.name,
            row.role,
            row.created_at,
            row.disabled_at,
            tuple(_sorted(found)),
            row.password is None,
        )

    def _need_team(self, connection: Connection, team_id: str) -> TeamInfo:
        row = connection.execute(select(teams).where(_t.id == team_id)).one_or_none()
        if row is None:
            raise NotFound("there is no such team")
        return _team(row)

    def _now(self) -> str:
        return timestamp(self._clock())


def checked_email(text: str) -> str:
    """An address, in lower case. Raises UsageError for what is none."""
    wanted = text.strip().lower()
    if not _EMAIL.fullmatch(wanted):
        raise UsageError("that is not an e-mail address")
    return wanted


def _sorted(rows: Iterable[Any]) -> list[TeamInfo]:
    """Teams by name, the default one first."""
    return sorted(map(_team, rows), key=lambda team: (not team.default, team.name))


def _team(row: Any) -> TeamInfo:
    return TeamInfo(row.id, row.name, row.name == DEFAULT_TEAM, row.created_at)


def _digest(token: str) -> bytes:
    return hashlib.sha256(b"session:" + token.encode("utf-8", "surrogateescape")).digest()
