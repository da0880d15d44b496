"""The embedded vault as a `SecretSource`: reads are audited, watching is not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import Delivered
from gusset.vault.services.secret_delivery import SecretDelivery
from gusset.vault.storage.database import change_counter, translate_db_errors

log = logging.getLogger("gusset.vault")

POLL_INTERVAL = 0.05  # seconds between two reads of SQLite's change counter
_RETRY_INTERVAL = 1.0  # seconds after an error


class VaultSource:
    """Reads a deployment's secrets. The audit records name `actor` and `deployment`."""

    last_error: str | None = None

    def __init__(
        self,
        engine: Engine,
        delivery: SecretDelivery,
        record_hits: Callable[..., None],
        *,
        actor: str,
        deployment: str,
    ) -> None:
        """`record_hits` is `MaskedValues.record` for the team of `delivery`."""
        self._engine = engine
        self._delivery = delivery
        self._record_hits = record_hits
        self._actor = actor
        self._deployment = deployment
        self._last_read: tuple[frozenset[str], frozenset[tuple[str, int]]] | None = None

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        with translate_db_errors(self._engine), self._engine.connect() as connection:
            # Revisions before values: `watch` then notices a change between the two.
            self._last_read = (frozenset(names), self._delivery.revisions(connection, names))
        return self._delivery.deliver(names, actor=self._actor, deployment=self._deployment).values

    def record_hits(self, hits: Mapping[Hit, int]) -> None:
        """Record what was masked, with an audit record for each secret."""
        self._record_hits(hits, actor=self._actor, deployment=self._deployment)

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when one of `names` has changed since the last `read`: only then is a new read needed."""
        known = self._last_read[1] if self._last_read and self._last_read[0] == frozenset(names) else None
        while not stop.is_set():
            try:
                with self._engine.connect() as connection:
                    for current in self._poll(connection, names, stop):
                        if known is not None and current != known:
                            yield
                        known = current
            except SQLAlchemyError as error:
                log.warning("cannot watch the vault, will retry: %s", type(error).__name__)
                stop.wait(_RETRY_INTERVAL)

    def _poll(
        self, connection: Connection, names: Collection[str], stop: threading.Event
    ) -> Iterator[frozenset[tuple[str, int]]]:
        """The names' revisions, now and after each change of the database."""
        last_counter = None
        while not stop.is_set():
            # The counter ignores writes of this connection itself; it makes none.
            counter = change_counter(connection)
            if counter != last_counter:
                last_counter = counter
                yield self._delivery.revisions(connection, names)
                connection.rollback()
            stop.wait(POLL_INTERVAL)
