"""How unexpected exceptions are logged.

Where no masker knows the values, without their messages: libraries put values there.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from gusset.errors import GussetError


def log_bug(log: logging.Logger, error: Exception) -> None:
    """Log the type of an unexpected exception and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    log.error("A bug in gusset: %s at %s", type(error).__name__, " < ".join(places))


@contextlib.contextmanager
def errors_logged(log: logging.Logger, problem: str, mask: Callable[[str], str]) -> Iterator[None]:
    """Log any exception within the context instead of raising it, for what is tried again later.

    `problem` says what has failed. An unexpected one is logged with its traceback. `mask` replaces values.
    """
    try:
        yield
    except GussetError as error:
        log.error("%s: %s", problem, mask(error.message))  # noqa: TRY400
    except Exception as error:
        trace = "".join(traceback.format_exception(error)).rstrip()
        log.error("%s, because of an unexpected error:\n%s", problem, mask(trace))  # noqa: TRY400
