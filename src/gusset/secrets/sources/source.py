"""The interface between what serves models and where their secrets come from.

`read` is for all names at once; a name that the source does not have is absent
from the result. *Denied* and *Unreachable* are errors and never mean that a
secret is missing: only a missing secret is looked for in the next source.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from gusset.secrets.hits import Hit
from gusset.secrets.value import SecretValue


@dataclass(frozen=True, slots=True)
class Previous:
    """The previous value, while it stays valid.

    `until` is the monotonic time at which it is to be dropped; None where the source says when.
    """

    value: SecretValue
    version: int | None
    until: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Delivered:
    """One secret as a source delivered it.

    `version` is the number of the secret's version; None where a source has
    none (a folder, the environment). `origin` tells people where the value came
    from: "the vault", "/secrets", "TRUSS_SECRET_x". `previous` is the previous value, during an overlap.
    """

    value: SecretValue
    version: int | None
    origin: str
    previous: Previous | None = None


class SecretSource(Protocol):
    """Where the secrets of a deployment come from."""

    @property
    def last_error(self) -> str | None:
        """Why the source cannot follow changes at the moment, or None."""

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that the source has, by the spelling in `names`.

        Raises:
            Denied: the source refuses.
            Unreachable: the source does not respond.
        """

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Block, and yield each time some of `names` may have a new value.

        Returns within a second after `stop` is set. The source retries by itself
        after an error, which the next `read` reports; an error never ends the watch.
        """


@runtime_checkable
class RecordsHits(Protocol):
    """A source that records how often values were masked in output."""

    def record_hits(self, hits: Mapping[Hit, int]) -> None:
        """Record what was masked since the last call.

        Raises:
            GussetError: the source refuses, or does not respond.
        """


@runtime_checkable
class FollowsReplicas(Protocol):
    """A source that knows which versions its readers use, so that a rotation can wait for them."""

    def acknowledge(self, versions: Mapping[str, int]) -> None:
        """From now on the reader uses these versions, and no older ones, in all its processes."""

    def record_used(self, used: Mapping[str, int]) -> None:
        """These versions have been used: they were looked up."""


@runtime_checkable
class ReadsOnce(Protocol):
    """A source that knows its readers, also those that need a value for a while only."""

    def reading_once(self) -> AbstractContextManager[SecretSource]:
        """See the function `reading_once`."""


def reading_once(source: SecretSource) -> AbstractContextManager[SecretSource]:
    """`source` for reading values that are used only until the context ends, and are not followed.

    After that, no rotation waits for their reader. A value read from `source` itself counts as held
    until the reader ends or acknowledges a newer version.
    """
    return source.reading_once() if isinstance(source, ReadsOnce) else nullcontext(source)
