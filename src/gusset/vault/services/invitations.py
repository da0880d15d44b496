"""Invitations: one-time links with which people choose a password."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import Connection, delete, insert, select, update

from gusset.errors import Conflict, NotSignedIn
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import Actor, AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.passwords import hash_password
from gusset.vault.services.access_keys import AccessKeys, KeyInfo, add_key, revoke_keys
from gusset.vault.services.person import (
    Person,
    Role,
    check_email,
    check_role,
    get_person,
    get_team,
    insert_person,
)
from gusset.vault.storage.tables import access_keys, members, sessions, users

LINK_LIFETIME = timedelta(hours=72)

_u = users.c


class Invitations:
    """Invites people, and lets them choose a password by a link."""

    def __init__(self, writer: Writer, keys: AccessKeys, clock: Clock) -> None:
        self._writer = writer
        self._keys = keys
        self._clock = clock

    def invite(
        self, email: str, *, name: str | None = None, role: Role, team_ids: Collection[str], actor: str
    ) -> tuple[Person, SecretValue]:
        """Add a person. The link lets them choose a password, once, within `LINK_LIFETIME`.

        Raises:
            UsageError: not an e-mail address, or an unknown role.
            Conflict: another account has that address.
            NotFound: there is no such team.
        """
        email = check_email(email)
        check_role(role)
        display_name = (name or "").strip() or email.split("@")[0]

        def write(connection: Connection) -> WriteResult[tuple[Person, SecretValue]]:
            if connection.execute(select(_u.id).where(_u.email == email)).one_or_none():
                raise Conflict(f"there is already a person with the address {email}")
            user_id = insert_person(
                connection, email, name=display_name, role=role, password_hash=None, at=self._now()
            )
            for team_id in sorted(set(team_ids)):
                get_team(connection, team_id)
                connection.execute(insert(members), {"team_id": team_id, "user_id": user_id})
            link = self._link(connection, user_id, actor)
            details = {"role": role, "teams": sorted(set(team_ids))}
            event = AuditEvent(actor, Action.PERSON_CREATE, email, details=details)
            return WriteResult((get_person(connection, user_id), link), [event])

        return self._writer.run(AuditEvent(actor, Action.PERSON_CREATE, email), write)

    def new_link(self, user_id: str, *, actor: str) -> SecretValue:
        """A new link for a person to choose a password with; it replaces their earlier links."""

        def write(connection: Connection) -> WriteResult[SecretValue]:
            person = get_person(connection, user_id)
            link = self._link(connection, user_id, actor)
            return WriteResult(link, [AuditEvent(actor, Action.PERSON_LINK, person.email)])

        return self._writer.run(AuditEvent(actor, Action.PERSON_LINK, user_id), write)

    def _link(self, connection: Connection, user_id: str, actor: str) -> SecretValue:
        at = self._now()
        revoke_keys(connection, at, (access_keys.c.user_id == user_id) & (access_keys.c.kind == "link"))
        _, link = add_key(
            connection,
            "link",
            at=at,
            name="link",
            allows=(),
            created_by=actor,
            expires_at=timestamp(self._clock() + LINK_LIFETIME),
            user_id=user_id,
        )
        return link

    def check_link(self, link: SecretValue) -> KeyInfo:
        """The metadata of a link. Raises NotSignedIn when it is used, expired or unknown."""
        return self._keys.authenticate(link, kinds=("link",))

    def accept(self, link: SecretValue, password: SecretValue, *, address: str | None = None) -> Person:
        """Choose a password by a link, which cannot be used again. The person's sessions end.

        Raises:
            NotSignedIn: the link is used, expired or unknown.
            InvalidValue: see `hash_password`.
        """
        info = self.check_link(link)
        password_hash = hash_password(password)

        def write(connection: Connection) -> WriteResult[Person]:
            person = get_person(connection, info.user_id or "")
            spent = connection.execute(
                update(access_keys)
                .where(access_keys.c.prefix == info.prefix, access_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._now())
            )
            if not spent.rowcount or person.disabled_at is not None:
                raise NotSignedIn("that link was used already")
            connection.execute(update(users).where(_u.id == person.id).values(password=password_hash))
            connection.execute(delete(sessions).where(sessions.c.user_id == person.id))
            event = AuditEvent(Actor(person.email, address), Action.PERSON_PASSWORD, person.email)
            return WriteResult(get_person(connection, person.id), [event])

        intent = AuditEvent(Actor("somebody", address), Action.PERSON_PASSWORD, info.prefix)
        return self._writer.run(intent, write)

    def _now(self) -> str:
        return timestamp(self._clock())
