"""Several sources as one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from gusset.backoff import Backoff
from gusset.bugs import log_bug
from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import (
    Delivered,
    FollowsReplicas,
    RecordsHits,
    SecretSource,
    reading_once,
)

log = logging.getLogger("gusset.secrets")

_STOP_POLL = 0.2  # seconds
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 30.0  # seconds after an unexpected error


class ChainSource:
    """Sources in order of precedence: each is read for the names that those before it do not have.

    Only a missing secret is looked for in the next source; an error of any source is the chain's error.
    """

    def __init__(self, sources: Sequence[SecretSource]) -> None:
        self._sources = tuple(sources)
        self._unwatched: dict[SecretSource, str] = {}  # those whose watch has just failed, and why

    @property
    def last_error(self) -> str | None:
        """The first error that any of the sources has."""
        errors = (source.last_error or self._unwatched.get(source) for source in self._sources)
        return next((error for error in errors if error), None)

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Each of `names` from the first source that has it.

        Raises:
            Denied, Unreachable: raised by a source; the sources after it are then not read.
        """
        found: dict[str, Delivered] = {}
        for source in self._sources:
            rest = [name for name in names if name not in found]
            if not rest:
                break
            found.update(source.read(rest))
        return {name: found[name] for name in names if name in found}

    @contextmanager
    def reading_once(self) -> Iterator[SecretSource]:
        """The chain for values that are in use until the context ends."""
        with ExitStack() as stack:
            yield ChainSource([stack.enter_context(reading_once(source)) for source in self._sources])

    def record_hits(self, hits: Mapping[Hit, int]) -> None:
        """Pass the hits on to the sources that record them."""
        for source in self._sources:
            if isinstance(source, RecordsHits):
                source.record_hits(hits)

    def acknowledge(self, versions: Mapping[str, int]) -> None:
        """Pass this on to the sources that know which versions are used."""
        for source in self._sources:
            if isinstance(source, FollowsReplicas):
                source.acknowledge(versions)

    def record_used(self, used: Mapping[str, int]) -> None:
        """Pass this on to the sources that know which versions are used."""
        for source in self._sources:
            if isinstance(source, FollowsReplicas):
                source.record_used(used)

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when any source does; changes that come together may be one yield.

        A watch that raises, which a source promises not to do, begins again after a pause. It yields then,
        since a change may have been missed.
        """
        changed, ended = threading.Event(), threading.Event()
        threads = [
            threading.Thread(
                target=self._follow, args=(source, names, changed, ended), name="gusset-watch", daemon=True
            )
            for source in self._sources
        ]
        try:
            for thread in threads:
                thread.start()
            while not stop.is_set():
                if changed.wait(_STOP_POLL):
                    changed.clear()
                    yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(1 - _STOP_POLL)

    def _follow(
        self,
        source: SecretSource,
        names: Collection[str],
        changed: threading.Event,
        ended: threading.Event,
    ) -> None:
        """Set `changed` when the source yields, until `ended` is set."""
        backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        while not ended.is_set():
            try:
                for _ in source.watch(names, ended):
                    backoff.reset()
                    changed.set()
            except Exception as error:
                log_bug(log, error)
                kind = type(error).__name__  # only that: a library's message may quote a value
                self._unwatched[source] = (
                    f"{type(source).__name__} cannot be watched, which is a bug in gusset ({kind})"
                )
            else:
                return
            ended.wait(backoff.next_delay())
            self._unwatched.pop(source, None)
            changed.set()
