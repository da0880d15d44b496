"""The list of secrets, read without what opening a vault needs: no SQLAlchemy, no keys.

Only for a vault that is there, in SQLite and at this gusset's schema; for any
other, and for every failure, the answer is None, and opening the vault in full
does what is needed or says what is wrong. Files that may not be trusted are
refused here as there.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from gusset.secrets.info import DEFAULT_TEAM, SecretInfo
from gusset.settings import Settings
from gusset.vault.file_permissions import check_files
from gusset.vault.storage.revision import REVISION

_SQLITE = "sqlite:///"

# `SecretStore.list` in plain SQL; a test holds the two together.
_LIST = """
SELECT s.id, s.name, t.name, t.id, s.current_version, s.created_at, s.updated_at, s.deleted_at, s.note,
  s.expires_at, s.last_read_at
FROM secrets s JOIN teams t ON t.id = s.team_id
WHERE t.name = ? AND (? OR s.deleted_at IS NULL)
ORDER BY s.name, s.created_at
"""


def list_secrets(settings: Settings, *, include_deleted: bool = False) -> list[SecretInfo] | None:
    """Every secret by name, or None when only opening the vault can tell. Metadata only, so not audited.

    Raises:
        IntegrityError, RootKeyError: see `check_files`.
    """
    file = Path(settings.database.removeprefix(_SQLITE))
    if not settings.database.startswith(_SQLITE) or "?" in settings.database or not file.is_file():
        return None
    try:
        check_files(settings, file)
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as database:
            stamp = database.execute("SELECT version_num FROM alembic_version").fetchall()
            if stamp != [(REVISION,)]:
                return None
            return [SecretInfo(*row) for row in database.execute(_LIST, (DEFAULT_TEAM, include_deleted))]
    except (sqlite3.Error, OSError):
        return None
