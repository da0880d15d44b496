"""The stream of changes: which streams follow which secrets, and which of them a change concerns.

While streams are open, one thread follows the database: it reads at once after this process's own
writes, and soon after those of other processes. Everything else runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import orjson

from gusset.vault.services.change_poller import ChangePoller, Revisions

log = logging.getLogger("gusset.manager")

RETRY_INTERVAL = 1.0  # seconds between two attempts to follow the database

SecretName = tuple[str, str]
"""A secret: the id of its team, and its folded name."""

SecretNames = frozenset[SecretName]


class Subscriber(Protocol):
    """One stream."""

    def on_revision(self, revision: str) -> None:
        """The secrets that it follows have this revision now. Called on the event loop."""


class Topic:
    """A set of secrets, and the streams that follow just these: all replicas of a deployment share one."""

    __slots__ = ("names", "revision", "subscribers")

    def __init__(self, names: SecretNames) -> None:
        self.names = names
        self.revision = ""  # empty until it has been read
        self.subscribers: dict[Subscriber, int] = {}  # with the number of each subscription


class ChangeFeed:
    """Gives streams the revisions of their secrets. One thread polls the database for all of them."""

    def __init__(self, open_poller: Callable[[], ChangePoller], epoch: Callable[[], int]) -> None:
        """`epoch` is the vault's."""
        self._open_poller = open_poller
        self._epoch = epoch
        self._topics: dict[SecretNames, Topic] = {}
        self._topic_of: dict[Subscriber, Topic] = {}
        self._topics_of: dict[SecretName, set[Topic]] = {}
        self._joining: deque[tuple[int, Topic, Subscriber]] = deque()  # those without a first revision
        self._wanted: SecretNames = frozenset()  # the names of `_topics_of`, for the thread
        self._subscriptions = 0  # so far; numbers them
        self._last_epoch = 0
        self._known: Revisions = {}
        self._wake_thread = threading.Event()  # while no stream is open, or after an error
        self._poller: ChangePoller | None = None  # the thread's
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="gusset-changes", daemon=True)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._topic_of)

    def start(self) -> None:
        """Start polling. Call this on the event loop that the streams run on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stopped = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def notify(self) -> None:
        """Poll now, because this process has written. Thread-safe."""
        if self._topics:
            self._wake()

    def _wake(self) -> None:
        """Wake the thread. Thread-safe."""
        self._wake_thread.set()
        poller = self._poller
        if poller is not None:
            poller.wake()

    def subscribe(self, names: SecretNames, subscriber: Subscriber) -> None:
        """Have a stream follow `names`. Its first revision is read after this call."""
        topic = self._topics.get(names)
        if topic is None:
            topic = self._topics[names] = Topic(names)
            for name in names:
                self._topics_of.setdefault(name, set()).add(topic)
            self._wanted = frozenset(self._topics_of)
        self._topic_of[subscriber] = topic
        self._subscriptions += 1
        topic.subscribers[subscriber] = self._subscriptions
        self._joining.append((self._subscriptions, topic, subscriber))
        self._wake()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """End what `subscribe` began."""
        topic = self._topic_of.pop(subscriber)
        del topic.subscribers[subscriber]
        if topic.subscribers:
            return
        del self._topics[topic.names]
        for name in topic.names:
            self._topics_of[name].discard(topic)
            if not self._topics_of[name]:
                del self._topics_of[name]
        self._wanted = frozenset(self._topics_of)

    # On the thread.

    def _run(self) -> None:
        while not self._stopped:
            if not self._topics:  # no stream is open: sleep until one is
                self._wake_thread.wait()
                self._wake_thread.clear()
                continue
            began = time.monotonic()
            try:
                self._watch()
            except Exception as error:  # without this thread no stream would ever be woken again
                log.warning("Changes in the vault cannot be read, retrying: %s", type(error).__name__)
                self._wake_thread.clear()
                # A connection that has lasted is replaced at once: within a second all is noticed.
                self._wake_thread.wait(max(0.0, began + RETRY_INTERVAL - time.monotonic()))

    def _watch(self) -> None:
        """Follow the database until no stream is open: then no writer has to wake this process."""
        poller, counter, read_for = self._open_poller(), -1, -1
        try:
            poller.counter()  # connects
            self._poller = poller
            while self._topics and not self._stopped:
                subscriptions, now = self._subscriptions, poller.counter()
                if now != counter or subscriptions != read_for:
                    counter, read_for = now, subscriptions
                    self._publish(poller.revisions(self._wanted), subscriptions)
                poller.wait()
        finally:
            self._poller = None
            poller.close()

    def _publish(self, found: Revisions, subscriptions: int) -> None:
        before, self._known = self._known, found
        changed = {name for name in before.keys() | found.keys() if before.get(name) != found.get(name)}
        if self._loop is not None and not self._stopped:
            self._loop.call_soon_threadsafe(self._on_poll, found, changed, subscriptions)

    # On the event loop.

    def _on_poll(self, found: Revisions, changed: Iterable[SecretName], subscriptions: int) -> None:
        """Pass what a poll has read to the streams that a change concerns, and to new ones.

        Streams after the first `subscriptions` began after the poll: they wait for the next.
        """
        epoch = self._epoch()
        topics = {topic for name in changed for topic in self._topics_of.get(name, ())}
        if epoch != self._last_epoch:
            self._last_epoch, topics = epoch, set(self._topics.values())
        for topic in topics:
            topic.revision = revision_of(topic.names, found, epoch)
            for subscriber, number in list(topic.subscribers.items()):
                if number <= subscriptions:
                    subscriber.on_revision(topic.revision)
        while self._joining and self._joining[0][0] <= subscriptions:
            _, topic, subscriber = self._joining.popleft()
            if subscriber in topic.subscribers:
                topic.revision = topic.revision or revision_of(topic.names, found, epoch)
                subscriber.on_revision(topic.revision)


def revision_of(names: Iterable[SecretName], found: Revisions, epoch: int) -> str:
    """The revision of a set of secrets: the epoch, and a hash that reveals neither names nor values."""
    state = [(*name, *found.get(name, ())) for name in sorted(names)]
    return f"{epoch}-{hashlib.sha256(orjson.dumps(state)).hexdigest()[:32]}"
