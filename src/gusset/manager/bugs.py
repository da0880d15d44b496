"""Exceptions that nobody expects: logged without their messages, since libraries put values there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from gusset import bugs
from gusset.errors import GussetError
from gusset.manager.api import schemas
from gusset.manager.api.json_responses import json_response
from gusset.manager.api.router import error_response
from gusset.runtime.responses import Response

log = logging.getLogger("gusset.manager")

_REPEATED_EVERY = 60.0  # seconds
_MAX_REPEATED = 1000  # texts that are remembered


def exception_response(error: Exception) -> Response:
    """The response to what a handler has raised: an expected error, or a bug, which is logged."""
    return error_response(error) if isinstance(error, GussetError) else bug_response(error)


def bug_response(error: Exception) -> Response:
    """Log an unexpected exception, and make a response that says so."""
    log_bug(error)
    return json_response(
        500, schemas.Error(message="gusset has a bug; its log says where", code="bug", hint=None)
    )


class RepetitionFilter(logging.Filter):
    """Lets each text pass once a minute: an outage fails every request, and strangers send some."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}  # texts, and when

    def filter(self, record: logging.LogRecord) -> bool:
        text, now = record.getMessage(), time.monotonic()
        if now - self._passed.get(text, -_REPEATED_EVERY) < _REPEATED_EVERY:
            return False
        if len(self._passed) >= _MAX_REPEATED:
            self._passed.clear()
        self._passed[text] = now
        return True


def log_bug(error: Exception) -> None:
    """Log the type of an unexpected exception and where it was raised."""
    bugs.log_bug(log, error)


def log_bugs_of_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The exception handler of an event loop. asyncio's own would log the message and arguments, too."""
    error = context.get("exception")
    if isinstance(error, Exception):
        log_bug(error)
    else:
        log.error("The event loop reports: %s", context["message"])
