"""The stream of changes: wakes each stream when a secret that it follows has changed.

One thread polls the database, at once after this process's own writes and at
short intervals for those of other processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import orjson

from gusset.vault.services.change_poller import ChangePoller, Revisions

log = logging.getLogger("gusset.manager")

HEARTBEAT_INTERVAL = 10.0  # seconds without an event on a stream

Keys = frozenset[tuple[str, str]]


class Subscription:
    """One stream: the secrets that it follows, and the revision that it has sent last."""

    __slots__ = ("keys", "revision", "wake")

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.revision = ""
        self.wake = asyncio.Event()


class ChangeFeed:
    """Wakes the streams whose secrets have changed. One thread polls the database for all of them."""

    def __init__(self, open_poller: Callable[[], ChangePoller]) -> None:
        self._open_poller = open_poller
        self._streams: set[Subscription] = set()
        self._wanted: Counter[tuple[str, str]] = Counter()  # how many streams follow each
        self._known: Revisions = {}
        self._polled: Keys = frozenset()
        self._wake_thread = threading.Event()  # while no stream is open, or after an error
        self._poller: ChangePoller | None = None  # the thread's
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="gusset-changes", daemon=True)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def start(self) -> None:
        """Start polling. Call this on the event loop that the streams run on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End every stream."""
        self._stopped = True
        self._wake()
        for stream in self._streams:
            stream.wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def notify(self) -> None:
        """Poll now, because this process has written. Thread-safe."""
        if self._wanted:
            self._wake()

    def _wake(self) -> None:
        """Wake the thread. Thread-safe."""
        self._wake_thread.set()
        poller = self._poller
        if poller is not None:
            poller.wake()

    async def follow(
        self, keys: Keys, since: str | None, *, is_valid: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream that last saw the revision `since`.

        `is_valid` is asked at each heartbeat; the stream ends when it returns False, or
        when the manager stops.
        """
        stream = Subscription(keys)
        self._streams.add(stream)
        self._wanted.update(keys)
        self._wake()
        try:
            stream.revision = await self._current(keys)
            event = "hello" if since in (None, stream.revision) else "changed"
            yield {"event": event, "revision": stream.revision}
            while not self._stopped:
                try:
                    async with asyncio.timeout(HEARTBEAT_INTERVAL):
                        await stream.wake.wait()
                except TimeoutError:
                    if not await is_valid():
                        return
                    yield {"event": "beat"}
                    continue
                stream.wake.clear()
                now = digest(keys, self._known)
                if now != stream.revision and not self._stopped:
                    stream.revision = now
                    yield {"event": "changed", "revision": now}
        finally:
            self._streams.discard(stream)
            self._wanted -= Counter(keys)

    async def _current(self, keys: Keys) -> str:
        """The revision of `keys`, read from the database after this call began."""
        loop = asyncio.get_running_loop()
        revisions = await loop.run_in_executor(None, self._poll_once, keys)
        return digest(keys, revisions)

    def _poll_once(self, keys: Keys) -> Revisions:
        poller = self._open_poller()
        try:
            return poller.revisions(keys)
        finally:
            poller.close()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._watch()
            except Exception as error:  # without this thread no stream would ever be woken again
                log.warning("Changes in the vault cannot be read, retrying: %s", type(error).__name__)
                self._wake_thread.clear()
                self._wake_thread.wait(1.0)

    def _watch(self) -> None:
        poller, counter = self._open_poller(), -1
        try:
            poller.counter()  # connects
            self._poller = poller
            while not self._stopped:
                if not self._wanted:  # no stream is open: sleep until one is
                    self._wake_thread.wait()
                    self._wake_thread.clear()
                    continue
                now = poller.counter()
                wanted: Keys = frozenset(self._wanted)
                if now != counter or not wanted <= self._polled:
                    counter, self._polled = now, wanted
                    self._publish(poller.revisions(wanted))
                poller.wait()
        finally:
            self._poller = None
            poller.close()

    def _publish(self, found: Revisions) -> None:
        before, self._known = self._known, found
        changed = {key for key in before.keys() | found.keys() if before.get(key) != found.get(key)}
        if changed and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_streams, changed)

    def _wake_streams(self, changed: set[tuple[str, str]]) -> None:
        for stream in self._streams:
            if not stream.keys.isdisjoint(changed):
                stream.wake.set()


def digest(keys: Iterable[tuple[str, str]], found: Revisions) -> str:
    """The revision of a set of secrets: a hash that reveals neither names nor values."""
    state = [(*key, *found.get(key, ())) for key in sorted(keys)]
    return hashlib.sha256(orjson.dumps(state)).hexdigest()[:32]
