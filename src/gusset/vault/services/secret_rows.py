"""What reads, writes and delivery of secrets share: finding a team's rows, sealing and opening versions."""

from __future__ import annotations

import os
from typing import Any

from gusset.errors import IntegrityError, SecretNotFound
from gusset.secrets.info import SecretInfo
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.value import SecretValue
from gusset.vault.crypto.envelope import CannotOpen, version_context
from gusset.vault.ids import new_id
from gusset.vault.storage.connection import Connection, Transaction
from gusset.vault.storage.keyring_store import KeyringStore
from gusset.vault.storage.known_rows import LookupCall
from gusset.vault.storage.signed_rows import Lookup, Select
from gusset.vault.storage.tables import SECRET_VERSIONS, SECRETS

_FIND = Lookup(SECRETS, by=("team_id", "folded"), without=("deleted_at",))
FIND_MANY = Select(SECRETS, "team_id = :team", "folded IN (:folded...)", "deleted_at IS NULL")
LIST = Select(SECRETS, "team_id = :team", then="ORDER BY name, created_at")
FIND_VERSION = Select(SECRET_VERSIONS, "secret_id = :id", "version = :version")
LIST_VERSIONS = Select(SECRET_VERSIONS, "secret_id = :id", then="ORDER BY version")


def context_of(secret: Any, version: int, write_id: str | None) -> bytes:
    """What the sealed bytes of a version of the secret of that row are bound to."""
    return version_context(secret.team_id, secret.id, secret.folded, version, write_id)


class SecretRows:
    """The rows of one team's secrets."""

    def __init__(self, team_id: str, team: str) -> None:
        self.team_id = team_id
        self.team = team

    def find(self, connection: Connection, name: str) -> Any | None:
        """The row of the secret `name`, in any spelling, unless it is deleted."""
        return connection.one(*self.lookup(name))

    def lookup(self, name: str) -> LookupCall:
        """What `find` looks up."""
        return _FIND, {"team_id": self.team_id, "folded": fold_name(name)}

    def get_or_raise(self, connection: Connection, name: str) -> Any:
        """The row of the secret `name`. Raises SecretNotFound, with the nearest name as a hint."""
        row = self.find(connection, check_name(name))
        if row is None:
            from difflib import get_close_matches  # slow to import

            rows = connection.all(LIST, {"team": self.team_id})
            near = get_close_matches(name, [row.name for row in rows if row.deleted_at is None], 1)
            hint = f"did you mean {near[0]}?" if near else f"add it with `gusset secret set {name}`"
            raise SecretNotFound(f"there is no secret {name}", hint=hint)
        return row

    def info(self, row: Any) -> SecretInfo:
        """The metadata in a row of the `secrets` table."""
        return SecretInfo(
            id=row.id,
            name=row.name,
            team=self.team,
            team_id=self.team_id,
            version=row.current_version,
            created_at=row.created_at,
            updated_at=row.updated_at,
            deleted_at=row.deleted_at,
            note=row.note,
            expires_at=row.expires_at,
            last_read_at=row.last_read_at,
        )


class VersionStore:
    """Stores and opens values of one team's secrets, sealed and bound to team, id, name and version."""

    def __init__(self, keys: KeyringStore, rows: SecretRows) -> None:
        self._keys = keys
        self._rows = rows

    def create(self, transaction: Transaction, name: str, value: SecretValue, *, actor: str) -> Any:
        """Insert a new secret with `value` as its version 1. Returns its row."""
        row = transaction.insert(
            SECRETS,
            {
                "id": new_id(),
                "team_id": self._rows.team_id,
                "name": name,
                "folded": fold_name(name),
                "created_at": transaction.at,
                "updated_at": transaction.at,
                "last_version": 1,
                "current_version": 1,
                "revision": 1,
            },
        )
        self._insert(transaction, row, value, actor)
        return row

    def add(self, transaction: Transaction, row: Any, value: SecretValue, *, actor: str) -> Any:
        """Insert `value` as the next version of a secret, which becomes current. Returns its new row."""
        version = row.last_version + 1
        row = transaction.update(
            SECRETS,
            row,
            last_version=version,
            current_version=version,
            updated_at=transaction.at,
            revision=row.revision + 1,
        )
        self._insert(transaction, row, value, actor)
        return row

    def _insert(self, transaction: Transaction, secret: Any, value: SecretValue, actor: str) -> None:
        write_id = os.urandom(16).hex()
        context = context_of(secret, secret.last_version, write_id)
        transaction.insert(
            SECRET_VERSIONS,
            {
                "secret_id": secret.id,
                "version": secret.last_version,
                "sealed": self._keys.current.keks.seal(value.reveal(), context),
                "write_id": write_id,
                "created_at": secret.updated_at,
                "created_by": str(actor),
            },
        )

    def read(self, connection: Connection, secret: Any, version: int | None) -> SecretValue:
        """The value of a stored version of `secret`, a row. `version` is None if every version is destroyed.

        Raises:
            SecretNotFound: there is no such version, or it is destroyed.
            IntegrityError: see `open`.
        """
        name = secret.name
        if version is None:
            raise SecretNotFound(
                f"every version of {name} has been destroyed", hint=f"see `gusset secret history {name}`"
            )
        rows, altered = connection.all_valid(FIND_VERSION, {"id": secret.id, "version": version})
        if altered:
            raise damaged(secret, version)
        if not rows:
            raise SecretNotFound(
                f"{name} has no version {version}", hint=f"see `gusset secret history {name}`"
            )
        if rows[0].sealed is None:
            raise SecretNotFound(f"version {version} of {name} has been destroyed")
        return self.open(connection, secret, rows[0])

    def open(self, connection: Connection, secret: Any, version: Any) -> SecretValue:
        """The value in a row of `secret_versions`, of the secret of the row `secret`.

        Raises:
            IntegrityError: the bytes do not open as this version of this secret.
        """
        context = context_of(secret, version.version, version.write_id)
        try:
            return SecretValue(self._keys.open(connection, version.sealed, context))
        except (CannotOpen, KeyError):
            raise damaged(secret, version.version) from None


def damaged(secret: Any, version: int) -> IntegrityError:
    """The error about a version that was altered or does not open. `secret` is the secret's row."""
    return IntegrityError(
        f"the stored bytes of {secret.name} (version {version}) were altered or damaged: they do not open",
        hint=f"set a new value, or roll back to an older version: `gusset secret history {secret.name}`",
    )
