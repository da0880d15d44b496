"""The rights that a manager's role needs in PostgreSQL, when another role owns the vault's tables."""

from __future__ import annotations

import re

from gusset.errors import InvalidValue

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")

# What only grows: a manager adds to it, and changes nothing.
APPEND_ONLY = ("audit", "checkpoints", "epochs")


def grants(role: str, schema: str = "public") -> list[str]:
    """The statements that the owner of the tables executes, after each migration.

    With them `role` reads and writes the vault, but cannot change or remove an audit
    record, a checkpoint, an epoch or a table.

    Raises:
        InvalidValue: `role` or `schema` is not a plain name.
    """
    for name in (role, schema):
        if not _NAME.fullmatch(name):
            raise InvalidValue(f"{name!r} is not a plain name of PostgreSQL", hint="letters, digits and _")
    kept = ", ".join(f'"{schema}".{table}' for table in (*APPEND_ONLY, "alembic_version"))
    return [
        f'GRANT USAGE ON SCHEMA "{schema}" TO "{role}"',
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{role}"',
        f'REVOKE UPDATE, DELETE ON {kept} FROM "{role}"',
        f'REVOKE INSERT ON "{schema}".alembic_version FROM "{role}"',
    ]
