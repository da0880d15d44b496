"""The vault's SQL is PostgreSQL's too; what is SQLite's alone stands in one file."""

from __future__ import annotations

import re
import runpy
from io import StringIO
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import Executable

import gusset.vault
from gusset.vault.audit import chain, consistency, log
from gusset.vault.services import key_rotation
from gusset.vault.storage import secret_statements
from gusset.vault.storage.compiled_sql import CompiledStatement
from gusset.vault.storage.tables import metadata

STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": statement
    for module in (consistency, chain, log, key_rotation, secret_statements)
    for name, statement in vars(module).items()
    if isinstance(statement, Executable | CompiledStatement)
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_is_sql_for_postgresql(name: str) -> None:
    """It compiles for that dialect, with parameters by name as its drivers take them."""
    statement = STATEMENTS[name]
    if isinstance(statement, CompiledStatement):
        text, names = statement.compiled(postgresql.dialect())  # type: ignore[no-untyped-call]
        assert names is None and ("%(" in text or "max" in text)
    else:
        assert str(statement.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


def test_the_migrations_are_sql_for_postgresql() -> None:
    """Tables and the index over live names, its condition included."""
    written = StringIO()
    options = {"as_sql": True, "output_buffer": written}
    with Operations.context(MigrationContext.configure(dialect_name="postgresql", opts=options)):
        for revision in sorted(
            (Path(gusset.vault.__file__).parent / "storage" / "migrations" / "versions").glob("*.py")
        ):
            runpy.run_path(str(revision))["upgrade"]()

    assert written.getvalue().count("CREATE TABLE") == len(metadata.tables)
    assert "BYTEA" in written.getvalue() and "WHERE deleted_at IS NULL" in written.getvalue()


def test_what_is_specific_to_sqlite_is_in_one_file() -> None:
    """PRAGMAs, its catalogue and its locking are in database.py; fast_list.py is for SQLite alone."""
    folder = Path(gusset.vault.__file__).parent
    own = re.compile(r"PRAGMA|sqlite_master|IMMEDIATE|import sqlite3")
    assert {path.name for path in folder.rglob("*.py") if own.search(path.read_text())} == {
        "database.py",
        "fast_list.py",
    }
