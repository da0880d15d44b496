"""Checkpoints name their signing key and the keyring's generation; managers report their root key."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, TEXT, short_text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("signing_key", INTEGER))
    op.add_column("checkpoints", sa.Column("keyring", INTEGER))
    op.create_table(
        "managers",
        sa.Column("id", short_text(32), primary_key=True),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("started_at", short_text(24), nullable=False),
        sa.Column("seen_at", short_text(24), nullable=False),
        sa.Column("root_key_id", short_text(16), nullable=False),
        sa.Column("keyring", INTEGER, nullable=False),
        sa.Column("checkpoint", INTEGER, nullable=False),
    )
