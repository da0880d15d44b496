"""Reads about secrets: names, dates, versions; never values. Not audited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Engine, func, select

from gusset.secrets.info import SecretInfo, State, VersionInfo
from gusset.secrets.name import check_name, fold_name
from gusset.vault.services.secret_rows import SecretRows
from gusset.vault.storage.compiled_sql import ReadConnections
from gusset.vault.storage.database import translate_db_errors
from gusset.vault.storage.secret_statements import LIST, LIST_VERSIONS
from gusset.vault.storage.tables import secrets_table

_s = secrets_table.c


class SecretReader:
    """Metadata of one team's secrets."""

    def __init__(self, engine: Engine, connections: ReadConnections, rows: SecretRows) -> None:
        self._engine = engine
        self._connections = connections
        self._rows = rows

    def list(self, *, include_deleted: bool = False) -> list[SecretInfo]:
        """Every secret, by name."""
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(LIST, {"team": self._rows.team_id}).all()
        return [self._rows.info(row) for row in rows if include_deleted or row.deleted_at is None]

    def page(
        self, *, containing: str = "", limit: int, offset: int = 0, deleted: bool = False
    ) -> tuple[Sequence[SecretInfo], int]:
        """One page of the secrets whose name contains `containing`, and how many there are in all.

        The live ones by name; with `deleted`, the deleted ones instead, newest first.
        """
        conditions = [_s.team_id == self._rows.team_id, _s.deleted_at.is_not(None) == deleted]
        if containing:
            conditions.append(_s.name.icontains(containing, autoescape=True))
        order = [_s.deleted_at.desc()] if deleted else []
        query = select(secrets_table).where(*conditions).order_by(*order, _s.name).limit(limit).offset(offset)
        count = select(func.count()).select_from(secrets_table).where(*conditions)
        with translate_db_errors(self._engine), self._engine.connect() as connection, connection.begin():
            rows = connection.execute(query).all()
            return [self._rows.info(row) for row in rows], connection.execute(count).scalar_one()

    def get(self, name: str) -> SecretInfo:
        """Metadata of one secret. Raises SecretNotFound."""
        with translate_db_errors(self._engine):
            row = self._rows.find(self._connections.current, check_name(name))
            if row is not None:
                return self._rows.info(row)
            with self._engine.connect() as connection:  # for the hint in the error
                return self._rows.info(self._rows.get_or_raise(connection, name))

    def by_id(self, secret_id: str) -> SecretInfo | None:
        """Metadata of the team's secret with that id, deleted or not; None when there is none."""
        return next(iter(self._select(_s.id == secret_id)), None)

    def find_many(self, names: Collection[str]) -> dict[str, SecretInfo]:
        """Metadata of those of `names` that exist, by the spelling in `names`."""
        folded = {fold_name(name) for name in names}
        found = self._select(_s.folded.in_(sorted(folded)), _s.deleted_at.is_(None))
        by_folded = {fold_name(info.name): info for info in found}
        return {name: by_folded[fold_name(name)] for name in names if fold_name(name) in by_folded}

    def _select(self, *conditions: Any) -> Sequence[SecretInfo]:
        query = select(secrets_table).where(_s.team_id == self._rows.team_id, *conditions)
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            return [self._rows.info(row) for row in connection.execute(query)]

    def history(self, name: str) -> Sequence[VersionInfo]:
        """The versions of a secret, oldest first. Raises SecretNotFound."""
        with translate_db_errors(self._engine), self._engine.connect() as connection, connection.begin():
            secret = self._rows.get_or_raise(connection, name)
            rows = connection.execute(LIST_VERSIONS, {"id": secret.id}).all()
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
