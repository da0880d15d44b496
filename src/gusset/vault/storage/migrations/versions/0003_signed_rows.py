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
    op.create_table(
        "idempotency",
        sa.Column("caller", short_text(64), nullable=False),
        sa.Column("route", short_text(200), nullable=False),
        sa.Column("key", short_text(200), nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
        sa.Column("response", TEXT),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.PrimaryKeyConstraint("caller", "route", "key"),
    )
    op.create_index("idempotency_created_at", "idempotency", ["created_at"])
