"""Password hashing: argon2id with the library's defaults. Slow by design: never call it on an event loop."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from gusset.errors import InvalidValue
from gusset.secrets.value import SecretValue
from gusset.vault.deadline import uncounted

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MIN_LENGTH, MAX_LENGTH = 12, 1024  # characters


def hash_password(password: SecretValue) -> str:
    """The encoded hash to store for a new password.

    Raises:
        InvalidValue: the password is too short, too long, or not text.
    """
    text = check_password(password)
    with uncounted():
        return _hasher().hash(text)


def check_password(password: SecretValue) -> str:
    """The text of a new password.

    Raises:
        InvalidValue: see `hash_password`.
    """
    try:
        text = password.reveal().decode()
    except UnicodeDecodeError:
        raise InvalidValue("the password is not text") from None
    if len(text) < MIN_LENGTH:
        raise InvalidValue(
            f"a password must have at least {MIN_LENGTH} characters", hint="use several unrelated words"
        )
    if len(text) > MAX_LENGTH:
        raise InvalidValue(f"a password can have at most {MAX_LENGTH} characters")
    return text


def verify_password(stored: str | None, password: SecretValue) -> bool:
    """Whether `password` matches the stored hash. None (no such account) never matches, but takes as long."""
    with uncounted():
        from argon2.exceptions import InvalidHashError, VerificationError  # late, see `_hasher`

        try:
            return _hasher().verify(stored or _dummy_hash(), password.reveal()) and stored is not None
        except (VerificationError, InvalidHashError):
            return False


@cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher  # every command opens the vault, few need a password

    return PasswordHasher()


@cache
def _dummy_hash() -> str:
    return _hasher().hash("a password of no account")
