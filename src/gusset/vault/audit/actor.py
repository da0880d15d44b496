"""Who acts, as audit records name them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gusset.vault.storage.signed_rows import Right

_KEY = re.compile(r" \(key ([a-z2-7]{8})\)\Z")


class Actor(str):
    """Who acts, the network `address` of the request, and the rows on which the actor's `rights` rest.

    A `str`, since the vault takes any text as an actor: only the manager knows addresses and rights.
    """

    address: str | None
    rights: Sequence[Right]

    def __new__(cls, name: str, address: str | None = None, *, rights: Sequence[Right] = ()) -> Actor:
        actor = super().__new__(cls, name)
        actor.address = address
        actor.rights = rights
        return actor


def with_rights(actor: str, rights: Sequence[Right]) -> Actor:
    """The actor, whose rights rest on these rows, too."""
    known = getattr(actor, "rights", ())
    return Actor(actor, getattr(actor, "address", None), rights=(*known, *rights))


def key_of(actor: str) -> str | None:
    """The prefix of the key that a person uses; None for a session or a command."""
    match = _KEY.search(actor)
    return match[1] if match else None


def person_of(actor: str) -> str:
    """The actor without the key that they use."""
    return _KEY.sub("", actor)
