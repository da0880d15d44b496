"""People: the first administrator, roles, disabling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from gusset.errors import Conflict, TokensLeft
from gusset.secrets.info import DEFAULT_TEAM
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import person_of
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.crypto.passwords import hash_password
from gusset.vault.ids import id_or
from gusset.vault.services.access_keys import ALL_SECRETS, SCOPES, add_key, new_access_generation, revoke_keys
from gusset.vault.services.identities import (
    IdentityInfo,
    identities_made_by,
    identity_infos,
    remove_identities,
)
from gusset.vault.services.person import (
    Person,
    Role,
    check_email,
    check_role,
    get_person,
    get_user,
    insert_person,
    person_from_row,
)
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement, escaped
from gusset.vault.storage.tables import ACCESS_KEYS, IDENTITIES, MEMBERS, SESSIONS, TEAMS, USERS

_ANY = Statement("SELECT id FROM users LIMIT 1")
_LIST = Select(USERS, then="ORDER BY email")
_ADMINS = Select(USERS, "role = 'admin'", "disabled_at IS NULL", "password IS NOT NULL")
_DEFAULT_TEAM = Select(TEAMS, "name = :name")
_TOKENS_MADE_BY = Select(
    ACCESS_KEYS,
    "kind = 'token'",
    "revoked_at IS NULL",
    also="created_by = :email OR created_by LIKE :by_key ESCAPE '/'",
    then="ORDER BY name, prefix",
)
KEYS_OF_USER = Select(ACCESS_KEYS, "user_id = :user")
SESSIONS_OF_USER = Select(SESSIONS, "user_id = :user")

TokenChoice = Literal["revoke", "pass"]
"""What happens to the tokens and identities that a disabled person made."""


class People:
    """Lists people, and changes what they may do."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def has_any(self) -> bool:
        """Whether there is any person; before that, the manager waits to be set up."""
        with self._store.read() as connection:
            return connection.one(_ANY) is not None

    def get(self, user_id: str) -> Person:
        """The person with that id. Raises NotFound."""
        with self._store.snapshot() as connection:
            return get_person(connection, user_id)

    def all(self) -> list[Person]:
        """Everybody, by e-mail address."""
        with self._store.snapshot() as connection:
            return [person_from_row(connection, row) for row in connection.all(_LIST)]

    def create_first(self, email: str, password: SecretValue, *, actor: str) -> tuple[Person, SecretValue]:
        """Create the first administrator with an API key. Slow by design, as it hashes a password.

        Raises:
            UsageError: not an e-mail address.
            InvalidValue: see `hash_password`.
            Conflict: there is a person already.
        """
        password_hash, email = hash_password(password), check_email(email)

        def write(transaction: Transaction) -> WriteResult[tuple[Person, SecretValue]]:
            person = self._insert_first(transaction, email, password_hash)
            info, key = add_key(
                transaction,
                "key",
                at=self._now(),
                name="first key",
                allows=SCOPES,
                gives=(ALL_SECRETS,),
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

        def write(transaction: Transaction) -> WriteResult[Person]:
            person = self._insert_first(transaction, email, password_hash)
            return WriteResult(
                person, [AuditEvent(actor, Action.PERSON_CREATE, email, details={"role": "admin"})]
            )

        return self._writer.run(AuditEvent(actor, Action.PERSON_CREATE, email), write)

    def _insert_first(self, transaction: Transaction, email: str, password_hash: str) -> Person:
        if transaction.one(_ANY) is not None:
            raise Conflict("the manager has an administrator already", hint="sign in, or ask them for a key")
        user = insert_person(
            transaction,
            email,
            name=email.split("@")[0],
            role="admin",
            password_hash=password_hash,
            at=self._now(),
        )
        team: Any = transaction.one(_DEFAULT_TEAM, {"name": DEFAULT_TEAM})
        transaction.insert(MEMBERS, {"team_id": team.id, "user_id": user.id})
        return get_person(transaction, user.id)

    def update(
        self,
        user_id: str,
        *,
        role: Role | None = None,
        disabled: bool | None = None,
        tokens: TokenChoice | None = None,
        actor: str,
    ) -> Person:
        """Change a person's role, disable or enable them, or both: all of it, or nothing.

        Disabling ends their sessions, revokes their keys, and refuses them from now on. `tokens` says what
        happens to the tokens of deployments and to the identities that they made: they are revoked and
        removed, or pass to `actor`. It may be omitted only for somebody who made none.
        Somebody who is enabled can sign in again; revoked keys stay revoked.

        Raises:
            NotFound: there is no such person.
            UsageError: an unknown role.
            Conflict: no administrator would be left.
            TokensLeft: they made tokens or identities, and `tokens` is None.
        """
        if role is None and disabled is None:
            return self.get(user_id)
        if role is not None:
            check_role(role)

        def write(transaction: Transaction) -> WriteResult[Person]:
            before = user = get_user(transaction, user_id)
            events = list[AuditEvent]()
            if role is not None:
                user = transaction.update(USERS, user, role=role)
                events.append(AuditEvent(actor, Action.PERSON_ROLE, user.email, details={"role": role}))
            if disabled:
                user = transaction.update(USERS, user, disabled_at=self._now())
                events += self._end_access(transaction, user, tokens, actor)
            elif disabled is not None:
                user = transaction.update(USERS, user, disabled_at=None)
                events.append(AuditEvent(actor, Action.PERSON_ENABLE, user.email))
            if not disabled:
                renew_sessions(transaction, before)
            new_access_generation(transaction)
            _require_admin(transaction)
            return WriteResult(person_from_row(transaction, user), events)

        return self._writer.run(AuditEvent(actor, _main_action(disabled), id_or(user_id, "a person")), write)

    def _end_access(
        self, transaction: Transaction, user: Any, tokens: TokenChoice | None, actor: str
    ) -> list[AuditEvent]:
        """End what a disabled person could still do, within the caller's transaction.

        Rows that were altered give nothing, and keep nothing from being ended.
        """
        made, _ = transaction.all_valid(
            _TOKENS_MADE_BY, {"email": user.email, "by_key": f"{escaped(user.email)} (key %"}
        )
        identities = identities_made_by(transaction, user.email)
        if (made or identities) and tokens is None:
            raise _tokens_left(user.email, made, identity_infos(transaction, identities))
        end_sessions(transaction, user.id)
        details: dict[str, Any] = {"tokens": tokens or "none"}
        removed: Sequence[AuditEvent] = ()
        if tokens == "pass":  # without the key of the one who does this: they do not end with it
            for table, rows in ((ACCESS_KEYS, made), (IDENTITIES, identities)):
                for row in rows:
                    transaction.update(table, row, created_by=person_of(actor))
            if made:
                details["passed"] = [row.prefix for row in made]
            if identities:
                details["passed_identities"] = [row.name for row in identities]
        else:
            removed = remove_identities(transaction, identities, actor)
        doomed, _ = transaction.all_valid(KEYS_OF_USER, {"user": user.id})
        doomed += made if tokens == "revoke" else []
        if revoked := revoke_keys(transaction, self._now(), doomed):
            details["keys"] = revoked
        return [*removed, AuditEvent(actor, Action.PERSON_DISABLE, user.email, details=details)]

    def _now(self) -> str:
        return timestamp(self._clock())


def _main_action(disabled: bool | None) -> Action:
    """What a refused change is recorded as."""
    if disabled is None:
        return Action.PERSON_ROLE
    return Action.PERSON_DISABLE if disabled else Action.PERSON_ENABLE


def end_sessions(transaction: Transaction, user_id: str) -> None:
    """End a person's sessions: all that were not altered, since those give nothing."""
    rows, _ = transaction.all_valid(SESSIONS_OF_USER, {"user": user_id})
    for row in rows:
        transaction.delete(SESSIONS, row)


def is_current(session: Any, user: Any) -> bool:
    """Whether a session goes on: it was signed after the person's row, or with it.

    Whoever can write the database can remove a session's row while all sessions of the person end, and put it
    back later. So each change of the person's row ends all sessions that are not signed again with it.
    """
    return user.disabled_at is None and session.changed_seq >= user.changed_seq


def renew_sessions(transaction: Transaction, before: Any, *, only: bytes | None = None) -> None:
    """Let a person's sessions go on after a change of the person's row, which was `before`.

    With `only`, that with this hash of its token; the others end.
    """
    rows, _ = transaction.all_valid(SESSIONS_OF_USER, {"user": before.id})
    for row in rows:
        if is_current(row, before) and only in (None, row.hash):
            transaction.update(SESSIONS, row)
        else:
            transaction.delete(SESSIONS, row)


def _tokens_left(email: str, tokens: Sequence[Any], identities: Sequence[IdentityInfo]) -> TokensLeft:
    made = [f"{row.prefix} ({row.name})" for row in tokens]
    made += [f"the identity {info.name} ({info.target})" for info in identities]
    return TokensLeft(
        f"{email} made {len(tokens)} token(s) and {len(identities)} identities, which would still read "
        f"secrets: {', '.join(made)}",
        tokens=[(row.prefix, row.name) for row in tokens],
        identities=[(info.name, info.team, info.deployment) for info in identities],
        hint='set "tokens" to "revoke" or "pass" (to you), to say what happens to them',
    )


def _require_admin(connection: Connection) -> None:
    """Raises Conflict when no administrator can sign in."""
    admins, _ = connection.all_valid(_ADMINS)
    if not admins:
        raise Conflict("no administrator would be left", hint="make another person an administrator first")
