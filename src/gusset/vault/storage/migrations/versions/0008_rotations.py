"""What each lease was first delivered, and overlaps: values that stay readable after they were replaced."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, TEXT, short_text

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("replicas", sa.Column("delivered", TEXT))
    op.create_table(
        "secret_overlaps",
        sa.Column("secret_id", short_text(32), sa.ForeignKey("secrets.id"), primary_key=True),
        sa.Column("version", INTEGER, nullable=False),
        sa.Column("successor", INTEGER, nullable=False),
        sa.Column("ends_at", short_text(24), nullable=False),
        sa.Column("changed_seq", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
