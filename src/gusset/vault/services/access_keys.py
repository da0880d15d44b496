"""API keys, deployment tokens and invitation links: shown once, stored as hashes.

A key is `gusset_key_PREFIX_REST` (a person's), `gusset_tok_PREFIX_REST` (a
deployment's token) or `gusset_lnk_PREFIX_REST` (a one-time link to choose a
password). The prefix identifies it; the whole, 256 random bits, is known only
to its holder.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from gusset.errors import Denied, NotFound, NotSignedIn, UsageError
from gusset.secrets.name import MAX_LENGTH, check_name
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import key_of
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.services.makers import FIND_KEY, check_account, check_keys
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.meta import ACCESS_GENERATION, WRITE_META
from gusset.vault.storage.signed_rows import Right, Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import ACCESS_KEYS

Kind = Literal["key", "token", "link"]
_MARK: dict[Kind, str] = {"key": "gusset_key_", "token": "gusset_tok_", "link": "gusset_lnk_"}
_FORMAT = re.compile(r"gusset_(?:key|tok|lnk)_([a-z2-7]{8})_[A-Za-z0-9_-]{43}")

Scope = Literal["secrets:read", "secrets:write", "deployments", "admin"]
SCOPES: tuple[Scope, ...] = ("secrets:read", "secrets:write", "deployments", "admin")
ALL_SECRETS = "*"  # in `KeyInfo.gives`: every secret of the person's teams
MAX_GIVES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """The metadata of a key.

    `allows` are the scopes of a person's key, the names of secrets of a token. `gives` are
    the secrets that a person's key may give to deployments. `rights` are the rows on which
    it rests, of a key that was authenticated.
    """

    prefix: str
    kind: Kind
    name: str
    allows: tuple[str, ...]
    created_at: str
    created_by: str
    expires_at: str | None
    last_used_at: str | None = None
    revoked_at: str | None = None
    user_id: str | None = None
    deployment_id: str | None = None
    gives: tuple[str, ...] = ()
    rights: tuple[Right, ...] = ()

    def is_valid(self, now: str) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def prefix_of(key: str) -> str | None:
    """The prefix that identifies a key, None for a text that does not look like one."""
    match = _FORMAT.fullmatch(key)
    return match[1] if match else None


def key_hash(key: SecretValue) -> bytes:
    """The hash by which a key is stored. SHA-256 suffices, since a key has 256 random bits."""
    return hashlib.sha256(key.reveal()).digest()


_OF_USER = Select(ACCESS_KEYS, "user_id = :id", "kind = 'key'", then="ORDER BY created_at DESC, prefix")
_OF_DEPLOYMENT = Select(ACCESS_KEYS, "deployment_id = :id", then="ORDER BY created_at DESC, prefix")
_LINKS_OF_USER = Select(ACCESS_KEYS, "user_id = :id", "kind = 'link'")
_MADE_BY = Select(ACCESS_KEYS, "revoked_at IS NULL", also="created_by LIKE :maker ESCAPE '/'")
_SET_LAST_USED = Statement("UPDATE access_keys SET last_used_at = :at WHERE prefix = :prefix")


def new_access_generation(transaction: Transaction) -> None:
    """Invalidate what others have cached about access, within the caller's transaction."""
    transaction.changes_access = True
    transaction.run(WRITE_META, {"key": ACCESS_GENERATION, "value": os.urandom(8).hex()})


def add_key(
    transaction: Transaction,
    kind: Kind,
    *,
    at: str,
    name: str,
    allows: Sequence[str],
    created_by: str,
    expires_at: str | None,
    user_id: str | None = None,
    deployment_id: str | None = None,
    gives: Sequence[str] = (),
) -> tuple[KeyInfo, SecretValue]:
    """Make a key and store its hash, within the caller's transaction.

    It expires no later than the key by which `created_by` makes it, if there is one.

    Raises:
        NotSignedIn: that key was revoked meanwhile.
    """
    prefix = base64.b32encode(os.urandom(5)).decode().lower()
    rest = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    key = SecretValue(f"{_MARK[kind]}{prefix}_{rest}".encode())
    row = transaction.insert(
        ACCESS_KEYS,
        {
            "prefix": prefix,
            "hash": key_hash(key),
            "kind": kind,
            "user_id": user_id,
            "deployment_id": deployment_id,
            "name": name,
            "allows": json.dumps(list(allows)),
            "gives": json.dumps(list(gives)) if kind == "key" else None,
            "created_at": at,
            "created_by": str(created_by),
            "expires_at": _capped_expiry(transaction, expires_at, created_by),
        },
    )
    new_access_generation(transaction)
    return _info(row), key


