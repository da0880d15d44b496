"""What `SecretStore` asks of the database.

Made once: SQLAlchemy then finds their compiled text in its cache, and those of
the hot path (`Prepared`) pass it by.
"""

from __future__ import annotations

from sqlalchemy import and_, bindparam, insert, or_, select, text, update

from gusset.vault.storage.compiled_sql import Prepared
from gusset.vault.storage.tables import secret_versions, secrets

_s, _v = secrets.c, secret_versions.c
_live = and_(_s.team_id == bindparam("team"), _s.folded == bindparam("folded"), _s.deleted_at.is_(None))
FIND = Prepared(select(secrets).where(_live))
FIND_DELETED = (
    select(secrets)
    .where(
        _s.team_id == bindparam("team"),
        _s.deleted_at.is_not(None),
        or_(_s.id == bindparam("wanted"), _s.folded == bindparam("folded")),
    )
    .order_by(_s.deleted_at.desc(), _s.updated_at.desc())
    .limit(1)
)
LIST = select(secrets).where(_s.team_id == bindparam("team")).order_by(_s.name, _s.created_at)
CREATE = Prepared(
    insert(secrets),
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
CHANGE = update(secrets).where(_s.id == bindparam("b_id"))
NEW_CURRENT = Prepared(
    CHANGE.values(
        last_version=bindparam("b_version"),
        current_version=bindparam("b_version"),
        updated_at=bindparam("b_at"),
        revision=_s.revision + text("1"),
    )
)
ADD_VERSION = Prepared(
    insert(secret_versions), ["secret_id", "version", "sealed", "created_at", "created_by"]
)
SEALED = select(_v.sealed).where(_v.secret_id == bindparam("id"), _v.version == bindparam("version"))
VERSIONS = select(secret_versions).where(_v.secret_id == bindparam("id")).order_by(_v.version)
CURRENT = Prepared(
    select(_s.id, _s.folded, _s.revision, _s.last_read_at, _v.version, _v.sealed)
    .join_from(
        secrets,
        secret_versions,
        and_(_v.secret_id == _s.id, _v.version == _s.current_version),
        isouter=True,
    )
    .where(_live)
)
REVISIONS = select(_s.id, _s.revision).where(
    _s.team_id == bindparam("team"),
    _s.folded.in_(bindparam("folded", expanding=True)),
    _s.deleted_at.is_(None),
)
READ = Prepared(CHANGE.values(last_read_at=bindparam("b_at")))
