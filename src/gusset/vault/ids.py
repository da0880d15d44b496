"""Ids of stored rows."""

from __future__ import annotations

import base64
import os
import re

_FORMAT = re.compile(r"[a-z2-7]{16}")


def new_id() -> str:
    """A short opaque id: 80 random bits."""
    return base64.b32encode(os.urandom(10)).decode().lower()


def id_or(text: str, otherwise: str) -> str:
    """`text` if it may be an id, else `otherwise`: for audit records, since it may be a value by mistake."""
    return text if _FORMAT.fullmatch(text) else otherwise
