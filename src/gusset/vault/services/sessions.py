"""Sign-in and sessions. Session tokens are stored as hashes, like keys.

Passwords are hashed and verified outside the writer: that is slow by design.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from secrets import token_urlsafe

from sqlalchemy import Connection, Engine, bindparam, delete, insert, or_, select, update

from gusset.errors import Denied, NotSignedIn, UsageError
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import Actor, AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.passwords import hash_password, verify_password
from gusset.vault.services.person import Person, check_email, get_person
from gusset.vault.storage.compiled_sql import CompiledStatement
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import sessions, users

SESSION_LIFETIME = timedelta(hours=12)  # without a request
MAX_SESSION_LIFETIME = timedelta(days=7)  # after signing in, whatever happens
_EXTEND_INTERVAL = timedelta(minutes=1)

_u, _s = users.c, sessions.c
_FIND_SESSION = CompiledStatement(
    select(_s.user_id, _s.created_at, _s.seen_at, _s.expires_at).where(_s.hash == bindparam("hash"))
)


class Sessions:
    """Signs people in and out."""

    def __init__(self, engine: Engine, writer: Writer, clock: Clock) -> None:
        self._engine = engine
        self._writer = writer
        self._clock = clock

    def sign_in(
        self, email: str, password: SecretValue, *, address: str | None = None
    ) -> tuple[Person, SecretValue]:
        """The person, and the token of a new session. Slow by design.

        Raises:
            NotSignedIn: the e-mail address or the password is wrong, or the person is disabled.
        """
        try:
            wanted = check_email(email)
        except UsageError:
            wanted = ""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            row = connection.execute(select(users).where(_u.email == wanted)).one_or_none()
        verified = verify_password(row.password if row else None, password)
        actor = Actor(row.email if row else "somebody", address)
        token = token_urlsafe(32)

        def write(connection: Connection) -> WriteResult[Person]:
            person = get_person(connection, row.id) if row else None
            if not verified or person is None or person.disabled_at is not None:
                raise NotSignedIn("the e-mail address or the password is wrong")
            now = self._clock()
            values = {
                "hash": _token_hash(token),
                "user_id": person.id,
                "created_at": timestamp(now),
                "seen_at": timestamp(now),
                "expires_at": timestamp(now + SESSION_LIFETIME),
            }
            ended = or_(_s.expires_at < timestamp(now), _s.created_at < timestamp(now - MAX_SESSION_LIFETIME))
            connection.execute(delete(sessions).where(ended))
            connection.execute(insert(sessions), values)
            return WriteResult(person, [AuditEvent(actor, Action.SESSION_CREATE, person.email)])

        target = row.email if row else "unknown"
        person = self._writer.run(AuditEvent(actor, Action.SESSION_CREATE, target), write)
        return person, SecretValue(token.encode())

    def authenticate(self, token: str) -> Person | None:
        """The person whose session `token` is, None if it has ended. Extends the session, up to a limit."""
        hashed, now = _token_hash(token), self._clock()
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            row = _FIND_SESSION.one(connection, {"hash": hashed})
            if row is None or row.expires_at <= timestamp(now):
                return None
            if row.created_at <= timestamp(now - MAX_SESSION_LIFETIME):
                return None
            person = get_person(connection, row.user_id)
        if person.disabled_at is not None:
            return None
        if row.seen_at < timestamp(now - _EXTEND_INTERVAL):
            self._extend(hashed, person)
        return person

    def _extend(self, hashed: bytes, person: Person) -> None:
        def write(connection: Connection) -> WriteResult[None]:
            now = self._clock()
            values = {"seen_at": timestamp(now), "expires_at": timestamp(now + SESSION_LIFETIME)}
            connection.execute(update(sessions).where(_s.hash == hashed).values(**values))
            return WriteResult(None, [])

        self._writer.run(AuditEvent(person.email, Action.SESSION_USE, person.email), write)

    def sign_out(self, token: str, *, actor: str) -> None:
        """End the session of `token`."""

        def write(connection: Connection) -> WriteResult[None]:
            connection.execute(delete(sessions).where(_s.hash == _token_hash(token)))
            return WriteResult(None, [AuditEvent(actor, Action.SESSION_END, actor)])

        self._writer.run(AuditEvent(actor, Action.SESSION_END, actor), write)

    def change_password(
        self, person: Person, old: SecretValue, new: SecretValue, *, keep: str, actor: str
    ) -> None:
        """Set a new password, and end the person's other sessions: all but that of the token `keep`.

        Raises:
            Denied: `old` is not the current password.
            InvalidValue: see `hash_password`.
        """
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            stored = connection.execute(select(_u.password).where(_u.id == person.id)).scalar_one()
        verified, password_hash = verify_password(stored, old), hash_password(new)

        def write(connection: Connection) -> WriteResult[None]:
            if not verified:
                raise Denied("that is not your current password")
            connection.execute(update(users).where(_u.id == person.id).values(password=password_hash))
            connection.execute(delete(sessions).where(_s.user_id == person.id, _s.hash != _token_hash(keep)))
            return WriteResult(None, [AuditEvent(actor, Action.PERSON_PASSWORD, person.email)])

        self._writer.run(AuditEvent(actor, Action.PERSON_PASSWORD, person.email), write)


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(b"session:" + token.encode("utf-8", "surrogateescape")).digest()
