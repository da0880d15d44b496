"""Moving a vault from one database to another: SQLite to PostgreSQL, and back.

All rows are copied in one transaction of the target. A move that is killed before its commit
leaves no vault there, and the next one begins anew; after its commit, the next one finds the same
rows, and verifies them. The source is not changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gusset.errors import IntegrityError, UsageError, VaultError, VaultTooNew
from gusset.portable import real_path
from gusset.settings import Settings
from gusset.vault.file_permissions import check_files
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.database import Database, open_database
from gusset.vault.storage.revision import REVISION
from gusset.vault.storage.schema import migrated
from gusset.vault.storage.sql import Statement
from gusset.vault.storage.tables import SIGNED_TABLES
from gusset.vault.wiring import open_vault

_SIGNED = {table.name: table.key for table in SIGNED_TABLES}

# Every table with its primary key. A table comes after those that its rows refer to.
TABLES: dict[str, tuple[str, ...]] = {
    "keyring": ("kind", "number", "root_key_id"),
    **_SIGNED,
    "replicas": ("deployment_id", "id"),
    "masked_values": ("secret_id", "deployment", "form", "channel"),
    "idempotency": ("caller", "route", "key"),
    "managers": ("id",),
    "password_attempts": ("client",),
    "audit": ("seq",),
    "checkpoints": ("seq",),
    "meta": ("key",),
}
_MIGRATIONS = "alembic_version"  # the migrations of the target write it


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A vault that was moved: the databases' names for people, and what was copied and verified."""

    source: str
    target: str
    rows: int
    records: int
    head: str
    root_key: str  # where it comes from, for people


def move_vault(settings: Settings, source_url: str, target_url: str) -> Move:
    """Copy the vault at `source_url` to the empty database at `target_url`; both are verified.

    A target that has the same rows already is only verified.

    Raises:
        UsageError: both are the same database.
        VaultError: there is no vault at `source_url`, another process uses one of the
            databases, or the target is not empty.
        IntegrityError: one of them is not intact. Nothing was copied if it is the source.
    """
    source, target = open_database(source_url), open_database(target_url)
    if source_url == target_url or (
        source.file and target.file and real_path(source.file) == real_path(target.file)
    ):
        raise UsageError("both URLs name the same database")
    _verify(replace(settings, database=source_url), "the vault is not intact, and was not moved")
    target_settings = replace(settings, database=target_url)
    with _translated(source), source.sole_user() as reading:
        _check_tables(source, reading)
        source.begin_write(reading)
        try:
            with _translated(target):
                check_files(target_settings, target.file)
                target.make()
                with target.sole_user() as writing:
                    rows = _copy_into(target, writing, Connection(reading, source, None))
        finally:
            reading.rollback()
    records, head, root_key = _verify(target_settings, "the copy is not intact: do not use it")
    if records != rows["audit"]:
        raise IntegrityError(f"the copy has only {records} of {rows['audit']} audit records: do not use it")
    return Move(
        source=source.name,
        target=target.name,
        rows=sum(rows.values()),
        records=records,
        head=head,
        root_key=root_key,
    )


def _copy_into(target: Database, driver: Any, source: Connection) -> dict[str, int]:
    """Copy and compare every table in one transaction of `driver`. Returns their numbers of rows.

    A database that has just these rows was filled by a move that was killed after its commit.
    """
    if found := target.tables(driver):
        if (rows := _same_rows(target, driver, source)) is not None:
            return rows
        raise VaultError(
            f"{target.name} is not empty: it has {', '.join(found)}",
            hint="create an empty database for the vault",
        )
    with migrated(target, driver):
        _check_tables(target, driver)
        copy = Connection(driver, target, None)
        return {table: _copy_table(table, source, copy) for table in TABLES}


def _same_rows(target: Database, driver: Any, source: Connection) -> dict[str, int] | None:
    """The numbers of rows of each table if both databases have the same rows, else None."""
    if target.revision(driver) != REVISION or set(target.tables(driver)) - {_MIGRATIONS} != set(TABLES):
        return None
    target.begin_snapshot(driver)
    try:
        rows, copy = dict[str, int](), Connection(driver, target, None)
        for table in TABLES:
            content = _content(source, "*", table)
            if _content(copy, content.columns, table) != content:
                return None
            rows[table] = content.rows
        return rows
    finally:
        driver.rollback()


def _copy_table(table: str, source: Connection, target: Connection) -> int:
    def insert(columns: str, rows: Sequence[Any]) -> None:
        names = columns.split(", ")
        places = ", ".join(f":{name}" for name in names)
        target.run_many(
            Statement(f"INSERT INTO {table} ({columns}) VALUES ({places})"),
            [dict(zip(names, row, strict=True)) for row in rows],
        )

    content = _content(source, "*", table, insert)
    if _content(target, content.columns, table) != content:
        raise IntegrityError(f"the rows of {table} differ after they were copied; nothing was kept")
    return content.rows


class _Content(NamedTuple):
    """What a table has: its columns (`*` if it has no rows), the number of rows, and a digest of them."""

    columns: str
    rows: int
    digest: bytes


def _content(
    connection: Connection,
    columns: str,
    table: str,
    use: Callable[[str, Sequence[Any]], None] = lambda *_: None,
) -> _Content:
    """Read the columns of a table, and pass them to `use` with some rows at a time."""
    count, digest = 0, hashlib.sha256()
    query = Statement(f"SELECT {columns} FROM {table} ORDER BY {', '.join(TABLES[table])}")
    for rows, description in connection.dialect.pieces(connection.driver, query, ()):
        columns = ", ".join(column[0] for column in description)
        use(columns, rows)
        count += len(rows)
        for row in rows:
            digest.update(repr(tuple(row)).encode())
    return _Content(columns, count, digest.digest())


def _check_tables(database: Database, driver: Any) -> None:
    """Check that the database has the tables that this gusset would copy.

    Raises:
        VaultTooNew: it has those of a newer one.
        IntegrityError: one is missing, or would not be copied.
    """
    revision = database.revision(driver)
    if revision is not None and revision > REVISION:
        raise VaultTooNew(
            f"the vault was written by a newer gusset (schema {revision})", hint="move it with that gusset"
        )
    found = set(database.tables(driver)) - {_MIGRATIONS}
    if found != set(TABLES):
        raise IntegrityError(
            f"the database's tables are not those of this gusset: {', '.join(sorted(found ^ set(TABLES)))}",
            hint="the vault needs a database, or a schema, of its own; nothing was copied",
        )


def _verify(settings: Settings, message: str) -> tuple[int, str, str]:
    with open_vault(settings, create=False) as vault:
        report, root_key = vault.audit.verify(), vault.root_key_rotation.source_name
    if report.problems:
        raise IntegrityError(f"{message}:\n" + "\n".join(report.problems), hint="see docs/security.md")
    return report.records, str(report.head), root_key


@contextmanager
def _translated(database: Database) -> Iterator[None]:
    try:
        yield
    except (database.errors, OSError) as error:
        raise database.translated(error) from None
