"""Short-lived tokens of identities: a deployment gets one for its JSON Web Token.

A token is `gusset_idt_IDENTITY_EXPIRY_MAC`: the identity's id, the second in which it expires, and
an HMAC of both under a key of the vault. Nothing is stored for it, so any manager can verify it,
and whoever can only write to the database cannot make one. Its identity and deployment are looked up
at each use, so the token gives access to what the deployment declares at that time.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gusset.errors import NotSignedIn, TokenRefused
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import with_rights
from gusset.vault.audit.events import AuditEvent
from gusset.vault.clock import Clock, timestamp
from gusset.vault.commit.writer import Writer, WriteResult
from gusset.vault.services.access_keys import KeyInfo
from gusset.vault.services.deployments import Grant
from gusset.vault.services.identities import IdentityInfo
from gusset.vault.services.makers import check_account
from gusset.vault.services.person import get_team
from gusset.vault.storage.connection import Connection, Store, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import DEPLOYMENTS, IDENTITIES

LIFETIME = 600  # seconds, at most
PREFIX = "gusset_idt_"
_FORMAT = re.compile(PREFIX + r"([a-z2-7]{16})_([1-9][0-9]{0,11})_([A-Za-z0-9_-]{43})")
_PURPOSE = "tokens of identities"

_FIND = Select(IDENTITIES, "id = :id")
_FIND_DEPLOYMENT = Select(DEPLOYMENTS, "id = :id", "deleted_at IS NULL")
_SET_LAST_USED = Statement("UPDATE identities SET last_used_at = :at WHERE id = :id")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A token, and how many seconds it lives."""

    token: SecretValue
    lifetime: int
    grant: Grant


class IdentityTokens:
    """Issues tokens for identities, and authenticates by them."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, *, keys: KeyringStore) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._keys = keys

    def issue(
        self, identity: IdentityInfo, *, seconds_left: float, details: Mapping[str, Any], actor: str
    ) -> IssuedToken:
        """A token for a workload whose JSON Web Token was verified, and is valid for so many seconds.

        `details` are facts about that token for the audit record, which also has the identity's rights.

        Raises:
            TokenRefused: the identity or the deployment was removed meanwhile.
        """

        def write(transaction: Transaction) -> WriteResult[IssuedToken]:
            now = self._clock()
            try:
                row, grant = self._grant(transaction, identity.id)
            except NotSignedIn as error:
                raise TokenRefused(error.message) from None
            lifetime = max(1, min(LIFETIME, int(seconds_left)))
            expiry = int(now.timestamp()) + lifetime
            transaction.run(_SET_LAST_USED, {"id": row.id, "at": timestamp(now)})
            issued = IssuedToken(
                token=_token(row.id, expiry, self._keys.current.derive(_PURPOSE)),
                lifetime=lifetime,
                grant=grant,
            )
            recorded = {
                **details,
                "team": grant.team_id,
                "deployment": grant.deployment,
                "expires_at": _expiry_text(expiry),
            }
            acting = with_rights(actor, grant.rights)
            event = AuditEvent(acting, Action.IDENTITY_EXCHANGE, row.name, details=recorded)
            return WriteResult(issued, [event])

        return self._writer.run(AuditEvent(actor, Action.IDENTITY_EXCHANGE, identity.name), write)

    def authenticate(self, token: SecretValue) -> tuple[KeyInfo, Grant]:
        """What a token stands for, if it is valid: its metadata, as for a stored key, and its grant.

        Raises:
            NotSignedIn: it was altered or has expired, or its identity or deployment was removed.
        """
        match = _FORMAT.fullmatch(token.reveal().decode("ascii", "replace"))
        if match is None:
            raise NotSignedIn("that is not a gusset token")
        identity, expiry = match[1], int(match[2])
        with self._store.read() as connection:
            self._check_genuine(connection, token, identity, expiry)
            expires_at = _expiry_text(expiry)
            if timestamp(self._clock()) >= expires_at:
                raise NotSignedIn(
                    "that token has expired", hint="exchange the JSON Web Token again", ended=True
                )
            row, grant = self._grant(connection, identity)
        info = KeyInfo(
            prefix=row.id,
            kind="token",
            name=grant.deployment,
            allows=grant.names,
            created_at=row.created_at,
            created_by=row.created_by,
            expires_at=expires_at,
            deployment_id=grant.deployment_id,
        )
        return info, grant

    def _check_genuine(self, connection: Connection, token: SecretValue, identity: str, expiry: int) -> None:
        """Raises NotSignedIn for a token that was made with no key of the vault, or with a replaced one."""

        def made(key: bytes) -> bool:
            return hmac.compare_digest(token.reveal(), _token(identity, expiry, key).reveal())

        found = self._keys.find_derived(_PURPOSE, made, lambda: nullcontext(connection))
        if found is None:
            raise NotSignedIn("that token is unknown here")
        if found > 0:
            raise NotSignedIn(
                "the key of that token was replaced", hint="exchange the JSON Web Token again", ended=True
            )

    def _grant(self, connection: Connection, identity: str) -> tuple[Any, Grant]:
        """The row of an identity, and what its deployment declares. Raises NotSignedIn."""
        row = connection.one(_FIND, {"id": identity})
        if row is None:
            raise NotSignedIn("the identity of that token was removed", ended=True)
        makers = check_account(connection, row.created_by)
        deployment = connection.one(_FIND_DEPLOYMENT, {"id": row.deployment_id})
        if deployment is None:
            raise NotSignedIn("the deployment of that token was removed", ended=True)
        grant = Grant(
            deployment_id=deployment.id,
            deployment=deployment.name,
            team_id=deployment.team_id,
            team=get_team(connection, deployment.team_id).name,
            names=tuple(json.loads(deployment.secrets)),
            rights=(IDENTITIES.right(row), DEPLOYMENTS.right(deployment), *makers),
        )
        return row, grant


def _token(identity: str, expiry: int, key: bytes) -> SecretValue:
    text = f"{identity}_{expiry}"
    mac = base64.urlsafe_b64encode(hmac.digest(key, text.encode(), "sha256")).decode().rstrip("=")
    return SecretValue(f"{PREFIX}{text}_{mac}".encode())


def is_identity_token(token: SecretValue) -> bool:
    """Whether a credential looks like a token of an identity."""
    return token.reveal().startswith(PREFIX.encode())


def _expiry_text(expiry: int) -> str:
    return timestamp(datetime.fromtimestamp(expiry, UTC))
