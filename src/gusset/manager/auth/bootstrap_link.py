"""The link with which the first administrator is created."""

from __future__ import annotations

import hmac
from secrets import token_urlsafe


class BootstrapLink:
    """The link of a manager without accounts: whoever started it may create the first administrator."""

    def __init__(self) -> None:
        self.token = token_urlsafe(32)

    def matches(self, token: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.token.encode(), token.encode("utf-8", "surrogateescape"))
