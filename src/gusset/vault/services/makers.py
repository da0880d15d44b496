"""Who made a key, token or identity. It ends with them, whether or not its own row could be ended.

Whoever can write the database can remove a row while its maker's key or account ends, and put it back
later: it verifies, and agrees with the audit log. So its maker is looked at, too, where it is used.
"""

from __future__ import annotations

from gusset.errors import NotSignedIn
from gusset.vault.audit.actor import key_of, person_of
from gusset.vault.services.person import FIND_USER_BY_EMAIL, is_email
from gusset.vault.storage.connection import Connection
from gusset.vault.storage.signed_rows import Right, Select
from gusset.vault.storage.tables import ACCESS_KEYS, USERS

FIND_KEY = Select(ACCESS_KEYS, "prefix = :prefix")


def check_keys(connection: Connection, created_by: str) -> list[Right]:
    """The key by which something was made, the key by which that was made, and so on.

    Raises:
        NotSignedIn: one of them was revoked.
    """
    rights: list[Right] = []
    while (prefix := key_of(created_by)) is not None:
        row = connection.one(FIND_KEY, {"prefix": prefix})
        if row is None or row.revoked_at is not None:
            raise NotSignedIn(f"the key {prefix}, by which it was made, was revoked", ended=True)
        rights.append(ACCESS_KEYS.right(row))
        created_by = row.created_by
    return rights


def check_account(connection: Connection, created_by: str) -> list[Right]:
    """The account of the person who made something, if it was a person and no command on the vault's machine.

    Raises:
        NotSignedIn: it is disabled, or its row was removed.
    """
    maker = person_of(created_by)
    user = connection.one(FIND_USER_BY_EMAIL, {"email": maker})
    if user is None:
        if is_email(maker):  # gusset removes no account
            raise NotSignedIn(f"there is no account {maker} any more, by which it was made", ended=True)
        return []
    if user.disabled_at is not None:
        raise NotSignedIn("the account of the person who made it is disabled", ended=True)
    return [USERS.right(user)]
