"""Processes whose wall clock is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

has_faketime = pytest.mark.system(str(LIBRARY or "libfaketime"))


def clock_off_by(seconds: int) -> dict[str, str]:
    """The environment of a process whose wall clock is ahead by so many seconds, or behind."""
    return {"FAKETIME": f"{seconds:+d}", **_FAKETIME}


def steppable_clock(file: Path) -> tuple[dict[str, str], Callable[[int], None]]:
    """The same, and what sets the clock of the running process to another offset; `file` passes it on."""

    def step(seconds: int) -> None:
        written = file.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n")
        written.replace(file)

    step(0)
    return {"FAKETIME_TIMESTAMP_FILE": str(file), **_FAKETIME}, step


_FAKETIME = {
    "LD_PRELOAD": str(LIBRARY),
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "FAKETIME_NO_CACHE": "1",
}
