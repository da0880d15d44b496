"""Carries a process's output onward with secret values masked.

One thread per pipe, so that a busy event loop or a slow terminal never stops
the other stream. Complete lines leave at once; what a `MaskingStream` holds
back, because it could be the start of a value, is let go after `SILENCE`.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Protocol

SILENCE = 0.2  # seconds
_CHUNK = 65_536


class Stream(Protocol):
    """What a pump needs of `gusset.secrets.masking.MaskingStream`."""

    def feed(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...
    @property
    def holding(self) -> bool: ...


class OutputPump:
    """Reads `source` until its end, writes what `stream` makes of it to `sink`.

    Both are file descriptors; `source` is closed at the end, `sink` is not.
    When nobody reads `sink` any more the output is dropped, so that the
    process on the other side never blocks or dies of it.
    """

    def __init__(self, source: int, sink: int, stream: Stream) -> None:
        self._source = source
        self._sink = sink
        self._stream = stream
        self._thread = threading.Thread(target=self._run, name=f"pump-{sink}", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until everything has been carried over, at most `timeout` seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN | select.POLLHUP)
        try:
            while True:
                if self._stream.holding and not poll.poll(SILENCE * 1000):
                    self._write(self._stream.flush())
                    continue
                data = os.read(self._source, _CHUNK)
                if not data:
                    break
                self._write(self._stream.feed(data))
            self._write(self._stream.flush())
        finally:
            os.close(self._source)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:  # a terminal or pipe that somebody set non-blocking
                select.select([], [self._sink], [])
            except OSError:  # nobody listens any more
                return
