"""Forwards a process's output with secret values masked.

One thread per pipe, so that neither a busy event loop nor a slow terminal
blocks the other stream. Complete lines are forwarded at once. What a
`MaskingStream` holds back, because it could be the start of a value, is
forwarded after `SILENCE`.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Protocol

SILENCE = 0.2  # seconds
_CHUNK = 65_536


class Stream(Protocol):
    """The part of `gusset.secrets.masking.MaskingStream` that a pump uses."""

    def feed(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...
    @property
    def holding(self) -> bool: ...


class OutputPump:
    """Reads `source` to its end, and writes what `stream` returns for it to `sink`.

    Both are file descriptors. `source` is closed at the end, `sink` is not.
    When `sink` has no reader any more, output is dropped: the process that
    writes it neither blocks nor fails.
    """

    def __init__(self, source: int, sink: int, stream: Stream) -> None:
        self._source = source
        self._sink = sink
        self._stream = stream
        self._thread = threading.Thread(target=self._run, name=f"gusset-pump-{sink}", daemon=True)

    @classmethod
    def start(cls, source: int, sink: int, stream: Stream) -> OutputPump:
        """Create a pump and start its thread."""
        pump = cls(source, sink, stream)
        pump._thread.start()
        return pump

    def join(self, timeout: float | None = None) -> None:
        """Wait until everything has been forwarded, at most `timeout` seconds."""
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
            except BlockingIOError:  # a terminal or pipe that another process has set non-blocking
                select.select([], [self._sink], [])
            except OSError:  # `sink` has no reader any more
                return
