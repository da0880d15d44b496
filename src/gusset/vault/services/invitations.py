"""Invitations: one-time links with which people choose a password."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from gusset.errors import Conflict, NotSignedIn
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import Actor
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.passwords import hash_password
from gusset.vault.ids import id_or
from gusset.vault.services.access_keys import (
    AccessKeys,
    KeyInfo,
    add_key,
    check_display_name,
    is_replaced,
    revoke_keys,
)
from gusset.vault.services.people import KEYS_OF_USER, end_sessions
from gusset.vault.services.person import (
    FIND_USER_BY_EMAIL,
    Person,
    Role,
    check_email,
    check_role,
    get_person,
    get_team,
    get_user,
    insert_person,
    person_from_row,
)
from gusset.vault.storage.connection import Transaction
from gusset.vault.storage.tables import MEMBERS, USERS

LINK_LIFETIME = timedelta(hours=72)


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
            UsageError: not an e-mail address, an unknown role, or a name that cannot be shown.
            Conflict: another account has that address.
            NotFound: there is no such team.
        """
        email = check_email(email)
        check_role(role)
        display_name = (name or "").strip() or email.split("@")[0]
        check_display_name(display_name, "a person's name")

        def write(transaction: Transaction) -> WriteResult[tuple[Person, SecretValue]]:
            if transaction.one(FIND_USER_BY_EMAIL, {"email": email}) is not None:
                raise Conflict(f"there is already a person with the address {email}")
            user = insert_person(
                transaction, email, name=display_name, role=role, password_hash=None, at=self._now()
            )
            for team_id in sorted(set(team_ids)):
                get_team(transaction, team_id)
                transaction.insert(MEMBERS, {"team_id": team_id, "user_id": user.id})
            link = self._link(transaction, user.id, actor)
            details = {"role": role, "teams": sorted(set(team_ids))}
            event = AuditEvent(actor, Action.PERSON_CREATE, email, details=details)
            return WriteResult((get_person(transaction, user.id), link), [event])

        return self._writer.run(AuditEvent(actor, Action.PERSON_CREATE, email), write)

    def new_link(self, user_id: str, *, actor: str) -> SecretValue:
        """A new link for a person to choose a password with; it replaces their earlier links."""

        def write(transaction: Transaction) -> WriteResult[SecretValue]:
            person = get_user(transaction, user_id)
            link = self._link(transaction, user_id, actor)
            return WriteResult(link, [AuditEvent(actor, Action.PERSON_LINK, person.email)])

        return self._writer.run(AuditEvent(actor, Action.PERSON_LINK, id_or(user_id, "a person")), write)

    def _link(self, transaction: Transaction, user_id: str, actor: str) -> SecretValue:
        at, (keys, _) = self._now(), transaction.all_valid(KEYS_OF_USER, {"user": user_id})
        revoke_keys(transaction, at, [key for key in keys if key.kind == "link"])
        _, link = add_key(
            transaction,
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

        def write(transaction: Transaction) -> WriteResult[Person]:
            user = get_user(transaction, info.user_id or "")
            keys, _ = transaction.all_valid(KEYS_OF_USER, {"user": user.id})
            links = [key for key in keys if key.kind == "link"]
            used = [key for key in links if key.prefix == info.prefix and not is_replaced(key, links)]
            if not revoke_keys(transaction, self._now(), used) or user.disabled_at is not None:
                raise NotSignedIn("that link was used already")
            user = transaction.update(USERS, user, password=password_hash)
            end_sessions(transaction, user.id)
            details = {"link": info.prefix}
            event = AuditEvent(
                Actor(user.email, address), Action.PERSON_PASSWORD, user.email, details=details
            )
            return WriteResult(person_from_row(transaction, user), [event])

        intent = AuditEvent(Actor("somebody", address), Action.PERSON_PASSWORD, info.prefix)
        return self._writer.run(intent, write)

    def _now(self) -> str:
        return timestamp(self._clock())
