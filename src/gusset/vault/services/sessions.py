"""Sign-in and sessions. Session tokens are stored as hashes, like keys, and end with an HMAC.

Passwords are hashed and verified outside the writer: that is slow by design.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from secrets import token_urlsafe

from gusset.errors import Denied, NotSignedIn, UsageError
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import Actor, with_rights
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.passwords import hash_password, verify_password
from gusset.vault.services.access_keys import new_access_generation
from gusset.vault.services.people import is_current, renew_sessions
from gusset.vault.services.person import (
    FIND_USER_BY_EMAIL,
    Person,
    check_email,
    get_user,
    person_from_row,
)
from gusset.vault.storage.connection import Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import SESSIONS, USERS

SESSION_LIFETIME = timedelta(hours=12)  # without a request
MAX_SESSION_LIFETIME = timedelta(days=7)  # after signing in, whatever happens
_SEEN_INTERVAL = timedelta(minutes=1)

_PURPOSE = "the tokens of sessions"

_FIND = Select(SESSIONS, "hash = :hash")
_LIST_ENDED = Select(SESSIONS, also="expires_at < :now OR seen_at < :seen_before")
_SET_SEEN = Statement("UPDATE sessions SET seen_at = :at WHERE hash = :hash")


def _nothing(_: Transaction) -> None:
    """What else is written with a session: nothing."""


class Sessions:
    """Signs people in and out."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, *, keys: KeyringStore) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._keys = keys

    def sign_in(
        self,
        email: str,
        password: SecretValue,
        *,
        address: str | None = None,
        also: Callable[[Transaction], None] = _nothing,
    ) -> tuple[Person, SecretValue]:
        """The person, and the token of a new session, begun in one transaction with `also`. Slow by design.

        Raises:
            NotSignedIn: the e-mail address or the password is wrong, or the person is disabled.
        """
        try:
            wanted = check_email(email)
        except UsageError:
            wanted = ""
        with self._store.read() as connection:
            row = connection.one(FIND_USER_BY_EMAIL, {"email": wanted})
        verified = verify_password(row.password if row else None, password)
        actor = Actor(row.email if row else "somebody", address)
        token = _new_token(self._keys.current.derive(_PURPOSE), self._clock())

        def write(transaction: Transaction) -> WriteResult[Person]:
            if row is None or not verified:
                raise NotSignedIn("the e-mail address or the password is wrong")
            user = get_user(transaction, row.id)
            # The verification takes long: the password may have been changed meanwhile.
            if user.password != row.password or user.disabled_at is not None:
                raise NotSignedIn("the e-mail address or the password is wrong")
            person, now = person_from_row(transaction, user), self._clock()
            self._forget_ended(transaction)
            transaction.insert(
                SESSIONS,
                {
                    "hash": _token_hash(token),
                    "user_id": person.id,
                    "created_at": timestamp(now),
                    "expires_at": timestamp(now + MAX_SESSION_LIFETIME),
                    "seen_at": timestamp(now),
                },
            )
            also(transaction)
            acting = with_rights(actor, [USERS.right(user)])  # the password's
            return WriteResult(person, [AuditEvent(acting, Action.SESSION_CREATE, person.email)])

        target = row.email if row else "unknown"
        person = self._writer.run(AuditEvent(actor, Action.SESSION_CREATE, target), write)
        return person, SecretValue(token.encode())

    def _forget_ended(self, transaction: Transaction) -> None:
        now = self._clock()
        ended = {"now": timestamp(now), "seen_before": timestamp(now - SESSION_LIFETIME)}
        rows, _ = transaction.all_valid(_LIST_ENDED, ended)
        for row in rows:
            transaction.delete(SESSIONS, row)

    def authenticate(self, token: str) -> Person | None:
        """The person whose session `token` is, None if it has ended. Records that it was used.

        Their rights rest on the session, too.
        """
        hashed, now = _token_hash(token), self._clock()
        with self._store.snapshot() as connection:
            row = connection.one(_FIND, {"hash": hashed})
            if row is None or row.expires_at <= timestamp(now):
                return None
            # Not signed: SQLite may have any type there.
            if type(row.seen_at) is not str or row.seen_at <= timestamp(now - SESSION_LIFETIME):
                return None
            user = get_user(connection, row.user_id)
            if not is_current(row, user):
                return None
            person = person_from_row(connection, user)
        person = replace(person, rights=(SESSIONS.right(row), *person.rights))
        if row.seen_at < timestamp(now - _SEEN_INTERVAL):
            self._record_use(hashed, person)
        return person

    def _record_use(self, hashed: bytes, person: Person) -> None:
        def write(transaction: Transaction) -> WriteResult[None]:
            transaction.run(_SET_SEEN, {"hash": hashed, "at": timestamp(self._clock())})
            return WriteResult(None, [])

        self._writer.run(AuditEvent(person.email, Action.SESSION_USE, person.email), write)

    def is_genuine(self, token: str) -> bool:
        """Whether `token` was made for a session that may still last, be it that its row was removed."""
        text, _, mac = token.rpartition(".")
        begun_at, given = text.partition(".")[0], mac.encode("utf-8", "surrogateescape")
        if not (begun_at.isascii() and begun_at.isdigit()):
            return False

        def made(key: bytes) -> bool:
            return hmac.compare_digest(given, _token_mac(text, key).encode())

        if self._keys.find_derived(_PURPOSE, made, self._store.read) is None:
            return False
        return int(begun_at) > (self._clock() - MAX_SESSION_LIFETIME).timestamp()

    def sign_out(self, token: str, *, actor: str) -> None:
        """End the session of `token`.

        The audit record names it, also if it has no row any more: somebody who writes the database may have
        removed that since the request was authenticated, to put it back.
        """
        hashed = _token_hash(token)

        def write(transaction: Transaction) -> WriteResult[None]:
            valid, altered = transaction.all_valid(_FIND, {"hash": hashed})
            for row in (*valid, *altered):
                transaction.delete(SESSIONS, row)
            details = {"session": hashed.hex()}
            return WriteResult(None, [AuditEvent(actor, Action.SESSION_END, actor, details=details)])

        self._writer.run(AuditEvent(actor, Action.SESSION_END, actor), write)

    def change_password(
        self,
        person: Person,
        old: SecretValue,
        new: SecretValue,
        *,
        keep: str,
        actor: str,
        also: Callable[[Transaction], None] = _nothing,
    ) -> None:
        """Set a new password, and end the person's other sessions: all but that of the token `keep`.

        `also` is executed in the same transaction.

        Raises:
            Denied: `old` is not the current password.
            InvalidValue: see `hash_password`.
        """
        with self._store.read() as connection:
            stored = get_user(connection, person.id).password
        verified, password_hash = verify_password(stored, old), hash_password(new)

        def write(transaction: Transaction) -> WriteResult[None]:
            user = get_user(transaction, person.id)
            if not verified or user.password != stored:
                raise Denied("that is not your current password")
            transaction.update(USERS, user, password=password_hash)
            new_access_generation(transaction)  # others know the person's row
            renew_sessions(transaction, user, only=_token_hash(keep))
            also(transaction)
            return WriteResult(None, [AuditEvent(actor, Action.PERSON_PASSWORD, person.email)])

        self._writer.run(AuditEvent(actor, Action.PERSON_PASSWORD, person.email), write)


def _new_token(key: bytes, now: datetime) -> str:
    text = f"{int(now.timestamp())}.{token_urlsafe(32)}"
    return f"{text}.{_token_mac(text, key)}"


def _token_mac(text: str, key: bytes) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:32]


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(b"session:" + token.encode("utf-8", "surrogateescape")).digest()
