"""Warns when the model's code blocks the event loop, and with it every other request."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from pathlib import Path

log = logging.getLogger("gusset")

BLOCKED_AFTER = 5.0  # seconds
_INTERVAL = 1.0  # seconds between checks


def watch_loop(loop: asyncio.AbstractEventLoop, folder: Path) -> None:
    """Start a thread that warns when `loop`, which runs on the current thread, is blocked.

    The warning names the line of the model's code that blocks it.
    """
    loop_thread = threading.get_ident()
    last_run = time.monotonic()  # when the loop last ran a callback

    def heartbeat() -> None:
        nonlocal last_run
        last_run = time.monotonic()

    def watch() -> None:
        warned_at = 0.0
        while True:
            try:
                loop.call_soon_threadsafe(heartbeat)
            except RuntimeError:  # the loop is closed
                return
            time.sleep(_INTERVAL)
            if time.monotonic() - last_run > BLOCKED_AFTER and last_run != warned_at:
                warned_at = last_run  # one warning for each time that it is blocked
                log.warning(
                    "The event loop has been blocked for over %g s; all other requests wait. "
                    "An async method must not block: use a sync method or asyncio.to_thread.%s",
                    BLOCKED_AFTER,
                    _location(loop_thread, folder),
                )

    threading.Thread(target=watch, name="gusset-watchdog", daemon=True).start()


def _location(thread: int, folder: Path) -> str:
    """A sentence that names the line of the model's code that a thread executes; empty if there is none."""
    frame = sys._current_frames().get(thread)
    for summary in reversed(traceback.extract_stack(frame) if frame else []):
        if summary.filename.startswith(f"{folder}/"):
            return f" It is at {summary.filename}:{summary.lineno}, in {summary.name}."
    return ""
