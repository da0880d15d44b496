"""Logging of supervisor and worker: readable on a terminal, else one JSON object a line.

Values are masked before a formatter escapes them: escaped twice, as the repr of
a text is within JSON, a value has more forms than a masker could look for.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import orjson

from gusset.printable import printable_json, printable_lines

# The id of the request that this thread or task handles; log records include it.
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


Mask = Callable[[str], str]


def log_to_stderr(
    logger: str = "gusset",
    *,
    readable: bool,
    level: int = logging.INFO,
    mask: Mask = str,
    line_end: str = "\n",
) -> None:
    """Have this logger ("": the root logger) write records of `level` and above to standard error.

    `mask` replaces values in messages and tracebacks, before anything in them is escaped.
    A terminal in raw mode needs "\\r\\n" as `line_end`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.terminator = line_end
    handler.setFormatter(ReadableFormatter(mask) if readable else JsonFormatter(mask))
    target = logging.getLogger(logger)
    target.handlers[:] = [handler]
    target.setLevel(level)
    target.propagate = False


class ReadableFormatter(logging.Formatter):
    """`11:04:59 INFO message`, without control characters: a terminal would obey them."""

    def __init__(self, mask: Mask = str) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(self._mask(super().format(record)))


def mask_records(mask: Mask) -> None:
    """Mask the message and the traceback of every log record of this process, whatever formats it."""
    make = logging.getLogRecordFactory()
    formatter = logging.Formatter()

    def make_masked(*arguments: object, **options: object) -> logging.LogRecord:
        record = make(*arguments, **options)
        try:
            message = record.getMessage()
            masked = mask(message)
        except Exception:  # arguments that do not fit the message: the handler reports them
            return record
        if masked != message:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = mask(formatter.formatException(record.exc_info))  # what formatters then use
        return record

    logging.setLogRecordFactory(make_masked)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `asctime`, `levelname`, `message`, perhaps `request_id` and `exc_info`."""

    def __init__(self, mask: Mask = str) -> None:
        super().__init__()
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": self._mask(record.getMessage()),
        }
        if (id_ := request_id.get()) is not None:
            entry["request_id"] = id_
        if record.exc_info:
            entry["exc_info"] = self._mask(self.formatException(record.exc_info))
        return printable_json(orjson.dumps({key: _encodable(text) for key, text in entry.items()}).decode())


def model_traceback(error: BaseException, folder: Path) -> str:
    """The traceback of `error`, from the first frame in `folder` on; without frames if there is none."""
    trace = traceback.TracebackException(type(error), error, _from_folder(error.__traceback__, folder))
    return _encodable("".join(trace.format()).rstrip())


def _from_folder(trace: TracebackType | None, folder: Path) -> TracebackType | None:
    first = trace
    while first is not None:
        if first.tb_frame.f_code.co_filename.startswith(f"{folder}/"):
            return first
        first = first.tb_next
    return None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
