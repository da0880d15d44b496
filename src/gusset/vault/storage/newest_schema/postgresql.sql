-- The newest schema of a vault. Made by `make newest-schema`; do not edit it.
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE meta (
    key TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (key)
);
CREATE TABLE keyring (
    kind TEXT COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    root_key_id TEXT COLLATE "C" NOT NULL,
    wrapped BYTEA NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, number, root_key_id)
);
CREATE TABLE teams (
    id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);
CREATE TABLE secrets (
    id TEXT COLLATE "C" NOT NULL,
    team_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    folded TEXT COLLATE "C" NOT NULL,
    note TEXT COLLATE "C",
    expires_at TEXT COLLATE "C",
    created_at TEXT COLLATE "C" NOT NULL,
    updated_at TEXT COLLATE "C" NOT NULL,
    deleted_at TEXT COLLATE "C",
    last_version BIGINT NOT NULL,
    current_version BIGINT,
    revision BIGINT NOT NULL,
    last_read_at TEXT COLLATE "C",
    PRIMARY KEY (id),
    FOREIGN KEY(team_id) REFERENCES teams (id)
);
CREATE UNIQUE INDEX secrets_live_name ON secrets (team_id, folded) WHERE deleted_at IS NULL;
CREATE TABLE secret_versions (
    secret_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    sealed BYTEA,
    created_at TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    destroyed_at TEXT COLLATE "C",
    PRIMARY KEY (secret_id, version),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE audit (
    seq BIGINT NOT NULL,
    at TEXT COLLATE "C" NOT NULL,
    actor TEXT COLLATE "C" NOT NULL,
    action TEXT COLLATE "C" NOT NULL,
    target TEXT COLLATE "C" NOT NULL,
    outcome TEXT COLLATE "C" NOT NULL,
    details TEXT COLLATE "C" NOT NULL,
    hash BYTEA NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (seq)
);
CREATE TABLE checkpoints (
    seq BIGINT NOT NULL,
    at TEXT COLLATE "C" NOT NULL,
    hash BYTEA NOT NULL,
    signature BYTEA NOT NULL,
    PRIMARY KEY (seq)
);
CREATE TABLE users (
    id TEXT COLLATE "C" NOT NULL,
    email TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    password TEXT COLLATE "C",
    role TEXT COLLATE "C" NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    disabled_at TEXT COLLATE "C",
    PRIMARY KEY (id),
    UNIQUE (email)
);
CREATE TABLE members (
    team_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (team_id, user_id),
    FOREIGN KEY(team_id) REFERENCES teams (id),
    FOREIGN KEY(user_id) REFERENCES users (id)
);
CREATE TABLE sessions (
    hash BYTEA NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    seen_at TEXT COLLATE "C" NOT NULL,
    expires_at TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (hash),
    FOREIGN KEY(user_id) REFERENCES users (id)
);
CREATE TABLE deployments (
    id TEXT COLLATE "C" NOT NULL,
    team_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    secrets TEXT COLLATE "C" NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    updated_at TEXT COLLATE "C" NOT NULL,
    deleted_at TEXT COLLATE "C",
    PRIMARY KEY (id),
    FOREIGN KEY(team_id) REFERENCES teams (id)
);
CREATE UNIQUE INDEX deployments_live_name ON deployments (team_id, name) WHERE deleted_at IS NULL;
CREATE TABLE access_keys (
    prefix TEXT COLLATE "C" NOT NULL,
    hash BYTEA NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C",
    deployment_id TEXT COLLATE "C",
    name TEXT COLLATE "C" NOT NULL,
    allows TEXT COLLATE "C" NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    expires_at TEXT COLLATE "C",
    last_used_at TEXT COLLATE "C",
    revoked_at TEXT COLLATE "C",
    PRIMARY KEY (prefix),
    FOREIGN KEY(user_id) REFERENCES users (id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id)
);
CREATE TABLE replicas (
    deployment_id TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    host TEXT COLLATE "C" NOT NULL,
    versions TEXT COLLATE "C" NOT NULL,
    started_at TEXT COLLATE "C" NOT NULL,
    seen_at TEXT COLLATE "C" NOT NULL,
    stopped_at TEXT COLLATE "C",
    PRIMARY KEY (deployment_id, id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id)
);
CREATE TABLE masked_values (
    secret_id TEXT COLLATE "C" NOT NULL,
    deployment TEXT COLLATE "C" NOT NULL,
    form TEXT COLLATE "C" NOT NULL,
    channel TEXT COLLATE "C" NOT NULL,
    times BIGINT NOT NULL,
    version BIGINT,
    last_at TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (secret_id, deployment, form, channel),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
ALTER TABLE teams ADD COLUMN changed_seq BIGINT;
ALTER TABLE teams ADD COLUMN mac BYTEA;
ALTER TABLE users ADD COLUMN changed_seq BIGINT;
ALTER TABLE users ADD COLUMN mac BYTEA;
ALTER TABLE members ADD COLUMN changed_seq BIGINT;
ALTER TABLE members ADD COLUMN mac BYTEA;
ALTER TABLE sessions ADD COLUMN changed_seq BIGINT;
ALTER TABLE sessions ADD COLUMN mac BYTEA;
ALTER TABLE deployments ADD COLUMN changed_seq BIGINT;
ALTER TABLE deployments ADD COLUMN mac BYTEA;
ALTER TABLE access_keys ADD COLUMN changed_seq BIGINT;
ALTER TABLE access_keys ADD COLUMN mac BYTEA;
ALTER TABLE secrets ADD COLUMN changed_seq BIGINT;
ALTER TABLE secrets ADD COLUMN mac BYTEA;
ALTER TABLE secret_versions ADD COLUMN changed_seq BIGINT;
ALTER TABLE secret_versions ADD COLUMN mac BYTEA;
ALTER TABLE secret_versions ADD COLUMN write_id TEXT COLLATE "C";
ALTER TABLE access_keys ADD COLUMN gives TEXT COLLATE "C";
ALTER TABLE audit ADD COLUMN changes TEXT COLLATE "C";
CREATE TABLE idempotency (
    caller TEXT COLLATE "C" NOT NULL,
    route TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    mac BYTEA NOT NULL,
    response TEXT COLLATE "C",
    created_at TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (caller, route, key)
);
CREATE INDEX idempotency_created_at ON idempotency (created_at);
ALTER TABLE checkpoints ADD COLUMN signing_key BIGINT;
ALTER TABLE checkpoints ADD COLUMN keyring BIGINT;
CREATE TABLE managers (
    id TEXT COLLATE "C" NOT NULL,
    host TEXT COLLATE "C" NOT NULL,
    started_at TEXT COLLATE "C" NOT NULL,
    seen_at TEXT COLLATE "C" NOT NULL,
    root_key_id TEXT COLLATE "C" NOT NULL,
    keyring BIGINT NOT NULL,
    checkpoint BIGINT NOT NULL,
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
ALTER TABLE checkpoints ADD COLUMN epoch BIGINT DEFAULT '1' NOT NULL;
CREATE TABLE epochs (
    number BIGINT NOT NULL,
    first_seq BIGINT NOT NULL,
    started_at TEXT COLLATE "C" NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (number)
);
CREATE TABLE password_attempts (
    client BYTEA NOT NULL,
    over_at BIGINT NOT NULL,
    PRIMARY KEY (client)
);
CREATE INDEX password_attempts_over ON password_attempts (over_at);
ALTER TABLE managers ADD COLUMN revision TEXT COLLATE "C" DEFAULT '0006' NOT NULL;
ALTER TABLE replicas ADD COLUMN delivered TEXT COLLATE "C";
CREATE TABLE secret_overlaps (
    secret_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    successor BIGINT NOT NULL,
    ends_at TEXT COLLATE "C" NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (secret_id),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE issuers (
    url TEXT COLLATE "C" NOT NULL,
    jwks_url TEXT COLLATE "C",
    jwks TEXT COLLATE "C",
    allow_private BIGINT NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (url)
);
CREATE TABLE identities (
    id TEXT COLLATE "C" NOT NULL,
    team_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    deployment_id TEXT COLLATE "C" NOT NULL,
    issuer TEXT COLLATE "C" NOT NULL,
    audience TEXT COLLATE "C" NOT NULL,
    subject TEXT COLLATE "C" NOT NULL,
    claims TEXT COLLATE "C" NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    last_used_at TEXT COLLATE "C",
    changed_seq BIGINT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(team_id) REFERENCES teams (id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id),
    FOREIGN KEY(issuer) REFERENCES issuers (url)
);
CREATE UNIQUE INDEX identities_name ON identities (team_id, name);
CREATE INDEX identities_subject ON identities (issuer, subject);
CREATE INDEX identities_deployment ON identities (deployment_id);
CREATE TABLE secret_rotations (
    secret_id TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    version BIGINT,
    started_at TEXT COLLATE "C" NOT NULL,
    started_by TEXT COLLATE "C" NOT NULL,
    holder TEXT COLLATE "C",
    held_until TEXT COLLATE "C",
    changed_seq BIGINT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (secret_id),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE secret_credentials (
    secret_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    handle TEXT COLLATE "C" NOT NULL,
    revoked_at TEXT COLLATE "C",
    changed_seq BIGINT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (secret_id, version),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
CREATE TABLE secret_schedules (
    secret_id TEXT COLLATE "C" NOT NULL,
    rotate_every BIGINT NOT NULL,
    changed_seq BIGINT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (secret_id),
    FOREIGN KEY(secret_id) REFERENCES secrets (id)
);
INSERT INTO alembic_version (version_num) VALUES ('0010')