def revoke_keys(transaction: Transaction, at: str, rows: Sequence[Any]) -> list[str]:
    """Revoke the keys in `rows` that are not revoked yet, within the caller's transaction.

    Also revokes the keys and tokens made with them. Returns the prefixes of all that it revoked.
    Rows that were altered give nothing, and keep nothing from being revoked.
    """
    revoked: list[str] = []
    while rows := [row for row in rows if row.revoked_at is None and row.prefix not in revoked]:
        for row in rows:
            transaction.update(ACCESS_KEYS, row, revoked_at=at)
            revoked.append(row.prefix)
        makers = [{"maker": f"% (key {row.prefix})"} for row in rows]
        rows = [each for maker in makers for each in transaction.all_valid(_MADE_BY, maker)[0]]
    new_access_generation(transaction)
    return revoked


def is_replaced(link: Any, links: Sequence[Any]) -> bool:
    """Whether any of a person's `links` changed after this one: a new one revokes the others."""
    return any(each.changed_seq > link.changed_seq for each in links)


def _capped_expiry(connection: Connection, expires_at: str | None, created_by: str) -> str | None:
    maker = key_of(created_by)
    if maker is None:  # a session, or a command on the machine of the vault
        return expires_at
    row = connection.one(FIND_KEY, {"prefix": maker})
    if row is None or row.revoked_at is not None:
        raise NotSignedIn(f"the key {maker} was revoked")
    return min((each for each in (expires_at, row.expires_at) if each is not None), default=None)


