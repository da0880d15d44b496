"""Issuers of JSON Web Tokens that the vault trusts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from gusset.errors import Conflict, NotFound
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.services.identity_rules import check_issuer_url, checked_jwks
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.signed_rows import Right, Select
from gusset.vault.storage.tables import IDENTITIES, ISSUERS


@dataclass(frozen=True, slots=True, kw_only=True)
class NewIssuer:
    """An issuer to trust. Its keys are in `jwks`, at `jwks_url`, or where its discovery document says."""

    url: str
    jwks_url: str | None = None
    jwks: str | None = None
    allow_private: bool = False


def new_issuer(url: str, jwks: str | None = None, *, allow_private: bool = False) -> NewIssuer:
    """An issuer to trust. `jwks` is a JSON Web Key Set, or the URL of one.

    Raises:
        UsageError: the URL or the keys cannot be used.
    """
    check_issuer_url(url)
    if jwks is None or jwks.lstrip().startswith("{"):
        keys = None if jwks is None else checked_jwks(jwks)
        return NewIssuer(url=url, jwks=keys, allow_private=allow_private)
    check_issuer_url(jwks)
    return NewIssuer(url=url, jwks_url=jwks, allow_private=allow_private)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerInfo(NewIssuer):
    """An issuer that is trusted. `created_at` changes when it is added again. `right` is its row."""

    created_at: str
    created_by: str
    right: Right


_FIND = Select(ISSUERS, "url = :url")
_LIST = Select(ISSUERS, then="ORDER BY url")
_USED_BY = Select(IDENTITIES, "issuer = :url", then="ORDER BY name")


class Issuers:
    """Adds, lists and removes issuers."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock

    def all(self) -> list[IssuerInfo]:
        """Every issuer, by its URL."""
        with self._store.read() as connection:
            return [_info(row) for row in connection.all(_LIST)]

    def find(self, url: str) -> IssuerInfo | None:
        """The issuer with exactly this URL."""
        with self._store.read() as connection:
            row = connection.one(_FIND, {"url": url})
        return None if row is None else _info(row)

    def add(self, new: NewIssuer, *, replace: bool = False, actor: str) -> IssuerInfo:
        """Trust an issuer. With `replace` it may be trusted already, and its keys are found as `new` says.

        Raises:
            Conflict: it is trusted already.
        """

        def write(transaction: Transaction) -> WriteResult[IssuerInfo]:
            row, at = transaction.one(_FIND, {"url": new.url}), timestamp(self._clock())
            if row is None:
                info, event = insert_issuer(transaction, new, at=at, actor=actor)
                return WriteResult(info, [event])
            if not replace:
                raise Conflict(
                    "that issuer has been added already",
                    hint="to change how its keys are found, say so: gusset issuer add URL --replace",
                )
            changed = transaction.update(ISSUERS, row, **_columns(new, at, actor))
            return WriteResult(_info(changed), [_added(new, actor, replaced=True)])

        return self._writer.run(AuditEvent(actor, Action.ISSUER_ADD, new.url), write)

    def remove(self, url: str, *, actor: str) -> None:
        """Stop trusting an issuer. Raises NotFound, and Conflict while identities name it."""

        def write(transaction: Transaction) -> WriteResult[None]:
            row = transaction.one(_FIND, {"url": url})
            if row is None:
                raise NotFound("there is no such issuer")
            if using := [each.name for each in transaction.all(_USED_BY, {"url": url})]:
                names = ", ".join(using[:10]) + (", ..." if len(using) > 10 else "")
                raise Conflict(f"identities use that issuer: {names}", hint="remove these identities first")
            transaction.delete(ISSUERS, row)
            return WriteResult(None, [AuditEvent(actor, Action.ISSUER_REMOVE, url)])

        self._writer.run(AuditEvent(actor, Action.ISSUER_REMOVE, "an issuer"), write)


def find_issuer(connection: Connection, url: str) -> IssuerInfo | None:
    """The issuer with exactly this URL, within the caller's transaction."""
    row = connection.one(_FIND, {"url": url})
    return None if row is None else _info(row)


def insert_issuer(
    transaction: Transaction, new: NewIssuer, *, at: str, actor: str
) -> tuple[IssuerInfo, AuditEvent]:
    """Add an issuer within the caller's transaction; also the event to record."""
    row = transaction.insert(ISSUERS, {"url": new.url, **_columns(new, at, actor)})
    return _info(row), _added(new, actor)


def _columns(new: NewIssuer, at: str, actor: str) -> dict[str, Any]:
    return {
        "jwks_url": new.jwks_url,
        "jwks": new.jwks,
        "allow_private": int(new.allow_private),
        "created_at": at,
        "created_by": str(actor),
    }


def _added(new: NewIssuer, actor: str, *, replaced: bool = False) -> AuditEvent:
    details = {
        "jwks_url": new.jwks_url,
        "keys_sha256": None if new.jwks is None else hashlib.sha256(new.jwks.encode()).hexdigest(),
        "allow_private": new.allow_private,
        "replaced": replaced,
    }
    return AuditEvent(actor, Action.ISSUER_ADD, new.url, details=details)


def _info(row: Any) -> IssuerInfo:
    return IssuerInfo(
        url=row.url,
        jwks_url=row.jwks_url,
        jwks=row.jwks,
        allow_private=bool(row.allow_private),
        created_at=row.created_at,
        created_by=row.created_by,
        right=ISSUERS.right(row),
    )
