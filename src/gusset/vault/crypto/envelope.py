"""Envelope encryption: seals one value under a fresh key, and opens it again.

Layout of a sealed value, format 2:

    1 byte    format (2)
    4 bytes   number of the key-encryption key (KEK), big endian
    12 bytes  nonce of the wrapped DEK
    48 bytes  data-encryption key (DEK), AES-256-GCM under the KEK
    12 bytes  nonce of the value
    n + 16    value, AES-256-GCM under the DEK

Format 1 differs only in the context, which had no write id then.

Promise: the bytes open only under the KEK that they name and with the context
that they were sealed with; anything else raises, and never yields other bytes.
Each DEK is used once, so its nonce cannot repeat. Every later release opens what
this one sealed (tests/vectors). This module knows nothing of SQL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT = 2
_FORMATS = (1, 2)
KEY_BYTES = 32
_NONCE = 12
_HEAD = 1 + 4
_WRAPPED = _HEAD + _NONCE + KEY_BYTES + 16

KeyByNumber = Callable[[int], AESGCM]


class CannotOpen(ValueError):
    """The bytes were altered, or sealed with another context or key. Reveals nothing of their content."""


def encode_context(*parts: str | int) -> bytes:
    """An unambiguous encoding of the parts: each is preceded by its length."""
    texts = [str(part).encode() for part in parts]
    return b"".join([len(text).to_bytes(4, "big") + text for text in texts])


def version_context(team_id: str, secret_id: str, folded: str, version: int, write_id: str | None) -> bytes:
    """What one version of a secret is bound to: a row that is renamed or moved does not open.

    `write_id` is random: if a version number is reused after the database was restored, the
    value that had the number before does not open. None for values of format 1.
    """
    parts = ("secret", team_id, secret_id, folded, str(version))
    return encode_context(*parts, *(() if write_id is None else (write_id,)))


def seal(value: bytes, *, context: bytes, kek: AESGCM, number: int) -> bytes:
    """Seal `value` for `context` under a fresh DEK, wrapped by KEK `number`."""
    random = os.urandom(KEY_BYTES + _NONCE)
    dek, nonce = random[:KEY_BYTES], random[KEY_BYTES:]
    return (
        _wrap(dek, context, kek, number, FORMAT)
        + nonce
        + AESGCM(dek).encrypt(nonce, value, b"value" + context)
    )


def open_sealed(sealed: Any, *, context: bytes, keks: KeyByNumber) -> bytes:
    """The value in `sealed`.

    Raises:
        CannotOpen: altered, of another context, of an unknown format, or wrapped by another key.
        KeyError: `keks` has no KEK of that number.
    """
    dek = _unwrap(sealed, context, keks)
    nonce, body = sealed[_WRAPPED : _WRAPPED + _NONCE], sealed[_WRAPPED + _NONCE :]
    try:
        return AESGCM(dek).decrypt(nonce, body, b"value" + context)
    except InvalidTag:
        raise CannotOpen("the sealed bytes were altered or belong to another row") from None


def rewrap(sealed: Any, *, context: bytes, keks: KeyByNumber, kek: AESGCM, number: int) -> bytes:
    """`sealed` with its DEK wrapped by KEK `number` instead; the value itself is not opened."""
    dek, value = _unwrap(sealed, context, keks), sealed[_WRAPPED:]
    return _wrap(dek, context, kek, number, sealed[0]) + bytes(value)


def kek_number(sealed: bytes) -> int:
    """The number of the KEK that wraps a sealed value's DEK."""
    return int.from_bytes(sealed[1:_HEAD], "big")


def _wrap(dek: bytes, context: bytes, kek: AESGCM, number: int, format_byte: int) -> bytes:
    head = bytes([format_byte]) + number.to_bytes(4, "big")
    nonce = os.urandom(_NONCE)
    return head + nonce + kek.encrypt(nonce, dek, b"dek" + head + context)


def _unwrap(sealed: Any, context: bytes, keks: KeyByNumber) -> bytes:
    if not isinstance(sealed, bytes):  # SQLite columns hold any type
        raise CannotOpen("the column holds no bytes")
    if len(sealed) < _WRAPPED + _NONCE + 16:
        raise CannotOpen("the sealed bytes are cut short")
    if sealed[0] not in _FORMATS:
        raise CannotOpen(f"the sealed bytes have format {sealed[0]}, this gusset supports up to {FORMAT}")
    head, nonce, wrapped = sealed[:_HEAD], sealed[_HEAD : _HEAD + _NONCE], sealed[_HEAD + _NONCE : _WRAPPED]
    try:
        return keks(kek_number(sealed)).decrypt(nonce, wrapped, b"dek" + head + context)
    except InvalidTag:
        raise CannotOpen("the sealed bytes were altered or belong to another row") from None
