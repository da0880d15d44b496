"""`Actor`: who acts, with the address of their request."""

from __future__ import annotations


class Actor(str):
    """Who acts, and the network `address` of the request, where there is one.

    `token` is the prefix of a deployment's token, and the number of the audit record that wrote its row.

    A `str`, since the vault takes any text as an actor: only the manager knows addresses and tokens.
    """

    address: str | None
    token: tuple[str, int] | None

    def __new__(cls, name: str, address: str | None = None, *, token: tuple[str, int] | None = None) -> Actor:
        actor = super().__new__(cls, name)
        actor.address = address
        actor.token = token
        return actor
