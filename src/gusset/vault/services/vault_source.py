"""The embedded vault as a `SecretSource`: reads are audited, watching is not."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing

from gusset.errors import GussetError
from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import Delivered
from gusset.vault.services.change_poller import Revision
from gusset.vault.services.secret_delivery import SecretDelivery
from gusset.vault.storage.connection import Store
from gusset.vault.storage.database import ChangeSignal

log = logging.getLogger("gusset.vault")

POLL_INTERVAL = 0.05  # seconds between two reads of the change counter
SIGN_AFTER = 0.8  # seconds after a change: no record stays without a checkpoint for over a second
_RETRY_INTERVAL = 1.0  # seconds from the start of one attempt to the next, unless it takes longer


class VaultSource:
    """Reads a deployment's secrets. The audit records name `actor` and `deployment`."""

    last_error: str | None = None

    def __init__(
        self,
        store: Store,
        delivery: SecretDelivery,
        record_hits: Callable[..., None],
        *,
        open_signal: Callable[[], ChangeSignal],
        sign_head: Callable[[], None],
        actor: str,
        deployment: str,
    ) -> None:
        """`record_hits` is `MaskedValues.record` for the team of `delivery`; `sign_head`, that of `Vault`."""
        self._store = store
        self._open_signal = open_signal
        self._sign_head = sign_head
        self._delivery = delivery
        self._record_hits = record_hits
        self._actor = actor
        self._deployment = deployment
        self._last_read: tuple[frozenset[str], frozenset[Revision]] | None = None

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        with self._store.read() as connection:
            # Revisions before values: `watch` then notices a change between the two.
            self._last_read = (frozenset(names), self._delivery.revisions(connection, names))
        return self._delivery.deliver(names, actor=self._actor, deployment=self._deployment).values

    def record_hits(self, hits: Mapping[Hit, int]) -> None:
        """Record what was masked, with one audit record for all of it."""
        self._record_hits(hits, actor=self._actor, deployment=self._deployment)

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when one of `names` has changed since the last `read`: only then is a new read needed."""
        known = self._last_read[1] if self._last_read and self._last_read[0] == frozenset(names) else None
        while not stop.is_set():
            began = time.monotonic()
            try:
                for current in self._poll(names, stop):
                    if known is not None and current != known:
                        yield
                    known = current
            except GussetError as error:
                log.warning("cannot watch the vault, will retry: %s", error.message)
                stop.wait(max(0.0, began + _RETRY_INTERVAL - time.monotonic()))

    def _poll(self, names: Collection[str], stop: threading.Event) -> Iterator[frozenset[Revision]]:
        """The names' revisions, now and after each change of the database."""
        last_counter, sign_at = None, math.inf
        with closing(self._open_signal()) as signal:
            while not stop.is_set():
                counter = signal.counter()
                if counter != last_counter:
                    last_counter = counter
                    sign_at = min(sign_at, time.monotonic() + SIGN_AFTER)
                    with self._store.read() as connection:
                        current = self._delivery.revisions(connection, names)
                    yield current
                if time.monotonic() >= sign_at:
                    sign_at = math.inf
                    self._sign()
                stop.wait(POLL_INTERVAL)

    def _sign(self) -> None:
        """Sign the newest audit record, whichever process wrote it, unless it is already signed."""
        try:
            self._sign_head()
        except GussetError as error:
            log.warning("the audit log's newest record cannot be signed: %s", error.message)
