"""The signed tables of the database: columns and keys.

A change needs a migration, `make newest-schema` after it, and the new revision in `revision.py`.

Times are text (RFC 3339 in UTC with milliseconds), so that they sort and compare as text.
Values and keys are only bytes here. Tables without signed rows are `meta`, `keyring`, `audit`, `checkpoints`,
`idempotency`, `replicas`, `managers`, `masked_values` and `password_attempts`; see the migrations.
"""

from __future__ import annotations

from typing import Final

from gusset.vault.storage.signed_rows import SignedTable

TEAMS = SignedTable(name="teams", key=("id",), columns=("id", "name", "created_at"), row="the team {name}")

SECRETS = SignedTable(
    name="secrets",
    key=("id",),
    columns=(
        "id",
        "team_id",
        "name",
        "folded",
        "note",
        "expires_at",
        "created_at",
        "updated_at",
        "deleted_at",
        "last_version",
        "current_version",  # NULL when every version is destroyed
        "revision",  # increased when what is delivered may have changed; watchers compare it
    ),
    unsigned=("last_read_at",),  # last delivery to a deployment, to the second
    row="the secret {name}",
)

SECRET_VERSIONS = SignedTable(
    name="secret_versions",
    key=("secret_id", "version"),
    columns=(
        "secret_id",
        "version",
        "sealed",  # NULL when destroyed
        "write_id",  # random, part of what the sealed bytes are bound to; NULL before format 2
        "created_at",
        "created_by",
        "destroyed_at",
    ),
    row="version {version} of the secret {secret_id}",
)

# The version before the current one stays readable until `ends_at`. It ends at once when another version
# than `successor` becomes current.
OVERLAPS = SignedTable(
    name="secret_overlaps",
    key=("secret_id",),
    columns=("secret_id", "version", "successor", "ends_at"),
    row="the overlap of version {version} of the secret {secret_id}",
)

# The unfinished rotation of a secret by a provider's program. `holder` is the process that runs it.
ROTATIONS = SignedTable(
    name="secret_rotations",
    key=("secret_id",),
    columns=("secret_id", "id", "step", "version", "started_at", "started_by"),
    unsigned=("holder", "held_until"),
    row="the rotation {id} of the secret {secret_id}",
)

# By `handle` the provider knows the credential that a version has; it is not secret.
CREDENTIALS = SignedTable(
    name="secret_credentials",
    key=("secret_id", "version"),
    columns=("secret_id", "version", "handle", "revoked_at"),
    row="the credential of version {version} of the secret {secret_id}",
)

SCHEDULES = SignedTable(
    name="secret_schedules",
    key=("secret_id",),
    columns=("secret_id", "rotate_every"),  # seconds
    row="the rotation interval of the secret {secret_id}",
)

USERS = SignedTable(
    name="users",
    key=("id",),
    columns=(
        "id",
        "email",  # in lower case
        "name",
        "password",  # encoded argon2id hash; NULL until the person has chosen a password
        "role",
        "created_at",
        "disabled_at",
    ),
    row="the account {email}",
)

MEMBERS = SignedTable(
    name="members",
    key=("team_id", "user_id"),
    columns=("team_id", "user_id"),
    row="the membership of {user_id} in the team {team_id}",
)

SESSIONS = SignedTable(
    name="sessions",
    key=("hash",),
    columns=("hash", "user_id", "created_at", "expires_at"),
    unsigned=("seen_at",),
    row="a session of {user_id}",
)

DEPLOYMENTS = SignedTable(
    name="deployments",
    key=("id",),
    columns=(
        "id",
        "team_id",
        "name",
        "secrets",  # a JSON list: the names that it declares
        "created_at",
        "created_by",
        "updated_at",
        "deleted_at",
    ),
    row="the deployment {name}",
)

# API keys of people ("key"), tokens of deployments ("token"), one-time links to choose a password ("link").
ACCESS_KEYS = SignedTable(
    name="access_keys",
    key=("prefix",),
    columns=(
        "prefix",
        "hash",
        "kind",
        "user_id",
        "deployment_id",
        "name",
        "allows",  # a JSON list: a key's scopes, or the secrets that a token may read
        "gives",  # of a key, a JSON list: the secrets that it may give to deployments; "*" is all
        "created_at",
        "created_by",
        "expires_at",
        "revoked_at",
    ),
    unsigned=("last_used_at",),
    row="the key {prefix}",
)

# Whose JSON Web Tokens are accepted. Without `jwks_url` and `jwks`, its discovery document names its keys.
ISSUERS = SignedTable(
    name="issuers",
    key=("url",),
    columns=(
        "url",  # exactly as the tokens have it
        "jwks_url",
        "jwks",  # the keys themselves, as JSON
        "allow_private",  # 1: its keys may be fetched from a private address
        "created_at",
        "created_by",
    ),
    row="the issuer {url}",
)

# Which JSON Web Tokens stand for which deployment. Only `created_by` and `last_used_at` ever change.
IDENTITIES = SignedTable(
    name="identities",
    key=("id",),
    columns=(
        "id",
        "team_id",
        "name",
        "deployment_id",
        "issuer",
        "audience",
        "subject",
        "claims",  # a JSON object: JSON Pointer -> the value that it must lead to; keys are sorted
        "created_at",
        "created_by",
    ),
    unsigned=("last_used_at",),  # when a token was last exchanged by it
    row="the identity {name}",
)

# See `audit/epochs.py`. The record `first_seq` is the first of the epoch, and has written the row.
EPOCHS = SignedTable(
    name="epochs", key=("number",), columns=("number", "first_seq", "started_at"), row="the epoch {number}"
)

# What the revisions of secrets are made of, which others follow (see `services/change_poller.py`).
FOLLOWED_TABLES: Final = frozenset({SECRETS.name, SECRET_VERSIONS.name, EPOCHS.name})

SIGNED_TABLES = (
    EPOCHS,
    TEAMS,
    USERS,
    MEMBERS,
    SESSIONS,
    DEPLOYMENTS,
    ACCESS_KEYS,
    ISSUERS,
    IDENTITIES,
    SECRETS,
    SECRET_VERSIONS,
    OVERLAPS,
    ROTATIONS,
    CREDENTIALS,
    SCHEDULES,
)
