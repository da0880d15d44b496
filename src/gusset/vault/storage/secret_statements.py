"""The statements about secrets.

They are built once: SQLAlchemy then finds their text in its cache, and those of
the hot path are `CompiledStatement`s, which bypass SQLAlchemy's execution.
"""

from __future__ import annotations

from sqlalchemy import and_, bindparam, insert, or_, select, text, update

from gusset.vault.storage.compiled_sql import CompiledStatement
from gusset.vault.storage.tables import secret_versions, secrets_table

_s, _v = secrets_table.c, secret_versions.c
_live = and_(_s.team_id == bindparam("team"), _s.folded == bindparam("folded"), _s.deleted_at.is_(None))
_update_secret = update(secrets_table).where(_s.id == bindparam("b_id"))

FIND = CompiledStatement(select(secrets_table).where(_live))
FIND_DELETED = (
    select(secrets_table)
    .where(
        _s.team_id == bindparam("team"),
        _s.deleted_at.is_not(None),
        or_(_s.id == bindparam("name_or_id"), _s.folded == bindparam("folded")),
    )
    .order_by(_s.deleted_at.desc(), _s.updated_at.desc())
    .limit(1)
)
LIST = select(secrets_table).where(_s.team_id == bindparam("team")).order_by(_s.name, _s.created_at)
INSERT_SECRET = CompiledStatement(
    insert(secrets_table),
    [
        "id",
        "team_id",
        "name",
        "folded",
        "created_at",
        "updated_at",
        "last_version",
        "current_version",
        "revision",
    ],
)
INSERT_VERSION = CompiledStatement(
    insert(secret_versions), ["secret_id", "version", "sealed", "created_at", "created_by"]
)
SET_CURRENT_VERSION = CompiledStatement(
    _update_secret.values(
        last_version=bindparam("b_version"),
        current_version=bindparam("b_version"),
        updated_at=bindparam("b_at"),
        revision=_s.revision + text("1"),
    )
)
SET_LAST_READ = CompiledStatement(_update_secret.values(last_read_at=bindparam("b_at")))
FIND_SEALED = select(_v.sealed).where(_v.secret_id == bindparam("id"), _v.version == bindparam("version"))
FIND_CURRENT_SEALED = CompiledStatement(
    select(_s.id, _s.folded, _s.revision, _s.last_read_at, _v.version, _v.sealed)
    .join_from(
        secrets_table,
        secret_versions,
        and_(_v.secret_id == _s.id, _v.version == _s.current_version),
        isouter=True,
    )
    .where(_live)
)
LIST_VERSIONS = select(secret_versions).where(_v.secret_id == bindparam("id")).order_by(_v.version)
LIST_REVISIONS = select(_s.id, _s.revision).where(
    _s.team_id == bindparam("team"),
    _s.folded.in_(bindparam("folded", expanding=True)),
    _s.deleted_at.is_(None),
)
