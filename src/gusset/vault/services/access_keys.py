"""Who may come in: keys that are shown once and kept as hashes, and what each of them allows.

A key is `gusset_key_PREFIX_REST` (a person's), `gusset_tok_PREFIX_REST` (a
deployment's) or `gusset_lnk_PREFIX_REST` (for setting a password, once). The
prefix names it; the whole, 256 random bits, is known to its holder alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, bindparam, insert, select, update

from gusset.errors import Denied, NotFound, NotSignedIn, UsageError
from gusset.secrets.value import SecretValue
from gusset.vault.audit.audit_log import Clock, Entry, timestamp
from gusset.vault.commit.writer import Done, Writer
from gusset.vault.storage.compiled_sql import Prepared
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.tables import access_keys, meta

Kind = Literal["key", "token", "link"]
_MARK: dict[Kind, str] = {"key": "gusset_key_", "token": "gusset_tok_", "link": "gusset_lnk_"}
_SHAPE = re.compile(r"gusset_(?:key|tok|lnk)_([a-z2-7]{8})_[A-Za-z0-9_-]{43}")

Scope = Literal["secrets:read", "secrets:write", "deployments", "admin"]
SCOPES: tuple[Scope, ...] = ("secrets:read", "secrets:write", "deployments", "admin")


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be said of a key: everything but the key."""

    prefix: str
    kind: Kind
    name: str
    allows: tuple[str, ...]
    created_at: str
    created_by: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None
    user_id: str | None = None
    deployment_id: str | None = None

    def good(self, now: str) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def prefix_of(key: str) -> str | None:
    """The prefix that names a key, None for what has not the shape of one."""
    match = _SHAPE.fullmatch(key)
    return match[1] if match else None


def digest(key: SecretValue) -> bytes:
    """What is stored of a key. A fast hash is right for 256 random bits."""
    return hashlib.sha256(key.reveal()).digest()


_k = access_keys.c
_columns = [_k.prefix, _k.kind, _k.name, _k.allows, _k.created_at, _k.created_by, _k.expires_at]
_columns += [_k.last_used_at, _k.revoked_at, _k.user_id, _k.deployment_id]
_FIND = Prepared(select(*_columns, _k.hash).where(_k.prefix == bindparam("prefix")))
_ADD = insert(access_keys)

# Changes whenever a key, a person, a team or a deployment does: what was found out before may be wrong then.
GENERATION = Prepared(select(meta.c.value).where(meta.c.key == bindparam("key")))
ACCESS = "access"
_TOUCH = Prepared(update(meta).where(meta.c.key == bindparam("b_key")).values(value=bindparam("b_value")))


def touch(connection: Connection) -> None:
    """Let everybody who remembers who may do what look again; within the caller's transaction."""
    _TOUCH.run(connection, {"b_key": ACCESS, "b_value": os.urandom(8).hex()})


def add_key(
    connection: Connection,
    kind: Kind,
    *,
    at: str,
    name: str,
    allows: Sequence[str],
    created_by: str,
    expires_at: str | None,
    user_id: str | None = None,
    deployment_id: str | None = None,
) -> tuple[KeyInfo, SecretValue]:
    """Make a key and store its hash, within the caller's transaction."""
    prefix = base64.b32encode(os.urandom(5)).decode().lower()
    rest = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    key = f"{_MARK[kind]}{prefix}_{rest}"
    row = {
        "prefix": prefix,
        "kind": kind,
        "name": name,
        "allows": json.dumps(list(allows)),
        "created_at": at,
        "created_by": str(created_by),
        "expires_at": expires_at,
        "user_id": user_id,
        "deployment_id": deployment_id,
    }
    value = SecretValue(key.encode())
    connection.execute(_ADD, {**row, "hash": digest(value)})
    touch(connection)
    info = KeyInfo(
        prefix,
        kind,
        name,
        tuple(allows),
        at,
        str(created_by),
        expires_at,
        None,
        None,
        user_id,
        deployment_id,
    )
    return info, value


def revoke_keys(connection: Connection, at: str, condition: Any) -> None:
    """Revoke the live keys that meet `condition`, within the caller's transaction."""
    connection.execute(update(access_keys).where(condition, _k.revoked_at.is_(None)).values(revoked_at=at))
    touch(connection)


