"""Where a runtime's secrets come from: one protocol of two verbs, and the plain sources.

`read` answers for all names at once; a name that it lacks is simply absent
from the answer. *Denied* and *Unreachable* are errors, never absences: only
"missing" may fall through to the next source.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from gusset.secrets.value import SecretValue


@dataclass(frozen=True, slots=True)
class Delivered:
    """One secret as a source delivered it.

    `version` is the store's number, None where a source has none (a folder,
    the environment). `origin` says where it came from, for people:
    "the vault", "/secrets", "TRUSS_SECRET_x".
    """

    value: SecretValue
    version: int | None
    origin: str


class SecretSource(Protocol):
    """What serving and containers know of secrets' whereabouts."""

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that the source has, keyed by the spelling asked for.

        Raises:
            Denied: the source refuses.
            Unreachable: the source did not answer.
        """

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Block, and yield each time some of `names` may now read differently.

        Returns within a second after `stop` is set. Trouble on the way is
        retried inside and shows at the next `read`; it never ends the watch.
        """
