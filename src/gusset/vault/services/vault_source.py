"""The embedded vault as a `SecretSource`: delivered with a record, watched without one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from gusset.secrets.sources.source import Delivered
from gusset.vault.services.secret_store import SecretStore
from gusset.vault.storage.database import change_counter, translate_db_errors

log = logging.getLogger("gusset.vault")

POLL = 0.05  # seconds between two looks at SQLite's change counter


class VaultSource:
    """Reads a deployment's secrets; `actor` and `deployment` stand in the audit records."""

    last_error: str | None = None

    def __init__(self, engine: Engine, store: SecretStore, *, actor: str, deployment: str) -> None:
        self._engine = engine
        self._store = store
        self._actor = actor
        self._deployment = deployment
        self._read: tuple[frozenset[str], frozenset[tuple[str, int]]] | None = None

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            # Looked at before the values: what changes in between is noticed by `watch`.
            self._read = (frozenset(names), self._store.revisions(connection, names))
        return self._store.deliver(names, actor=self._actor, deployment=self._deployment).values

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when one of `names` changed since the last `read`; only then are values worth a read."""
        known = self._read[1] if self._read and self._read[0] == frozenset(names) else None
        while not stop.is_set():
            try:
                with self._engine.connect() as connection:
                    for seen in self._changes(connection, names, stop):
                        if known is not None and seen != known:
                            yield
                        known = seen
            except SQLAlchemyError as error:
                log.warning("the vault cannot be watched for the moment: %s", type(error).__name__)
                stop.wait(1.0)

    def _changes(
        self, connection: Connection, names: Collection[str], stop: threading.Event
    ) -> Iterator[frozenset[tuple[str, int]]]:
        """The names' revisions, now and whenever anything in the database has changed."""
        counter = None
        while not stop.is_set():
            # The counter does not move for what this very connection writes; it writes nothing.
            now = change_counter(connection)
            if now != counter:
                counter = now
                yield self._store.revisions(connection, names)
                connection.rollback()
            stop.wait(POLL)
