"""The first schema: keyring, teams, people, secrets, deployments, audit log."""

import sqlalchemy as sa
from alembic import op

from gusset.vault.storage.migrations.columns import INTEGER, TEXT, short_text

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "meta", sa.Column("key", short_text(64), primary_key=True), sa.Column("value", TEXT, nullable=False)
    )
    op.create_table(
        "keyring",
        sa.Column("kind", short_text(16), nullable=False),
        sa.Column("number", INTEGER, nullable=False),
        sa.Column("root_key_id", short_text(16), nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.PrimaryKeyConstraint("kind", "number", "root_key_id"),
    )
    op.create_table(
        "teams",
        sa.Column("id", short_text(32), primary_key=True),
        sa.Column("name", short_text(253), nullable=False, unique=True),
        sa.Column("created_at", short_text(24), nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("id", short_text(32), primary_key=True),
        sa.Column("team_id", short_text(32), sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("name", short_text(253), nullable=False),
        sa.Column("folded", short_text(253), nullable=False),
        sa.Column("note", TEXT),
        sa.Column("expires_at", short_text(24)),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("updated_at", short_text(24), nullable=False),
        sa.Column("deleted_at", short_text(24)),
        sa.Column("last_version", INTEGER, nullable=False),
        sa.Column("current_version", INTEGER),
        sa.Column("revision", INTEGER, nullable=False),
        sa.Column("last_read_at", short_text(24)),
    )
    live = sa.text("deleted_at IS NULL")
    op.create_index(
        "secrets_live_name",
        "secrets",
        ["team_id", "folded"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_table(
        "secret_versions",
        sa.Column("secret_id", short_text(32), sa.ForeignKey("secrets.id"), nullable=False),
        sa.Column("version", INTEGER, nullable=False),
        sa.Column("sealed", sa.LargeBinary),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("destroyed_at", short_text(24)),
        sa.PrimaryKeyConstraint("secret_id", "version"),
    )
    op.create_table(
        "audit",
        sa.Column("seq", INTEGER, primary_key=True, autoincrement=False),
        sa.Column("at", short_text(24), nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("action", short_text(64), nullable=False),
        sa.Column("target", TEXT, nullable=False),
        sa.Column("outcome", short_text(64), nullable=False),
        sa.Column("details", TEXT, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("seq", INTEGER, primary_key=True, autoincrement=False),
        sa.Column("at", short_text(24), nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "users",
        sa.Column("id", short_text(32), primary_key=True),
        sa.Column("email", short_text(254), nullable=False, unique=True),
        sa.Column("name", short_text(253), nullable=False),
        sa.Column("password", TEXT),
        sa.Column("role", short_text(16), nullable=False),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("disabled_at", short_text(24)),
    )
    op.create_table(
        "members",
        sa.Column("team_id", short_text(32), sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("user_id", short_text(32), sa.ForeignKey("users.id"), nullable=False),
        sa.PrimaryKeyConstraint("team_id", "user_id"),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.LargeBinary, primary_key=True),
        sa.Column("user_id", short_text(32), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("seen_at", short_text(24), nullable=False),
        sa.Column("expires_at", short_text(24), nullable=False),
    )
    op.create_table(
        "deployments",
        sa.Column("id", short_text(32), primary_key=True),
        sa.Column("team_id", short_text(32), sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("name", short_text(253), nullable=False),
        sa.Column("secrets", TEXT, nullable=False),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("updated_at", short_text(24), nullable=False),
        sa.Column("deleted_at", short_text(24)),
    )
    op.create_index(
        "deployments_live_name",
        "deployments",
        ["team_id", "name"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_table(
        "access_keys",
        sa.Column("prefix", short_text(16), primary_key=True),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("kind", short_text(8), nullable=False),
        sa.Column("user_id", short_text(32), sa.ForeignKey("users.id")),
        sa.Column("deployment_id", short_text(32), sa.ForeignKey("deployments.id")),
        sa.Column("name", short_text(253), nullable=False),
        sa.Column("allows", TEXT, nullable=False),
        sa.Column("created_at", short_text(24), nullable=False),
        sa.Column("created_by", TEXT, nullable=False),
        sa.Column("expires_at", short_text(24)),
        sa.Column("last_used_at", short_text(24)),
        sa.Column("revoked_at", short_text(24)),
    )
    op.create_table(
        "replicas",
        sa.Column("deployment_id", short_text(32), sa.ForeignKey("deployments.id"), nullable=False),
        sa.Column("id", short_text(64), nullable=False),
        sa.Column("host", short_text(253), nullable=False),
        sa.Column("versions", TEXT, nullable=False),
        sa.Column("started_at", short_text(24), nullable=False),
        sa.Column("seen_at", short_text(24), nullable=False),
        sa.Column("stopped_at", short_text(24)),
        sa.PrimaryKeyConstraint("deployment_id", "id"),
    )
