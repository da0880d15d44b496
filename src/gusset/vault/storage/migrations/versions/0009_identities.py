"""Issuers of JSON Web Tokens, and the identities by which such a token stands for a deployment."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, TEXT, short_text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "issuers",
        sa.Column("url", TEXT, primary_key=True),
        sa.Column("jwks_url", TEXT),
        sa.Column("jwks", TEXT),
        sa.Column("allow_private", INTEGER, nullable=False),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("changed_seq", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "identities",
        sa.Column("id", short_text(32), primary_key=True),
        sa.Column("team_id", short_text(32), sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("name", short_text(253), nullable=False),
        sa.Column("deployment_id", short_text(32), sa.ForeignKey("deployments.id"), nullable=False),
        sa.Column("issuer", TEXT, sa.ForeignKey("issuers.url"), nullable=False),
        sa.Column("audience", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("claims", TEXT, nullable=False),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("last_used_at", short_text(24)),
        sa.Column("changed_seq", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_index("identities_name", "identities", ["team_id", "name"], unique=True)
    op.create_index("identities_subject", "identities", ["issuer", "subject"])
    op.create_index("identities_deployment", "identities", ["deployment_id"])
