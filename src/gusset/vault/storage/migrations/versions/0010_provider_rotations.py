"""Rotations by a provider's program: the unfinished ones, the credentials of versions, and intervals."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, TEXT, short_text

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "secret_rotations",
        sa.Column("secret_id", short_text(32), sa.ForeignKey("secrets.id"), primary_key=True),
        sa.Column("id", short_text(32), nullable=False),
        sa.Column("step", short_text(16), nullable=False),
        sa.Column("version", INTEGER),
        sa.Column("started_at", short_text(24), nullable=False),
        sa.Column("started_by", TEXT, nullable=False),
        sa.Column("holder", short_text(32)),
        sa.Column("held_until", short_text(24)),
        *_signature(),
    )
    op.create_table(
        "secret_credentials",
        sa.Column("secret_id", short_text(32), sa.ForeignKey("secrets.id"), primary_key=True),
        sa.Column("version", INTEGER, primary_key=True, autoincrement=False),
        sa.Column("handle", TEXT, nullable=False),
        sa.Column("revoked_at", short_text(24)),
        *_signature(),
    )
    op.create_table(
        "secret_schedules",
        sa.Column("secret_id", short_text(32), sa.ForeignKey("secrets.id"), primary_key=True),
        sa.Column("rotate_every", INTEGER, nullable=False),
        *_signature(),
    )


def _signature() -> list[sa.Column[object]]:
    return [
        sa.Column("changed_seq", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    ]
