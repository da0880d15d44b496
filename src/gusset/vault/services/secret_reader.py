"""Reads about secrets: names, dates, versions; never values. Not audited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from gusset.errors import SecretNotFound
from gusset.secrets.info import SecretInfo, State, VersionInfo
from gusset.secrets.name import fold_name
from gusset.vault.services.secret_rows import FIND_MANY, FIND_VERSION, LIST, LIST_VERSIONS, SecretRows
from gusset.vault.storage.connection import Store
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.sql import Statement, containing_pattern
from gusset.vault.storage.tables import SECRETS

_FIND_BY_ID = Select(SECRETS, "team_id = :team", "id = :id")
COUNT_OLDER = Statement(
    "SELECT count(*) AS total FROM secrets o JOIN secrets s "
    "ON o.team_id = s.team_id AND o.folded = s.folded AND o.id <> s.id AND o.created_at <= s.created_at "
    "WHERE s.team_id = :team AND s.id = :id"
)
_NAMED = "lower(name) LIKE :pattern ESCAPE '/'"
_COUNT = f"SELECT count(*) AS total FROM secrets WHERE team_id = :team AND {_NAMED}"
_COUNT_LIVE = Statement(f"{_COUNT} AND deleted_at IS NULL")
_COUNT_DELETED = Statement(f"{_COUNT} AND deleted_at IS NOT NULL")
_PAGE_OF_LIVE = Select(
    SECRETS,
    "team_id = :team",
    "deleted_at IS NULL",
    also=_NAMED,
    then="ORDER BY name LIMIT :limit OFFSET :offset",
)
_PAGE_OF_DELETED = Select(
    SECRETS,
    "team_id = :team",
    "deleted_at IS NOT NULL",
    also=_NAMED,
    then="ORDER BY deleted_at DESC, name LIMIT :limit OFFSET :offset",
)


class SecretReader:
    """Metadata of one team's secrets."""

    def __init__(self, store: Store, rows: SecretRows) -> None:
        self._store = store
        self._rows = rows

    def list(self, *, include_deleted: bool = False) -> list[SecretInfo]:
        """Every secret, by name."""
        with self._store.read() as connection:
            rows = connection.all(LIST, {"team": self._rows.team_id})
        return [self._rows.info(row) for row in rows if include_deleted or row.deleted_at is None]

    def page(
        self, *, containing: str = "", limit: int, offset: int = 0, deleted: bool = False
    ) -> tuple[Sequence[SecretInfo], int]:
        """One page of the secrets whose name contains `containing`, and how many there are in all.

        The live ones by name; with `deleted`, the deleted ones instead, newest first.
        """
        wanted = {"team": self._rows.team_id, "pattern": containing_pattern(containing)}
        with self._store.snapshot() as connection:
            rows = connection.all(
                _PAGE_OF_DELETED if deleted else _PAGE_OF_LIVE, wanted | {"limit": limit, "offset": offset}
            )
            count: Any = connection.one(_COUNT_DELETED if deleted else _COUNT_LIVE, wanted)
        return [self._rows.info(row) for row in rows], count.total

    def get(self, name: str) -> SecretInfo:
        """Metadata of one secret. Raises SecretNotFound."""
        with self._store.read() as connection:
            return self._rows.info(self._rows.get_or_raise(connection, name))

    def by_id(self, secret_id: str) -> SecretInfo | None:
        """Metadata of the team's secret with that id, deleted or not; None when there is none."""
        with self._store.read() as connection:
            row = connection.one(_FIND_BY_ID, {"team": self._rows.team_id, "id": secret_id})
        return None if row is None else self._rows.info(row)

    def reuses_name(self, secret_id: str) -> bool:
        """Whether an older, deleted secret of the team had the name before, so that versions repeat."""
        with self._store.read() as connection:
            count: Any = connection.one(COUNT_OLDER, {"team": self._rows.team_id, "id": secret_id})
        return bool(count.total)

    def stored_at(self, secret_id: str, version: int) -> str:
        """When a version was stored, in RFC 3339. Raises SecretNotFound."""
        with self._store.read() as connection:
            row = connection.one(FIND_VERSION, {"id": secret_id, "version": version})
        if row is None:
            raise SecretNotFound(f"there is no version {version}")
        return str(row.created_at)

    def find_many(self, names: Collection[str]) -> dict[str, SecretInfo]:
        """Metadata of those of `names` that exist, by the spelling in `names`."""
        folded = {name: fold_name(name) for name in names}
        wanted = {"team": self._rows.team_id, "folded": sorted(set(folded.values()))}
        with self._store.read() as connection:
            found = {row.folded: self._rows.info(row) for row in connection.all(FIND_MANY, wanted)}
        return {name: found[key] for name, key in folded.items() if key in found}

    def history(self, name: str) -> Sequence[VersionInfo]:
        """The versions of a secret, oldest first. Raises SecretNotFound."""
        with self._store.snapshot() as connection:
            secret = self._rows.get_or_raise(connection, name)
            rows = connection.all(LIST_VERSIONS, {"id": secret.id})
        return [
            VersionInfo(
                version=row.version,
                created_at=row.created_at,
                created_by=row.created_by,
                state=_state(row, secret.current_version),
            )
            for row in rows
        ]


def _state(row: Any, current: int | None) -> State:
    if row.sealed is None:
        return "destroyed"
    return "current" if row.version == current else "older"
