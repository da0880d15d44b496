"""Replicas have leases that a manager makes, with the versions they used.

Replicas of an older version of gusset chose their own ids; their rows say nothing after they have stopped.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.drop_table("replicas")
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("deployment_id", sa.String(32), sa.ForeignKey("deployments.id"), nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("versions", sa.Text, nullable=False),
        sa.Column("used", sa.Text, nullable=False),
        sa.Column("started_at", sa.String(24), nullable=False),
        sa.Column("seen_at", sa.String(24), nullable=False),
        sa.Column("reported_at", sa.String(24)),
        sa.Column("stopped_at", sa.String(24)),
    )
    op.create_index("replicas_of_deployment", "replicas", ["deployment_id", "started_at"])
