"""How unexpected exceptions are logged: without their messages, since libraries put values there."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path


def log_bug(log: logging.Logger, error: Exception) -> None:
    """Log the type of an unexpected exception and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    log.error("A bug in gusset: %s at %s", type(error).__name__, " < ".join(places))
