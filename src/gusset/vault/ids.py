"""Ids of stored rows."""

from __future__ import annotations

import base64
import os


def new_id() -> str:
    """A short opaque id: 80 random bits."""
    return base64.b32encode(os.urandom(10)).decode().lower()
