"""The schema of a vault's database: its creation and migration, and which releases of gusset may use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from gusset.errors import IntegrityError, VaultError, VaultTooNew
from gusset.vault.clock import timestamp
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.database import Database
from gusset.vault.storage.meta import DELETE_META, INSERT_META, READ_META, SCHEMA
from gusset.vault.storage.prepared_schema import statements
from gusset.vault.storage.revision import OLDEST_COMPATIBLE, REVISION
from gusset.vault.storage.sql import Statement

ALIVE = timedelta(seconds=30)  # that a manager counts as running after its last report

FIRST_SIGNED = "0003"  # the revision in which all rows were signed

_MIGRATIONS = Path(__file__).parent / "migrations"
_FIRST_WITH_REPORTS = "0004"  # of managers
_FIRST_WITH_REVISIONS = "0007"  # in these reports

_HOSTS = Statement("SELECT host FROM managers WHERE seen_at >= :since ORDER BY host")
_OLDER_HOSTS = Statement(
    "SELECT host FROM managers WHERE seen_at >= :since AND revision < :oldest ORDER BY host"
)


def check_revision(found: str, connection: Connection) -> None:
    """Raises VaultTooNew for a schema of a newer gusset that this one cannot work with."""
    if found <= REVISION:
        return
    if oldest_compatible(found, connection) > REVISION:
        raise _too_new(found)


def oldest_compatible(found: str, connection: Connection) -> str:
    """The oldest revision whose gusset can work with the schema `found`; `found` if nothing is known."""
    row = connection.one(READ_META, {"key": SCHEMA})
    schema, oldest = _revisions(row.value if row else None)
    return oldest if schema == found else found


def check_stored_revisions(text: str | None) -> None:
    """Raises VaultTooNew as `check_revision` does. `text` is the row `SCHEMA` of `meta`.

    Each migration writes that row under the lock that every writer takes, so whoever reads it in a
    transaction that writes knows that no migration has been missed.
    """
    schema, oldest = _revisions(text)
    if schema > REVISION and oldest > REVISION:
        raise _too_new(schema)


def _revisions(text: str | None) -> tuple[str, str]:
    """The two revisions in the row `SCHEMA`; empty ones if there is none."""
    schema, _, oldest = (text or "").partition(" ")
    return schema, oldest


def _too_new(found: str) -> VaultTooNew:
    return VaultTooNew(
        f"the vault was written by a newer gusset (schema {found}, this one supports {REVISION})",
        hint="use the newer gusset; nothing was changed",
    )


def check_schema(database: Database, driver: Any) -> None:
    """Raises IntegrityError for what could change what gusset reads or writes, such as triggers and views.

    It changes nothing and takes some milliseconds, so it can be called again while the vault is in use.
    """
    if found := database.foreign_objects(driver):
        hint = "find out who made it, then remove it, or restore a backup"
        if statistics := [name.split()[1] for name in found if name.startswith("statistics ")]:
            drop = "; ".join(f"DROP TABLE {name}" for name in statistics)
            hint += f"; statistics are made by ANALYZE and PRAGMA optimize, and removed by `{drop}`"
        raise IntegrityError(
            f"the database has objects that gusset never creates: {', '.join(found)}", hint=hint
        )


@contextmanager
def migrated(database: Database, driver: Any) -> Iterator[None]:
    """A transaction that begins with the schema of `REVISION`, and is committed at the end.

    In an empty database the schema is created by prepared SQL: Alembic and SQLAlchemy, which migrate an
    older one, take four times as long to import as all else that a first command does.

    Raises:
        VaultTooNew: a newer gusset has migrated the database meanwhile.
        VaultError: managers are running that cannot work with the new schema. Nothing was changed.
    """
    connection = Connection(driver, database, None)
    try:
        database.begin_write(driver)
        found = database.revision(driver)
        if found is not None:
            check_revision(found, connection)
        is_changed = found is None or found < REVISION
        if found is None:
            for statement in statements(database.kind):
                driver.execute(statement)
        elif is_changed:
            _check_managers(connection, found)
            with database.for_sqlalchemy(driver) as raw:
                _upgrade(_alembic_config(), database.migration_url, raw)
        yield
        if is_changed:
            connection.run(DELETE_META, {"key": SCHEMA})
            connection.run(INSERT_META, {"key": SCHEMA, "value": f"{REVISION} {OLDEST_COMPATIBLE}"})
        driver.commit()
    finally:
        driver.rollback()  # does nothing after a commit


def _check_managers(connection: Connection, found: str) -> None:
    """Raises VaultError if a manager is running that is older than the revision `OLDEST_COMPATIBLE`."""
    if found < _FIRST_WITH_REPORTS or found >= OLDEST_COMPATIBLE:
        return
    since = {"since": timestamp(connection.dialect.now() - ALIVE)}
    if found < _FIRST_WITH_REVISIONS:
        rows = connection.all(_HOSTS, since)
    else:
        rows = connection.all(_OLDER_HOSTS, since | {"oldest": OLDEST_COMPATIBLE})
    if rows:
        raise VaultError(
            "managers of an older version of gusset are running, on "
            f"{', '.join(row.host for row in rows)}; they cannot work with the new schema ({REVISION})",
            hint=f"stop them; one that was killed counts for another {ALIVE.seconds} s. Nothing was changed",
        )


def _alembic_config() -> Any:
    from alembic.config import Config  # slow to import, and rarely needed

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(config: Any, url: str, raw: Any) -> None:
    """Run the migrations on `raw`, a connection in a transaction that its caller ends.

    Raises the errors of the driver that `raw` is of.
    """
    from alembic import command
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import StaticPool

    engine = create_engine(
        url, creator=lambda: raw, poolclass=StaticPool, pool_reset_on_return=None, hide_parameters=True
    )
    # SQLAlchemy ends the transaction that it takes for its own, the first time already when it connects.
    dialect: Any = engine.dialect
    dialect.do_rollback = dialect.do_commit = _do_nothing
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, REVISION)
    except DBAPIError as error:
        raise error.orig or error from None


def _do_nothing(_: object) -> None:
    """In place of SQLAlchemy's commit and rollback."""
