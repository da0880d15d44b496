"""Failed passwords are counted for all managers together; managers report the revision that they support."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, short_text

revision = "0007"
down_revision = "0006"
oldest_beside = "0006"


def upgrade() -> None:
    op.create_table(
        "password_attempts",
        sa.Column("client", sa.LargeBinary, primary_key=True),
        sa.Column("over_at", INTEGER, nullable=False),
    )
    op.create_index("password_attempts_over", "password_attempts", ["over_at"])
    # Managers of revision 0006 report without it.
    op.add_column("managers", sa.Column("revision", short_text(4), nullable=False, server_default="0006"))
