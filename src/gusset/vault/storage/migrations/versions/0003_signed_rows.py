"""Rows that carry authority or meaning are signed; audit records have the HMACs of the rows they wrote.

Sessions end: their rows had an expiry that moved with each use. People sign in again.
"""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import TEXT, short_text

revision = "0003"
down_revision = "0002"

_SIGNED = (
    "teams",
    "users",
    "members",
    "sessions",
    "deployments",
    "access_keys",
    "secrets",
    "secret_versions",
)


def upgrade() -> None:
    op.execute("DELETE FROM sessions")
    for table in _SIGNED:
        op.add_column(table, sa.Column("changed_seq", sa.BigInteger))
        op.add_column(table, sa.Column("mac", sa.LargeBinary))
    op.add_column("secret_versions", sa.Column("write_id", short_text(32)))
    op.add_column("access_keys", sa.Column("gives", TEXT))
    op.execute("UPDATE access_keys SET gives = '[\"*\"]' WHERE kind = 'key'")  # as before
    op.add_column("audit", sa.Column("changes", TEXT))
