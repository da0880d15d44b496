"""What maskers have found in the output of deployments."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "masked_values",
        sa.Column("secret_id", sa.String(32), sa.ForeignKey("secrets.id"), nullable=False),
        sa.Column("deployment", sa.String(253), nullable=False),
        sa.Column("form", sa.String(32), nullable=False),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("times", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("last_at", sa.String(24), nullable=False),
        sa.PrimaryKeyConstraint("secret_id", "deployment", "form", "channel"),
    )
