"""Checkpoints name their signing key and the keyring's generation; managers report their root key."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("signing_key", sa.Integer))
    op.add_column("checkpoints", sa.Column("keyring", sa.Integer))
    op.create_table(
        "managers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("started_at", sa.String(24), nullable=False),
        sa.Column("seen_at", sa.String(24), nullable=False),
        sa.Column("root_key_id", sa.String(16), nullable=False),
        sa.Column("keyring", sa.Integer, nullable=False),
        sa.Column("checkpoint", sa.BigInteger, nullable=False),
    )