class AccessKeys:
    """Authenticates by keys of every kind, creates people's keys, and revokes."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def authenticate(self, key: SecretValue, *, kinds: Sequence[Kind]) -> KeyInfo:
        """What is stored about `key`, if it is valid.

        Raises:
            NotSignedIn: it is unknown, altered, expired, revoked or of another kind; or its maker's key or
                account has ended, or it is a link that was replaced: see `makers`.
        """
        try:
            text = key.reveal().decode("ascii")
        except UnicodeDecodeError:
            text = ""
        prefix = prefix_of(text)
        if prefix is None:
            raise NotSignedIn("that is not a gusset key")
        with self._store.read() as connection:
            row = connection.one(FIND_KEY, {"prefix": prefix})
            if row is None or not hmac.compare_digest(row.hash, key_hash(key)) or row.kind not in kinds:
                raise NotSignedIn("that key is unknown here")
            info = _info(row)
            if info.revoked_at is not None:
                raise NotSignedIn(f"the key {prefix} was revoked", ended=True)
            if not info.is_valid(timestamp(self._clock())):
                raise NotSignedIn(f"the key {prefix} has expired", hint="create a new one", ended=True)
            makers = self._check_makers(connection, row)
        return replace(info, rights=(ACCESS_KEYS.right(row), *makers))

    def _check_makers(self, connection: Connection, row: Any) -> list[Right]:
        rights = check_keys(connection, row.created_by)
        if row.kind == "token":
            rights += check_account(connection, row.created_by)
        if row.kind == "link":
            links, _ = connection.all_valid(_LINKS_OF_USER, {"id": row.user_id})
            if is_replaced(row, links):
                raise NotSignedIn("that link was replaced by a newer one", ended=True)
        return rights

    def record_uses(self, uses: Mapping[str, str]) -> None:
        """Store when keys were last used, by prefix: all in one transaction."""
        rows = [{"prefix": prefix, "at": at} for prefix, at in uses.items()]

        def write(transaction: Transaction) -> WriteResult[None]:
            transaction.run_many(_SET_LAST_USED, rows)
            return WriteResult(None, [])

        self._writer.run(AuditEvent("gusset", Action.KEY_USE, "keys"), write)

    def create(
        self,
        user_id: str,
        name: str,
        *,
        scopes: Sequence[str],
        gives: Sequence[str],
        actor: str,
        expires_at: datetime | None = None,
    ) -> tuple[KeyInfo, SecretValue]:
        """Create a key for a person. The key itself cannot be read again.

        With the scope `deployments` it can give the secrets `gives` to deployments; `ALL_SECRETS`
        stands for every secret of the person's teams.

        Raises:
            InvalidName: `gives` has a text that is no name.
            UsageError: an invalid name, an unknown scope or none, too many names, or an expiry in the past.
        """
        check_display_name(name, "an API key's name")
        known = f"known scopes: {', '.join(SCOPES)}"
        if unknown := sorted(set(scopes) - set(SCOPES)):
            raise UsageError(f"unknown scope: {', '.join(unknown)}", hint=known)
        if not scopes:
            raise UsageError("a key needs at least one scope", hint=known)
        given = checked_gives(gives)
        expiry = expiry_text(expires_at, self._clock())

        def write(transaction: Transaction) -> WriteResult[tuple[KeyInfo, SecretValue]]:
            info, key = add_key(
                transaction,
                "key",
                at=timestamp(self._clock()),
                name=name,
                allows=scopes,
                created_by=actor,
                expires_at=expiry,
                user_id=user_id,
                gives=given,
            )
            details = {"name": name, "scopes": list(scopes), "gives": given, "expires_at": info.expires_at}
            event = AuditEvent(actor, Action.API_KEY_CREATE, info.prefix, details=details)
            return WriteResult((info, key), [event])

        return self._writer.run(AuditEvent(actor, Action.API_KEY_CREATE, name), write)

    def of_user(self, user_id: str) -> list[KeyInfo]:
        """A person's keys, newest first."""
        return self._list(_OF_USER, user_id)

    def of_deployment(self, deployment_id: str) -> list[KeyInfo]:
        """A deployment's tokens, newest first."""
        return self._list(_OF_DEPLOYMENT, deployment_id)

    def _list(self, select: Select, owner: str) -> list[KeyInfo]:
        with self._store.read() as connection:
            return [_info(row) for row in connection.all(select, {"id": owner})]

    def revoke(self, prefix: str, *, actor: str, allowed: Callable[[KeyInfo], bool]) -> KeyInfo:
        """Revoke a key for good, and the keys and tokens that were made by it.

        To a caller for whom `allowed` is false, the key does not exist.

        Raises:
            NotFound: there is no such key, for this caller.
        """

        def write(transaction: Transaction) -> WriteResult[KeyInfo]:
            row = transaction.one(FIND_KEY, {"prefix": prefix})
            if row is None or not allowed(info := _info(row)):
                raise NotFound(f"there is no key {prefix}")
            revoked = revoke_keys(transaction, timestamp(self._clock()), [row])
            made = [each for each in revoked if each != prefix]
            details = {"name": info.name, **({"made by it": made} if made else {})}
            action = Action.API_KEY_REVOKE if info.kind == "key" else Action.TOKEN_REVOKE
            return WriteResult(info, [AuditEvent(actor, action, prefix, details=details)])

        return self._writer.run(AuditEvent(actor, Action.API_KEY_REVOKE, "a key"), write)

    def record_refusal(self, actor: str, target: str, error: Denied) -> None:
        """Record that a request of `actor` was refused."""

        def write(_: Transaction) -> WriteResult[None]:
            details = {"why": error.message}
            event = AuditEvent(actor, Action.REQUEST_REFUSE, target, outcome=error.code, details=details)
            return WriteResult(None, [event])

        self._writer.run(AuditEvent(actor, Action.REQUEST_REFUSE, target), write)


def checked_gives(names: Sequence[str]) -> list[str]:
    """The names that a key gives, sorted. Raises InvalidName, and UsageError for too many."""
    if len(names) > MAX_GIVES:
        raise UsageError(
            f"a key can name at most {MAX_GIVES} secrets", hint=f'"{ALL_SECRETS}" is all of them'
        )
    if ALL_SECRETS in names:
        return [ALL_SECRETS]
    return sorted({check_name(name) for name in names})


def check_display_name(name: str, what: str) -> None:
    """Raises UsageError for a name that cannot be shown as it is. `what` begins the message."""
    if not 1 <= len(name) <= MAX_LENGTH or not name.isprintable():
        raise UsageError(f"{what} must have 1 to {MAX_LENGTH} printable characters")


def expiry_text(moment: datetime | None, now: datetime) -> str | None:
    """An expiry date as it is stored. Raises UsageError for one in the past."""
    if moment is None:
        return None
    if moment <= now:
        raise UsageError("the expiry date is in the past")
    return timestamp(moment)


def _info(row: Any) -> KeyInfo:
    return KeyInfo(
        prefix=row.prefix,
        kind=row.kind,
        name=row.name,
        allows=tuple(json.loads(row.allows)),
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        user_id=row.user_id,
        deployment_id=row.deployment_id,
        gives=tuple(json.loads(row.gives or "[]")),
    )