class AccessKeys:
    """Looks keys up, makes those of people, and revokes."""

    def __init__(self, engine: Engine, writer: Writer, clock: Clock) -> None:
        self._engine = engine
        self._writer = writer
        self._clock = clock

    def check(self, key: SecretValue, *, kinds: Sequence[Kind]) -> KeyInfo:
        """The key that this is, when it is good.

        Raises:
            NotSignedIn: it is unknown, altered, expired, revoked or of another kind.
        """
        try:
            text = key.reveal().decode("ascii")
        except UnicodeDecodeError:
            text = ""
        prefix = prefix_of(text)
        if prefix is None:
            raise NotSignedIn("that is not a key of gusset")
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            row = _FIND.one(connection, {"prefix": prefix})
        if row is None or not hmac.compare_digest(row.hash, digest(key)) or row.kind not in kinds:
            raise NotSignedIn("that key is not known here")
        info = _info(row)
        if info.revoked_at is not None:
            raise NotSignedIn(f"the key {prefix} was revoked")
        if not info.good(self._now()):
            raise NotSignedIn(f"the key {prefix} has expired", hint="make a new one")
        return info

    def used(self, info: KeyInfo) -> None:
        """Note that a key was used now. Callers do so once a minute, not at each use."""

        def act(connection: Connection) -> Done[None]:
            connection.execute(
                update(access_keys).where(_k.prefix == info.prefix).values(last_used_at=self._now())
            )
            return Done(None, [])

        self._writer.run(Entry("gusset", "key.use", info.prefix), act)

    def create(
        self,
        user_id: str,
        name: str,
        *,
        scopes: Sequence[str],
        actor: str,
        expires_at: datetime | None = None,
    ) -> tuple[KeyInfo, SecretValue]:
        """A key of a person; it is never shown again.

        Raises:
            UsageError: an unknown scope, no scope, or an expiry that is past.
        """
        if unknown := sorted(set(scopes) - set(SCOPES)):
            raise UsageError(f"no such scope: {', '.join(unknown)}", hint=f"known: {', '.join(SCOPES)}")
        if not scopes:
            raise UsageError("a key without a scope could do nothing", hint=f"known: {', '.join(SCOPES)}")
        until = until_text(expires_at, self._clock())

        def act(connection: Connection) -> Done[tuple[KeyInfo, SecretValue]]:
            made = add_key(
                connection,
                "key",
                at=self._now(),
                name=name,
                allows=scopes,
                created_by=actor,
                expires_at=until,
                user_id=user_id,
            )
            details = {"name": name, "scopes": list(scopes), "expires_at": until}
            return Done(made, [Entry(actor, "api_key.create", made[0].prefix, details=details)])

        return self._writer.run(Entry(actor, "api_key.create", name), act)

    def of_user(self, user_id: str) -> list[KeyInfo]:
        """A person's keys, newest first."""
        return self._list(_k.user_id == user_id, _k.kind == "key")

    def of_deployment(self, deployment_id: str) -> list[KeyInfo]:
        """A deployment's tokens, newest first."""
        return self._list(_k.deployment_id == deployment_id)

    def _list(self, *conditions: Any) -> list[KeyInfo]:
        query = select(*_columns).where(*conditions).order_by(_k.created_at.desc(), _k.prefix)
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return [_info(row) for row in connection.execute(query)]

    def revoke(self, prefix: str, *, actor: str, allowed: Callable[[KeyInfo], bool]) -> KeyInfo:
        """Revoke a key for good; `allowed` says whether this caller may know of it.

        Raises:
            NotFound: there is no such key, for this caller.
        """

        def act(connection: Connection) -> Done[KeyInfo]:
            row = _FIND.one(connection, {"prefix": prefix})
            if row is None or not allowed(info := _info(row)):
                raise NotFound(f"there is no key {prefix}")
            revoke_keys(connection, self._now(), _k.prefix == prefix)
            action = "api_key.revoke" if info.kind == "key" else "token.revoke"
            return Done(info, [Entry(actor, action, prefix, details={"name": info.name})])

        return self._writer.run(Entry(actor, "api_key.revoke", "a key"), act)

    def refused(self, actor: str, what: str, error: Denied) -> None:
        """Record that somebody was turned away."""

        def act(_: Connection) -> Done[None]:
            entry = Entry(actor, "request.refuse", what, error.code, {"why": error.message})
            return Done(None, [entry])

        self._writer.run(Entry(actor, "request.refuse", what), act)

    def _now(self) -> str:
        return timestamp(self._clock())


def until_text(moment: datetime | None, now: datetime) -> str | None:
    """An expiry as it is stored. Raises UsageError for one that is past."""
    if moment is None:
        return None
    if moment <= now:
        raise UsageError("that expiry is past")
    return timestamp(moment)


def _info(row: Any) -> KeyInfo:
    return KeyInfo(
        row.prefix,
        row.kind,
        row.name,
        tuple(json.loads(row.allows)),
        row.created_at,
        row.created_by,
        row.expires_at,
        row.last_used_at,
        row.revoked_at,
        row.user_id,
        row.deployment_id,
    )
