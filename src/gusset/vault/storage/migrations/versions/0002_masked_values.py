"""What maskers have found in the output of deployments."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, short_text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "masked_values",
        sa.Column("secret_id", short_text(32), sa.ForeignKey("secrets.id"), nullable=False),
        sa.Column("deployment", short_text(253), nullable=False),
        sa.Column("form", short_text(32), nullable=False),
        sa.Column("channel", short_text(32), nullable=False),
        sa.Column("times", INTEGER, nullable=False),
        sa.Column("version", INTEGER),
        sa.Column("last_at", short_text(24), nullable=False),
        sa.PrimaryKeyConstraint("secret_id", "deployment", "form", "channel"),
    )
