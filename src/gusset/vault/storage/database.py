"""From a URL to a database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from gusset.errors import UsageError, VaultError
from gusset.vault.storage.connection import Dialect
from gusset.vault.storage.sqlite import Sqlite

_SQLITE = "sqlite:///"


class ChangeSignal(Protocol):
    """Tells when others have written to the database. For use by one thread, but for `wake`."""

    def counter(self) -> int:
        """A number that changes whenever another connection has changed a secret; cheap to read."""

    def wait(self) -> None:
        """Return when the counter may have changed, after a call of `wake`, or after a while."""

    def wake(self) -> None:
        """Let `wait` return. Thread-safe."""

    def close(self) -> None:
        """Close its connection."""


class Database(Dialect, Protocol):
    """A dialect, and what opening and migrating a database needs."""

    name: str  # for people: the file, or the server without user and password
    kind: str  # "sqlite" or "postgresql"
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

    def sole_user(self) -> AbstractContextManager[Any]:
        """A connection while no other process uses the database. Raises VaultError if one does."""

    def tables(self, driver: Any) -> list[str]:
        """The names of all tables."""

    def warning(self, driver: Any) -> str | None:
        """What an administrator should know: that acknowledged writes may be lost. None for nothing."""

    def for_sqlalchemy(self, driver: Any) -> AbstractContextManager[Any]:
        """The connection as SQLAlchemy uses it, in the transaction that it is in."""

    def revision(self, driver: Any) -> str | None:
        """The schema's revision; None for a database without tables."""

    def foreign_objects(self, driver: Any) -> list[str]:
        """What gusset does not make, and could change what it reads or writes: triggers, views and others."""

    def change_signal(self) -> ChangeSignal:
        """Follow the changes that other connections make."""

    def erase_overwritten(self) -> None:
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
    from gusset.vault.storage.postgres_url import is_postgres  # SQLite does not need it

    if is_postgres(url):
        return _postgres(url)
    if "://" in url:
        raise UsageError(
            "the database must be SQLite or PostgreSQL: sqlite:///PATH or postgresql://USER@HOST/DATABASE",
            hint="check GUSSET_DATABASE",
        )
    raise UsageError(
        "GUSSET_DATABASE is not a database URL", hint="an example: sqlite:////var/lib/gusset/vault.db"
    )


def _postgres(url: str) -> Database:
    """Imported only here: SQLite's users need no psycopg, nor the time that it takes to load."""
    try:
        from gusset.vault.storage.postgres import Postgres
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise UsageError(
            "PostgreSQL needs an extra of gusset", hint="pip install 'gusset[postgres]'"
        ) from None
    return Postgres(url)
