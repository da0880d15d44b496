"""Who made a key, token or identity. It ends with them, whether or not its own row could be ended.

Whoever can write the database can remove a row while its maker's key or account ends, and put it back
later: it verifies, and agrees with the audit log. So its maker is looked at, too, where it is used.
"""

from __future__ import annotations

import re

from gusset.errors import NotSignedIn
from gusset.vault.services.person import FIND_USER_BY_EMAIL
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.signed_rows import Select
from gusset.vault.storage.tables import ACCESS_KEYS

FIND_KEY = Select(ACCESS_KEYS, "prefix = :prefix")

_KEY = re.compile(r" \(key ([a-z2-7]{8})\)\Z")


def key_of_maker(created_by: str) -> str | None:
    """The prefix of the key that somebody used when they made something; None for a session or a command."""
    match = _KEY.search(created_by)
    return match[1] if match else None


def check_keys(connection: Connection, created_by: str) -> None:
    """Raises NotSignedIn if the key by which something was made was revoked, or that key's maker."""
    while (prefix := key_of_maker(created_by)) is not None:
        row = connection.one(FIND_KEY, {"prefix": prefix})
        if row is None or row.revoked_at is not None:
            raise NotSignedIn(f"the key {prefix}, by which it was made, was revoked", ended=True)
        created_by = row.created_by


def check_account(connection: Connection, created_by: str) -> None:
    """Raises NotSignedIn if the account of the person who made something is disabled."""
    user = connection.one(FIND_USER_BY_EMAIL, {"email": _KEY.sub("", created_by)})
    if user is not None and user.disabled_at is not None:
        raise NotSignedIn("the account of the person who made it is disabled", ended=True)
