"""Passwords: argon2id at the library's defaults. Slow on purpose: never called on an event loop."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from gusset.errors import InvalidValue
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST, LONGEST = 12, 1024  # characters


def hash_password(password: SecretValue) -> str:
    """What is stored of a password.

    Raises:
        InvalidValue: too short, too long, or not text.
    """
    return _hasher().hash(checked(password))


def checked(password: SecretValue) -> str:
    """The text of a password that may be chosen.

    Raises:
        InvalidValue: see `hash_password`.
    """
    try:
        text = password.reveal().decode()
    except UnicodeDecodeError:
        raise InvalidValue("the password is not text") from None
    if len(text) < SHORTEST:
        raise InvalidValue(
            f"a password has at least {SHORTEST} characters", hint="a few words that nobody would guess"
        )
    if len(text) > LONGEST:
        raise InvalidValue(f"a password has at most {LONGEST} characters")
    return text


def fits(stored: str | None, password: SecretValue) -> bool:
    """Whether `password` is the one that was stored; as slow for one that nobody has."""
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return _hasher().verify(stored or _nobodys(), password.reveal()) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


@cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher  # every command opens the vault, few need a password

    return PasswordHasher()


@cache
def _nobodys() -> str:
    return _hasher().hash("nobody has this password")
