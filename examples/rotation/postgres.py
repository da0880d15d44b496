"""A provider for `gusset secret rotate`: the password of one of two PostgreSQL roles, in turns.

The secret's value is a connection URL. While one role is in use, the other gets a new password; once all
replicas use it, the first role loses its password. Connections that are open go on. The server and its log
see only the SCRAM verifier of a password.

    gusset secret rotate db_url --current-handle app_a \\
        --with "python postgres.py --admin postgresql://admin@db/app --roles app_a,app_b"

Both roles need the same rights, as members of one role that owns them:

    CREATE ROLE app; CREATE ROLE app_a LOGIN IN ROLE app; CREATE ROLE app_b LOGIN IN ROLE app;

Needs psycopg. The handle is the role's name.
"""

import argparse
import json
import secrets
import sys
from urllib.parse import quote

import psycopg
from psycopg import sql

parser = argparse.ArgumentParser()
parser.add_argument("--admin", required=True, help="URL of a role that may alter the two; no password in it")
parser.add_argument("--roles", required=True, help="the two roles, with a comma between them")
arguments = parser.parse_args()
roles = arguments.roles.split(",")
request = json.load(sys.stdin)


def create(connection: psycopg.Connection) -> dict[str, str]:
    if request["current"] not in roles:
        sys.exit(f"which of {arguments.roles} is in use? Name it with --current-handle")
    role = roles[1 - roles.index(request["current"])]
    password = secrets.token_urlsafe(32)
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    set_password(connection, role, verifier.decode())
    info = connection.info
    host = quote(info.host, safe="")
    return {
        "value": f"postgresql://{quote(role)}:{password}@{host}:{info.port}/{quote(info.dbname)}",
        "handle": role,
    }


def verify() -> None:
    psycopg.connect(request["value"], connect_timeout=10).close()


def revoke(connection: psycopg.Connection) -> None:
    if request["handle"] in roles:
        set_password(connection, request["handle"], None)


def set_password(connection: psycopg.Connection, role: str, verifier: str | None) -> None:
    connection.execute(
        sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
    )


if request["step"] == "verify":
    verify()
    print("{}")
elif request["step"] in ("create", "revoke"):
    with psycopg.connect(arguments.admin, connect_timeout=10) as connection:
        made = create(connection) if request["step"] == "create" else revoke(connection)
    print(json.dumps(made or {}))  # after the commit
else:
    sys.exit(64)
