"""The list of secrets, read without what opening a vault needs: no keyring, no root key.

It works only for an existing SQLite vault with this gusset's schema. For any
other vault, and after any failure, it returns None: opening the vault in full
then does what is needed or reports what is wrong. Files with unsafe
permissions are refused here too.
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

# The fields of `SecretInfo`, as `SecretReader.list` reads them; a test compares the two.
_LIST = """
SELECT s.id, s.name, t.name AS team, t.id AS team_id, s.current_version AS version, s.created_at,
  s.updated_at, s.deleted_at, s.note, s.expires_at, s.last_read_at
FROM secrets s JOIN teams t ON t.id = s.team_id
WHERE t.name = ? AND (? OR s.deleted_at IS NULL)
ORDER BY s.name, s.created_at
"""


def list_secrets(settings: Settings, *, include_deleted: bool = False) -> list[SecretInfo] | None:
    """Every secret by name, or None when the vault must be opened in full. Metadata only, so not audited.

    Raises:
        IntegrityError, RootKeyError: see `check_files`.
    """
    file = Path(settings.database.removeprefix(_SQLITE))
    if not settings.database.startswith(_SQLITE) or "?" in settings.database:
        return None
    try:
        if not file.is_file():
            return None
        check_files(settings, file)
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as database:
            database.row_factory = sqlite3.Row
            stamps = database.execute("SELECT version_num FROM alembic_version").fetchall()
            if [stamp["version_num"] for stamp in stamps] != [REVISION]:
                return None
            return [SecretInfo(**row) for row in database.execute(_LIST, (DEFAULT_TEAM, include_deleted))]
    except (sqlite3.Error, OSError):
        return None
