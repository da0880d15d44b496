"""Says so when the model's code keeps the event loop, and with it every other request, waiting."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from pathlib import Path

log = logging.getLogger("gusset.serving")

PATIENCE = 5.0  # seconds
_LOOK = 1.0  # seconds


def watch_loop(loop: asyncio.AbstractEventLoop, folder: Path) -> None:
    """Look from a thread whether `loop`, which runs on this one, still turns; name the line that holds it."""
    watched = threading.get_ident()
    turned = time.monotonic()

    def turn() -> None:
        nonlocal turned
        turned = time.monotonic()

    def look() -> None:
        told = 0.0
        while True:
            try:
                loop.call_soon_threadsafe(turn)
            except RuntimeError:  # it has ended
                return
            time.sleep(_LOOK)
            if time.monotonic() - turned > PATIENCE and turned != told:
                told = turned  # once is enough for each time
                log.warning(
                    "The event loop has been held up for over %g s, no other request is answered meanwhile. "
                    "An async method must not block: use a sync one, or asyncio.to_thread.%s",
                    PATIENCE,
                    _place(watched, folder),
                )

    threading.Thread(target=look, name="gusset-watchdog", daemon=True).start()


def _place(thread: int, folder: Path) -> str:
    """Where in the model's code a thread is."""
    frame = sys._current_frames().get(thread)
    for summary in reversed(traceback.extract_stack(frame) if frame else []):
        if summary.filename.startswith(f"{folder}/"):
            return f" It is at {summary.filename}:{summary.lineno}, in {summary.name}."
    return ""
