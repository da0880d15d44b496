"""gusset as of the next release, which has one more migration: run as `python -m tests.newer_gusset KIND COMMAND...`.

The migration of KIND `compatible` adds a table, and lets managers of this release go on; that of
`incompatible` renames a column that they use.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from gusset.vault.storage import revision

BASE, NEWER = revision.REVISION, f"{int(revision.REVISION) + 1:04}"

OLDEST_COMPATIBLE = {"compatible": BASE, "incompatible": NEWER}
MIGRATIONS = {
    "compatible": f"""
oldest_beside = "{BASE}"

def upgrade():
    op.create_table("of_the_next_release", sa.Column("id", sa.Integer, primary_key=True))
""",
    "incompatible": """
def upgrade():
    op.alter_column("secrets", "note", new_column_name="remark")
""",
}


def migrations(folder: Path, kind: str) -> Path:
    """A copy of the migrations in `folder`, with one more."""
    from gusset.vault.storage import schema

    copy = folder / "migrations"
    shutil.copytree(schema._MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    head = (
        f'import sqlalchemy as sa\nfrom alembic import op\n\nrevision, down_revision = "{NEWER}", "{BASE}"\n'
    )
    (copy / "versions" / f"{NEWER}_next.py").write_text(head + MIGRATIONS[kind])
    return copy


def main() -> None:
    kind = sys.argv.pop(1)
    revision.REVISION = NEWER  # before anything else imports it
    revision.OLDEST_COMPATIBLE = OLDEST_COMPATIBLE[kind]
    from gusset.vault.storage import schema

    with tempfile.TemporaryDirectory() as folder:
        schema._MIGRATIONS = migrations(Path(folder), kind)
        from gusset.cli.main import main as command

        command()


if __name__ == "__main__":
    main()
