"""Opening the database that a URL names, and bringing it to the newest schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from gusset.errors import IntegrityError, UsageError, VaultError, VaultTooNew
from gusset.vault.storage.connection import Dialect
from gusset.vault.storage.revision import REVISION
from gusset.vault.storage.sqlite import Sqlite

_SQLITE = "sqlite:///"


class ChangeSignal(Protocol):
    """Tells when others have written to the database. For use by one thread."""

    def counter(self) -> int:
        """A number that changes whenever another connection has changed a secret; cheap to read."""

    def close(self) -> None:
        """Close its connection."""


class Database(Dialect, Protocol):
    """A dialect, and what opening and migrating a database needs."""

    migration_url: str  # the dialect and driver as SQLAlchemy names them

    @property
    def file(self) -> Path | None:
        """SQLite's file; None for a database on a server."""

    def exists(self) -> bool:
        """Whether there is a database with anything in it."""

    def make(self) -> None:
        """Create what an empty database needs."""

    def exclusive_lock(self) -> AbstractContextManager[None]:
        """Hold the lock under which processes create, migrate or re-key the vault."""

    def revision(self, driver: Any) -> str | None:
        """The schema's revision; None for a database without tables."""

    def foreign_objects(self, driver: Any) -> list[str]:
        """Triggers and views, which gusset does not have: they could change what is read or written."""

    def change_signal(self) -> ChangeSignal:
        """Follow the changes that other connections make."""

    def forget_overwritten(self) -> None:
        """Remove from disk what transactions have overwritten, as far as possible."""


def open_database(url: str) -> Database:
    """The database that `url` names; nothing is opened yet.

    Raises:
        UsageError: `url` is not the URL of a database that gusset supports.
        VaultError: it would be lost at exit.
    """
    if url in ("sqlite://", "sqlite:///:memory:"):
        raise VaultError("a vault in memory would be lost at exit", hint="set GUSSET_DATABASE to a file")
    if url.startswith(_SQLITE) and len(url) > len(_SQLITE):
        return Sqlite(Path(url.removeprefix(_SQLITE)))
    if "://" in url:
        raise UsageError("the database must be SQLite: sqlite:///PATH", hint="check GUSSET_DATABASE")
    raise UsageError(
        "GUSSET_DATABASE is not a database URL", hint="an example: sqlite:////var/lib/gusset/vault.db"
    )


def check_revision(found: str) -> None:
    """Raises VaultTooNew for a schema that a newer gusset wrote."""
    if found > REVISION:
        raise VaultTooNew(
            f"the vault was written by a newer gusset (schema {found}, this one supports {REVISION})",
            hint="use the newer gusset; nothing was changed",
        )


def check_schema(database: Database, driver: Any) -> None:
    """Raises IntegrityError for a trigger or a view: it could change what gusset reads or writes."""
    if found := database.foreign_objects(driver):
        raise IntegrityError(
            f"the database has what gusset never makes: {', '.join(found)}",
            hint="find out who created it, then remove it",
        )


@contextmanager
def migrated(database: Database, driver: Any) -> Iterator[None]:
    """A transaction that begins with the migration to `REVISION`, and is committed at the end."""
    from alembic import command  # slow to import, and rarely needed
    from alembic.config import Config
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    engine = create_engine(
        database.migration_url,
        creator=lambda: driver,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        hide_parameters=True,
    )
    with engine.connect() as connection:
        try:
            database.begin_write(driver)
            config.attributes["connection"] = connection
            command.upgrade(config, REVISION)
            yield
            driver.commit()
        finally:
            driver.rollback()  # does nothing after a commit
