"""The tables of the database. Values and keys are only bytes here.

Times are text (RFC 3339 in UTC with milliseconds), so that they sort and compare
as text. Change it only together with a migration.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

meta = Table(
    "meta", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

keyring_table = Table(
    "keyring",
    metadata,
    Column("kind", String(16), nullable=False),
    Column("number", Integer, nullable=False),
    Column("root_key_id", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", String(24), nullable=False),
    # During a rotation of the root key each key is stored twice, once for each root key.
    PrimaryKeyConstraint("kind", "number", "root_key_id"),
)

teams = Table(
    "teams",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(253), nullable=False, unique=True),
    Column("created_at", String(24), nullable=False),
)

secrets_table = Table(
    "secrets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False),
    Column("name", String(253), nullable=False),
    Column("folded", String(253), nullable=False),
    Column("note", Text),
    Column("expires_at", String(24)),
    Column("created_at", String(24), nullable=False),
    Column("updated_at", String(24), nullable=False),
    Column("deleted_at", String(24)),
    Column("last_version", Integer, nullable=False),
    Column("current_version", Integer),  # null when every version is destroyed
    Column("revision", Integer, nullable=False),  # incremented by every change; watchers compare it
    Column("last_read_at", String(24)),  # last delivery to a deployment, to the second
)
Index(
    "secrets_live_name",
    secrets_table.c.team_id,
    secrets_table.c.folded,
    unique=True,
    # PostgreSQL's condition is only in the migration: naming it here would import that whole dialect.
    sqlite_where=text("deleted_at IS NULL"),
)

secret_versions = Table(
    "secret_versions",
    metadata,
    Column("secret_id", String(32), ForeignKey("secrets.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("sealed", LargeBinary),  # null when destroyed
    Column("created_at", String(24), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("destroyed_at", String(24)),
    PrimaryKeyConstraint("secret_id", "version"),
)

audit_table = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(24), nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", Text, nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("details", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

checkpoints_table = Table(
    "checkpoints",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(24), nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("email", String(254), nullable=False, unique=True),  # in lower case
    Column("name", String(253), nullable=False),
    Column("password", Text),  # encoded argon2id hash; null until the person has chosen a password
    Column("role", String(16), nullable=False),
    Column("created_at", String(24), nullable=False),
    Column("disabled_at", String(24)),
)

members = Table(
    "members",
    metadata,
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False),
    Column("user_id", String(32), ForeignKey("users.id"), nullable=False),
    PrimaryKeyConstraint("team_id", "user_id"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id"), nullable=False),
    Column("created_at", String(24), nullable=False),
    Column("seen_at", String(24), nullable=False),
    Column("expires_at", String(24), nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", String(32), ForeignKey("teams.id"), nullable=False),
    Column("name", String(253), nullable=False),
    Column("secrets", Text, nullable=False),  # a JSON list: the names that it declares
    Column("created_at", String(24), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", String(24), nullable=False),
    Column("deleted_at", String(24)),
)
Index(
    "deployments_live_name",
    deployments.c.team_id,
    deployments.c.name,
    unique=True,
    sqlite_where=text("deleted_at IS NULL"),
)

# API keys of people ("key"), tokens of deployments ("token"), one-time links to choose a password ("link").
access_keys = Table(
    "access_keys",
    metadata,
    Column("prefix", String(16), primary_key=True),
    Column("hash", LargeBinary, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("user_id", String(32), ForeignKey("users.id")),
    Column("deployment_id", String(32), ForeignKey("deployments.id")),
    Column("name", String(253), nullable=False),
    Column(
        "allows", Text, nullable=False
    ),  # a JSON list: a key's scopes, or the secrets that a token may read
    Column("created_at", String(24), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", String(24)),
    Column("last_used_at", String(24)),
    Column("revoked_at", String(24)),
)

replicas = Table(
    "replicas",
    metadata,
    Column("deployment_id", String(32), ForeignKey("deployments.id"), nullable=False),
    Column("id", String(64), nullable=False),
    Column("host", String(253), nullable=False),
    Column("versions", Text, nullable=False),  # a JSON object: name -> version in use
    Column("started_at", String(24), nullable=False),
    Column("seen_at", String(24), nullable=False),
    Column("stopped_at", String(24)),
    PrimaryKeyConstraint("deployment_id", "id"),
)

# How often a deployment's masker has found a value in its output.
masked_values = Table(
    "masked_values",
    metadata,
    Column("secret_id", String(32), ForeignKey("secrets.id"), nullable=False),
    Column("deployment", String(253), nullable=False),
    Column("form", String(32), nullable=False),
    Column("channel", String(32), nullable=False),
    Column("times", Integer, nullable=False),
    Column("version", Integer),  # the current one at the last time
    Column("last_at", String(24), nullable=False),
    PrimaryKeyConstraint("secret_id", "deployment", "form", "channel"),
)
