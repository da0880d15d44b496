"""`Actor`: who acts, with the address of their request."""

from __future__ import annotations


class Actor(str):
    """Who acts, and the network `address` of the request, where there is one.

    A `str`, since the vault takes any text as an actor: only the manager knows addresses.
    """

    address: str | None

    def __new__(cls, name: str, address: str | None = None) -> Actor:
        actor = super().__new__(cls, name)
        actor.address = address
        return actor
