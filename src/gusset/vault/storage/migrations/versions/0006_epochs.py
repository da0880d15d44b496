"""Epochs: each begins when an administrator accepts that a part of the audit log is lost."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, short_text

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("epoch", INTEGER, nullable=False, server_default="1"))
    op.create_table(
        "epochs",
        sa.Column("number", INTEGER, primary_key=True, autoincrement=False),
        sa.Column("first_seq", INTEGER, nullable=False),
        sa.Column("started_at", short_text(24), nullable=False),
        sa.Column("changed_seq", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
