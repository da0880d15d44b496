-- The newest schema of a vault. Made by `make newest-schema`; do not edit it.
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE meta (
    "key" VARCHAR(64) NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY ("key")
);
CREATE TABLE keyring (
    kind VARCHAR(16) NOT NULL,
    number INTEGER NOT NULL,
    root_key_id VARCHAR(16) NOT NULL,
    wrapped BLOB NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    PRIMARY KEY (kind, number, root_key_id)
);
CREATE TABLE teams (
    id VARCHAR(32) NOT NULL,
    name VARCHAR(253) NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);
CREATE TABLE secrets (
    id VARCHAR(32) NOT NULL,
    team_id VARCHAR(32) NOT NULL,
    name VARCHAR(253) NOT NULL,
    folded VARCHAR(253) NOT NULL,
    note TEXT,
    expires_at VARCHAR(24),
    created_at VARCHAR(24) NOT NULL,
    updated_at VARCHAR(24) NOT NULL,
    deleted_at VARCHAR(24),
    last_version INTEGER NOT NULL,
    current_version INTEGER,
    revision INTEGER NOT NULL,
    last_read_at VARCHAR(24),
    PRIMARY KEY (id),
    FOREIGN KEY(team_id) REFERENCES teams (id)
);
CREATE UNIQUE INDEX secrets_live_name ON secrets (team_id, folded) WHERE deleted_at IS NULL;
CREATE TABLE secret_versions (
    secret_id VARCHAR(32) NOT NULL,
    version INTEGER NOT NULL,
    sealed BLOB,
    created_at VARCHAR(24) NOT NULL,
    created_by TEXT NOT NULL,
    destroyed_at VARCHAR(24),
    PRIMARY KEY (secret_id, version),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE audit (
    seq INTEGER NOT NULL,
    at VARCHAR(24) NOT NULL,
    actor TEXT NOT NULL,
    action VARCHAR(64) NOT NULL,
    target TEXT NOT NULL,
    outcome VARCHAR(64) NOT NULL,
    details TEXT NOT NULL,
    hash BLOB NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (seq)
);
CREATE TABLE checkpoints (
    seq INTEGER NOT NULL,
    at VARCHAR(24) NOT NULL,
    hash BLOB NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (seq)
);
CREATE TABLE users (
    id VARCHAR(32) NOT NULL,
    email VARCHAR(254) NOT NULL,
    name VARCHAR(253) NOT NULL,
    password TEXT,
    role VARCHAR(16) NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    disabled_at VARCHAR(24),
    PRIMARY KEY (id),
    UNIQUE (email)
);
CREATE TABLE members (
    team_id VARCHAR(32) NOT NULL,
    user_id VARCHAR(32) NOT NULL,
    PRIMARY KEY (team_id, user_id),
    FOREIGN KEY(team_id) REFERENCES teams (id),
    FOREIGN KEY(user_id) REFERENCES users (id)
);
CREATE TABLE sessions (
    hash BLOB NOT NULL,
    user_id VARCHAR(32) NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    seen_at VARCHAR(24) NOT NULL,
    expires_at VARCHAR(24) NOT NULL,
    PRIMARY KEY (hash),
    FOREIGN KEY(user_id) REFERENCES users (id)
);
CREATE TABLE deployments (
    id VARCHAR(32) NOT NULL,
    team_id VARCHAR(32) NOT NULL,
    name VARCHAR(253) NOT NULL,
    secrets TEXT NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    created_by TEXT NOT NULL,
    updated_at VARCHAR(24) NOT NULL,
    deleted_at VARCHAR(24),
    PRIMARY KEY (id),
    FOREIGN KEY(team_id) REFERENCES teams (id)
);
CREATE UNIQUE INDEX deployments_live_name ON deployments (team_id, name) WHERE deleted_at IS NULL;
CREATE TABLE access_keys (
    prefix VARCHAR(16) NOT NULL,
    hash BLOB NOT NULL,
    kind VARCHAR(8) NOT NULL,
    user_id VARCHAR(32),
    deployment_id VARCHAR(32),
    name VARCHAR(253) NOT NULL,
    allows TEXT NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    created_by TEXT NOT NULL,
    expires_at VARCHAR(24),
    last_used_at VARCHAR(24),
    revoked_at VARCHAR(24),
    PRIMARY KEY (prefix),
    FOREIGN KEY(user_id) REFERENCES users (id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id)
);
CREATE TABLE replicas (
    deployment_id VARCHAR(32) NOT NULL,
    id VARCHAR(64) NOT NULL,
    host VARCHAR(253) NOT NULL,
    versions TEXT NOT NULL,
    started_at VARCHAR(24) NOT NULL,
    seen_at VARCHAR(24) NOT NULL,
    stopped_at VARCHAR(24),
    PRIMARY KEY (deployment_id, id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id)
);
CREATE TABLE masked_values (
    secret_id VARCHAR(32) NOT NULL,
    deployment VARCHAR(253) NOT NULL,
    form VARCHAR(32) NOT NULL,
    channel VARCHAR(32) NOT NULL,
    times INTEGER NOT NULL,
    version INTEGER,
    last_at VARCHAR(24) NOT NULL,
    PRIMARY KEY (secret_id, deployment, form, channel),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
ALTER TABLE teams ADD COLUMN changed_seq BIGINT;
ALTER TABLE teams ADD COLUMN mac BLOB;
ALTER TABLE users ADD COLUMN changed_seq BIGINT;
ALTER TABLE users ADD COLUMN mac BLOB;
ALTER TABLE members ADD COLUMN changed_seq BIGINT;
ALTER TABLE members ADD COLUMN mac BLOB;
ALTER TABLE sessions ADD COLUMN changed_seq BIGINT;
ALTER TABLE sessions ADD COLUMN mac BLOB;
ALTER TABLE deployments ADD COLUMN changed_seq BIGINT;
ALTER TABLE deployments ADD COLUMN mac BLOB;
ALTER TABLE access_keys ADD COLUMN changed_seq BIGINT;
ALTER TABLE access_keys ADD COLUMN mac BLOB;
ALTER TABLE secrets ADD COLUMN changed_seq BIGINT;
ALTER TABLE secrets ADD COLUMN mac BLOB;
ALTER TABLE secret_versions ADD COLUMN changed_seq BIGINT;
ALTER TABLE secret_versions ADD COLUMN mac BLOB;
ALTER TABLE secret_versions ADD COLUMN write_id VARCHAR(32);
ALTER TABLE access_keys ADD COLUMN gives TEXT;
ALTER TABLE audit ADD COLUMN changes TEXT;
CREATE TABLE idempotency (
    caller VARCHAR(64) NOT NULL,
    route VARCHAR(200) NOT NULL,
    "key" VARCHAR(200) NOT NULL,
    mac BLOB NOT NULL,
    response TEXT,
    created_at VARCHAR(24) NOT NULL,
    PRIMARY KEY (caller, route, "key")
);
CREATE INDEX idempotency_created_at ON idempotency (created_at);
ALTER TABLE checkpoints ADD COLUMN signing_key INTEGER;
ALTER TABLE checkpoints ADD COLUMN keyring INTEGER;
CREATE TABLE managers (
    id VARCHAR(32) NOT NULL,
    host TEXT NOT NULL,
    started_at VARCHAR(24) NOT NULL,
    seen_at VARCHAR(24) NOT NULL,
    root_key_id VARCHAR(16) NOT NULL,
    keyring INTEGER NOT NULL,
    checkpoint INTEGER NOT NULL,
    PRIMARY KEY (id)
);
DROP TABLE replicas;
CREATE TABLE replicas (
    id VARCHAR(32) NOT NULL,
    deployment_id VARCHAR(32) NOT NULL,
    host VARCHAR(253) NOT NULL,
    versions TEXT NOT NULL,
    used TEXT NOT NULL,
    started_at VARCHAR(24) NOT NULL,
    seen_at VARCHAR(24) NOT NULL,
    reported_at VARCHAR(24),
    stopped_at VARCHAR(24),
    PRIMARY KEY (id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id)
);
CREATE INDEX replicas_of_deployment ON replicas (deployment_id, started_at);
ALTER TABLE checkpoints ADD COLUMN epoch INTEGER DEFAULT '1' NOT NULL;
CREATE TABLE epochs (
    number INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    started_at VARCHAR(24) NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (number)
);
CREATE TABLE password_attempts (
    client BLOB NOT NULL,
    over_at INTEGER NOT NULL,
    PRIMARY KEY (client)
);
CREATE INDEX password_attempts_over ON password_attempts (over_at);
ALTER TABLE managers ADD COLUMN revision VARCHAR(4) DEFAULT '0006' NOT NULL;
ALTER TABLE replicas ADD COLUMN delivered TEXT;
CREATE TABLE secret_overlaps (
    secret_id VARCHAR(32) NOT NULL,
    version INTEGER NOT NULL,
    successor INTEGER NOT NULL,
    ends_at VARCHAR(24) NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (secret_id),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE issuers (
    url TEXT NOT NULL,
    jwks_url TEXT,
    jwks TEXT,
    allow_private INTEGER NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    created_by TEXT NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (url)
);
CREATE TABLE identities (
    id VARCHAR(32) NOT NULL,
    team_id VARCHAR(32) NOT NULL,
    name VARCHAR(253) NOT NULL,
    deployment_id VARCHAR(32) NOT NULL,
    issuer TEXT NOT NULL,
    audience TEXT NOT NULL,
    subject TEXT NOT NULL,
    claims TEXT NOT NULL,
    created_at VARCHAR(24) NOT NULL,
    created_by TEXT NOT NULL,
    last_used_at VARCHAR(24),
    changed_seq BIGINT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(team_id) REFERENCES teams (id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id),
    FOREIGN KEY(issuer) REFERENCES issuers (url)
);
CREATE UNIQUE INDEX identities_name ON identities (team_id, name);
CREATE INDEX identities_subject ON identities (issuer, subject);
CREATE INDEX identities_deployment ON identities (deployment_id);
CREATE TABLE secret_rotations (
    secret_id VARCHAR(32) NOT NULL,
    id VARCHAR(32) NOT NULL,
    step VARCHAR(16) NOT NULL,
    version INTEGER,
    started_at VARCHAR(24) NOT NULL,
    started_by TEXT NOT NULL,
    holder VARCHAR(32),
    held_until VARCHAR(24),
    changed_seq BIGINT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (secret_id),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE secret_credentials (
    secret_id VARCHAR(32) NOT NULL,
    version INTEGER NOT NULL,
    handle TEXT NOT NULL,
    revoked_at VARCHAR(24),
    changed_seq BIGINT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (secret_id, version),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE secret_schedules (
    secret_id VARCHAR(32) NOT NULL,
    rotate_every INTEGER NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (secret_id),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
INSERT INTO alembic_version (version_num) VALUES ('0010')
