"""What reads, writes and delivery of secrets share: finding a team's rows, sealing and opening versions."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Connection

from gusset.errors import IntegrityError, SecretNotFound
from gusset.secrets.info import SecretInfo
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.value import SecretValue
from gusset.vault.clock import Clock, timestamp
from gusset.vault.crypto.envelope import CannotOpen, aad_for
from gusset.vault.ids import new_id
from gusset.vault.services.key_rotation import KeyringStore
from gusset.vault.storage.secret_statements import (
    FIND,
    FIND_SEALED,
    INSERT_SECRET,
    INSERT_VERSION,
    LIST,
    SET_CURRENT_VERSION,
)


class SecretRows:
    """The rows of one team's secrets."""

    def __init__(self, team_id: str, team: str) -> None:
        self.team_id = team_id
        self.team = team

    def find(self, connection: Connection, name: str) -> Any | None:
        """The row of the secret `name`, in any spelling, unless it is deleted."""
        return FIND.one(connection, {"team": self.team_id, "folded": fold_name(name)})

    def get_or_raise(self, connection: Connection, name: str) -> Any:
        """The row of the secret `name`. Raises SecretNotFound, with the nearest name as a hint."""
        row = self.find(connection, check_name(name))
        if row is None:
            rows = connection.execute(LIST, {"team": self.team_id})
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

    def __init__(self, keys: KeyringStore, clock: Clock, rows: SecretRows) -> None:
        self._keys = keys
        self._clock = clock
        self._rows = rows

    def create(self, connection: Connection, name: str, value: SecretValue, *, actor: str) -> SecretInfo:
        """Insert a new secret with `value` as its version 1."""
        at = timestamp(self._clock())
        info = SecretInfo(
            id=new_id(),
            name=name,
            team=self._rows.team,
            team_id=self._rows.team_id,
            version=1,
            created_at=at,
            updated_at=at,
        )
        row = {
            "id": info.id,
            "team_id": info.team_id,
            "name": name,
            "folded": fold_name(name),
            "created_at": at,
            "updated_at": at,
            "last_version": 1,
            "current_version": 1,
            "revision": 1,
        }
        INSERT_SECRET.run(connection, row)
        self._insert(connection, info, 1, value, actor)
        return info

    def add(self, connection: Connection, row: Any, value: SecretValue, *, actor: str) -> SecretInfo:
        """Insert `value` as the next version of the secret of `row`, and make it current."""
        at, version = timestamp(self._clock()), row.last_version + 1
        SET_CURRENT_VERSION.run(connection, {"b_id": row.id, "b_version": version, "b_at": at})
        info = replace(self._rows.info(row), version=version, updated_at=at)
        self._insert(connection, info, version, value, actor)
        return info

    def _insert(
        self, connection: Connection, info: SecretInfo, version: int, value: SecretValue, actor: str
    ) -> None:
        aad = self._aad(info.id, info.name, version)
        row = {
            "secret_id": info.id,
            "version": version,
            "sealed": self._keys.current.seal(value.reveal(), aad),
            "created_at": info.updated_at,
            "created_by": str(actor),
        }
        INSERT_VERSION.run(connection, row)

    def read(self, connection: Connection, secret_id: str, name: str, version: int | None) -> SecretValue:
        """The value of a stored version; `version` is None when every version is destroyed.

        Raises:
            SecretNotFound: there is no such version, or it is destroyed.
            IntegrityError: see `open`.
        """
        if version is None:
            raise SecretNotFound(
                f"every version of {name} has been destroyed", hint=f"see `gusset secret history {name}`"
            )
        found = connection.execute(FIND_SEALED, {"id": secret_id, "version": version}).one_or_none()
        if found is None:
            raise SecretNotFound(
                f"{name} has no version {version}", hint=f"see `gusset secret history {name}`"
            )
        if found.sealed is None:
            raise SecretNotFound(f"version {version} of {name} has been destroyed")
        return self.open(connection, found.sealed, secret_id=secret_id, name=name, version=version)

    def open(
        self, connection: Connection, sealed: bytes, *, secret_id: str, name: str, version: int
    ) -> SecretValue:
        """The value in `sealed`.

        Raises:
            IntegrityError: the bytes do not open as this version of this secret.
        """
        try:
            return SecretValue(self._keys.open(connection, sealed, self._aad(secret_id, name, version)))
        except (CannotOpen, KeyError):
            raise IntegrityError(
                f"the stored bytes of {name} (version {version}) were altered or damaged: they do not open",
                hint=f"set a new value, or roll back to an older version: `gusset secret history {name}`",
            ) from None

    def _aad(self, secret_id: str, name: str, version: int) -> bytes:
        return aad_for(self._rows.team_id, secret_id, fold_name(name), version)
