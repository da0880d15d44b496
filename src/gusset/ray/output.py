"""Masks all that a replica's process prints and logs, before it reaches Ray's files."""

from __future__ import annotations

import builtins
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from gusset.runtime import logs
from gusset.runtime.output_pump import OutputPump
from gusset.secrets.hits import HitCounter
from gusset.secrets.masking import Masker

_SILENCE = 0.3  # seconds without output, after which the rest of it has been forwarded


@dataclass(frozen=True, slots=True)
class _Redirected:
    """A file descriptor whose output goes through a pump to `original`."""

    descriptor: int
    original: int
    pump: OutputPump


class MaskedOutput:
    """Standard output and standard error of this process and its children, through a masker."""

    def __init__(self, redirected: tuple[_Redirected, ...]) -> None:
        self._redirected = redirected

    @classmethod
    def start(cls, masker: Masker) -> MaskedOutput:
        """Mask from now on what is written to the file descriptors 1 and 2, also by native code.

        Ray may turn `print` and `sys.stdout` of a replica into log records, one for each line (with
        RAY_SERVE_LOG_TO_STDERR=0). A value that is printed in parts could not be masked there, so both are
        made plain output again.
        """
        found = tuple(_redirect(number, masker, name) for number, name in ((1, "stdout"), (2, "stderr")))
        builtins.print = _plain_print()
        sys.stdout, sys.stderr = _text_file(1), _text_file(2)
        return cls(found)

    def stop(self) -> None:
        """Forward what was printed so far, and restore the file descriptors."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for each in self._redirected:
            os.dup2(each.original, each.descriptor)
            each.pump.drain(_SILENCE)


def _redirect(descriptor: int, masker: Masker, channel: str) -> _Redirected:
    original = os.dup(descriptor)
    reading, writing = os.pipe()
    os.dup2(writing, descriptor)
    os.close(writing)
    return _Redirected(descriptor, original, OutputPump.start(reading, original, masker.stream(channel)))


def _text_file(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _plain_print() -> Callable[..., None]:
    """Python's own `print`, which Ray's module has kept."""
    ray_logging = sys.modules.get("ray.serve._private.logging_utils")
    original: Callable[..., None] = getattr(ray_logging, "buildin_print", builtins.print)
    return original


def log_masked(masker: Masker, level: int) -> None:
    """Have all records of this process masked, and those of the model written to the replica's log of Ray.

    Forks of this process write to the same log, and mask their records as well. Nobody counts their hits.
    """

    def mask(text: str) -> str:
        return masker.mask_text(text, "log")

    def start_new_counter() -> None:
        # The lock of the old one may be held by a thread that the fork does not have.
        masker.hits = HitCounter()

    os.register_at_fork(after_in_child=start_new_counter)
    logs.mask_records(mask)
    handlers = logging.getLogger("ray.serve").handlers
    for handler in handlers:
        handler.addFilter(_ExtraFields(mask))
    root = logging.getLogger()
    root.handlers[:] = handlers or root.handlers
    root.setLevel(level)


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__)


class _ExtraFields(logging.Filter):
    """Masks the fields that a caller adds to a record by `extra`, which Ray writes into its JSON logs."""

    def __init__(self, mask: logs.Mask) -> None:
        super().__init__()
        self._mask = mask

    def filter(self, record: logging.LogRecord) -> bool:
        for name in record.__dict__.keys() - _STANDARD:
            text = str(record.__dict__[name])
            if (masked := self._mask(text)) != text:
                record.__dict__[name] = masked
        return True
