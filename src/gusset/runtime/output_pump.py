"""Forwards a process's output with secret values masked.

One thread per pipe, so that neither a busy event loop nor a slow terminal
blocks the other stream. Complete lines are forwarded at once. What a
`MaskingStream` holds back, because it could be the start of a value, is
forwarded after `SILENCE`.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from typing import Protocol

SILENCE = 0.2  # seconds
_CHUNK = 65_536


class OutputStream(Protocol):
    """The part of `gusset.secrets.masking.MaskingStream` that a pump uses."""

    def feed(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...
    @property
    def holding(self) -> bool: ...


class OutputPump:
    """Reads `source` to its end, and writes what `stream` returns for it to `sink`.

    Both are file descriptors. `source` is a pipe, or the master of a
    pseudo-terminal. It is closed at the end, `sink` is not.
    When `sink` has no reader any more, output is dropped: the process that
    writes it neither blocks nor fails.
    """

    def __init__(self, source: int, sink: int, stream: OutputStream) -> None:
        self._source = source
        self._sink = sink
        self._stream = stream
        self._idle_since: float | None = None  # when it began to wait for input; None while it forwards
        self._thread = threading.Thread(target=self._run, name=f"gusset-pump-{sink}", daemon=True)

    @classmethod
    def start(cls, source: int, sink: int, stream: OutputStream) -> OutputPump:
        """Create a pump and start its thread. If there is none, `source` is closed, too."""
        pump = cls(source, sink, stream)
        try:
            pump._thread.start()
        except BaseException:
            os.close(source)
            raise
        return pump

    def join(self, timeout: float | None = None) -> None:
        """Wait until everything has been forwarded, at most `timeout` seconds."""
        self._thread.join(timeout)

    def drain(self, silence: float) -> None:
        """Wait until everything has been forwarded, however slowly `sink` is read.

        When `source` stays open, since a process that was left behind holds it,
        this returns once nothing has arrived for `silence` seconds.
        """
        while self._thread.is_alive():
            self._thread.join(silence)
            idle_since = self._idle_since
            if idle_since is not None and time.monotonic() - idle_since >= silence and not self._has_input():
                return

    def _has_input(self) -> bool:
        poll = select.poll()
        poll.register(self._source, select.POLLIN | select.POLLHUP)
        return bool(poll.poll(0))

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN | select.POLLHUP)
        try:
            while True:
                if self._stream.holding and not poll.poll(SILENCE * 1000):
                    self._write(self._stream.flush())
                    continue
                self._idle_since = time.monotonic()
                data = self._read()
                self._idle_since = None
                if not data:
                    break
                self._write(self._stream.feed(data))
            self._write(self._stream.flush())
        finally:
            os.close(self._source)

    def _read(self) -> bytes:
        try:
            return os.read(self._source, _CHUNK)
        except OSError as error:
            if error.errno == errno.EIO:  # no process has the pseudo-terminal open any more
                return b""
            raise

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:  # a terminal or pipe that another process has set non-blocking
                select.select([], [self._sink], [])
            except OSError:  # `sink` has no reader any more
                return
