"""People: the first administrator, roles, disabling."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from gusset.errors import Conflict
from gusset.secrets.info import DEFAULT_TEAM
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.passwords import hash_password
from gusset.vault.services.access_keys import SCOPES, add_key, new_access_generation, revoke_keys
from gusset.vault.services.person import (
    Person,
    Role,
    check_email,
    check_role,
    get_person,
    insert_person,
    person_from_row,
)
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import access_keys, members, sessions, teams, users

_u = users.c


class People:
    """Lists people, and changes what they may do."""

    def __init__(self, engine: Engine, writer: Writer, clock: Clock) -> None:
        self._engine = engine
        self._writer = writer
        self._clock = clock

    def has_any(self) -> bool:
        """Whether there is any person; before that, the manager waits to be set up."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return connection.execute(select(_u.id).limit(1)).one_or_none() is not None

    def get(self, user_id: str) -> Person:
        """The person with that id. Raises NotFound."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return get_person(connection, user_id)

    def all(self) -> list[Person]:
        """Everybody, by e-mail address."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(select(users).order_by(_u.email)).all()
            return [person_from_row(connection, row) for row in rows]

    def create_first(self, email: str, password: SecretValue, *, actor: str) -> tuple[Person, SecretValue]:
        """Create the first administrator with an API key. Slow by design, as it hashes a password.

        Raises:
            UsageError: not an e-mail address.
            InvalidValue: see `hash_password`.
            Conflict: there is a person already.
        """
        password_hash, email = hash_password(password), check_email(email)

        def write(connection: Connection) -> WriteResult[tuple[Person, SecretValue]]:
            person = self._insert_first(connection, email, password_hash)
            info, key = add_key(
                connection,
                "key",
                at=self._now(),
                name="first key",
                allows=SCOPES,
                created_by=actor,
                expires_at=None,
                user_id=person.id,
            )
            created = AuditEvent(actor, Action.PERSON_CREATE, email, details={"role": "admin"})
            return WriteResult(
                (person, key), [created, AuditEvent(actor, Action.API_KEY_CREATE, info.prefix)]
            )

        return self._writer.run(AuditEvent(actor, Action.PERSON_CREATE, email), write)

    def set_up(self, email: str, password: SecretValue, *, actor: str) -> Person:
        """Create the first administrator, without a key. Raises the same errors as `create_first`."""
        password_hash, email = hash_password(password), check_email(email)

        def write(connection: Connection) -> WriteResult[Person]:
            person = self._insert_first(connection, email, password_hash)
            return WriteResult(
                person, [AuditEvent(actor, Action.PERSON_CREATE, email, details={"role": "admin"})]
            )

        return self._writer.run(AuditEvent(actor, Action.PERSON_CREATE, email), write)

    def _insert_first(self, connection: Connection, email: str, password_hash: str) -> Person:
        if connection.execute(select(_u.id).limit(1)).one_or_none():
            raise Conflict("the manager has an administrator already", hint="sign in, or ask them for a key")
        user_id = insert_person(
            connection,
            email,
            name=email.split("@")[0],
            role="admin",
            password_hash=password_hash,
            at=self._now(),
        )
        team_id = connection.execute(select(teams.c.id).where(teams.c.name == DEFAULT_TEAM)).scalar_one()
        connection.execute(insert(members), {"team_id": team_id, "user_id": user_id})
        return get_person(connection, user_id)

    def set_role(self, user_id: str, role: Role, *, actor: str) -> Person:
        """Raises Conflict when no administrator would be left, UsageError for an unknown role."""
        check_role(role)
        return self._change(user_id, actor, Action.PERSON_ROLE, details={"role": role}, role=role)

    def disable(self, user_id: str, *, actor: str) -> Person:
        """End a person's sessions, revoke their keys and what these made, and refuse them from now on.

        Raises:
            Conflict: no administrator would be left.
        """
        return self._change(user_id, actor, Action.PERSON_DISABLE, details={}, disabled_at=self._now())

    def enable(self, user_id: str, *, actor: str) -> Person:
        """Let a disabled person sign in again; revoked keys stay revoked."""
        return self._change(user_id, actor, Action.PERSON_ENABLE, details={}, disabled_at=None)

    def _change(
        self, user_id: str, actor: str, action: Action, *, details: dict[str, Any], **values: str | None
    ) -> Person:
        def write(connection: Connection) -> WriteResult[Person]:
            email = get_person(connection, user_id).email
            revoked: list[str] = []
            connection.execute(update(users).where(_u.id == user_id).values(**values))
            new_access_generation(connection)
            _require_admin(connection)
            if values.get("disabled_at"):
                connection.execute(delete(sessions).where(sessions.c.user_id == user_id))
                revoked = revoke_keys(connection, self._now(), access_keys.c.user_id == user_id)
            event = AuditEvent(actor, action, email, details=details | ({"keys": revoked} if revoked else {}))
            return WriteResult(get_person(connection, user_id), [event])

        return self._writer.run(AuditEvent(actor, action, user_id), write)

    def _now(self) -> str:
        return timestamp(self._clock())


def _require_admin(connection: Connection) -> None:
    """Raises Conflict when no administrator can sign in."""
    admins: Any = select(func.count()).where(
        _u.role == "admin", _u.disabled_at.is_(None), _u.password.is_not(None)
    )
    if not connection.execute(admins).scalar_one():
        raise Conflict("no administrator would be left", hint="make another person an administrator first")
