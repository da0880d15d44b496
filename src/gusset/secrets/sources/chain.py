"""Several sources as one."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import (
    Delivered,
    FollowsReplicas,
    RecordsHits,
    SecretSource,
    reading_once,
)

_STOP_POLL = 0.2  # seconds


class ChainSource:
    """Sources in order of precedence: each is read for the names that those before it do not have.

    Only a missing secret is looked for in the next source; an error of any source is the chain's error.
    """

    def __init__(self, sources: Sequence[SecretSource]) -> None:
        self._sources = tuple(sources)

    @property
    def last_error(self) -> str | None:
        """The first error that any of the sources has."""
        return next((source.last_error for source in self._sources if source.last_error), None)

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
        """Yield when any source does; changes that come together may be one yield."""
        changed, ended = threading.Event(), threading.Event()

        def follow(source: SecretSource) -> None:
            for _ in source.watch(names, ended):
                changed.set()

        threads = [
            threading.Thread(target=follow, args=(source,), name="gusset-watch", daemon=True)
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
