"""Processes whose wall clock is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

has_faketime = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")


def clock_off_by(seconds: int) -> dict[str, str]:
    """The environment of a process whose wall clock is ahead by so many seconds, or behind."""
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME": f"{seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
