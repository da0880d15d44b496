"""Searches streams on a thread of its own, while the caller's thread reads and decompresses them.

Decompression and search both release Python's global interpreter lock, so they use two cores.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gusset.images.value_search import Occurrence, ValueSearch
from gusset.secrets.value import MIN_MASKED

_QUEUED = 4  # batches
_BATCH = 1 << 18  # bytes; small chunks are passed on together
_MAX_CHUNKS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a stream: `part` of the file `path`; of the file `inside` it if that is an archive.

    `start` is its offset in the stream. In a tar header `part` is empty: it follows from the offset.
    """

    path: bytes
    part: str
    inside: bytes = b""
    start: int = 0


OnOccurrence = Callable[[Segment, Occurrence, int], object]


class SearchedStream:
    """One stream, searched as its chunks arrive. An occurrence is reported once its segment is known.

    The reading thread calls `mark` and `mark_end`, and the searching thread `feed` and `end`.
    """

    def __init__(self, search: ValueSearch, report: OnOccurrence, segment: Segment) -> None:
        """`report` gets an occurrence's segment, itself and its offset. `segment` is the stream's first."""
        self._search = search
        self._report = report
        self._held = b""
        self._offset = 0  # of `_held` in the stream
        self._segments = deque((segment,))  # by their start
        self._are_all_marked = False
        self._waiting: deque[tuple[int, Occurrence]] = deque()  # by offset, until their segments are known

    def mark(self, segment: Segment) -> None:
        """Add a segment, which ends the previous one at its `start`. Call this in the segments' order."""
        self._segments.append(segment)

    def mark_end(self) -> None:
        """No other segment follows."""
        self._are_all_marked = True

    def feed(self, chunk: bytes) -> None:
        """Search the next bytes."""
        data = self._held + chunk
        found, cut = self._search.find_and_cut(data)
        self._waiting.extend((self._offset + each.start, each) for each in found)
        self._held = data[cut:]
        self._offset += cut
        self._report_located(self._offset if self._are_all_marked else self._segments[-1].start)

    def end(self) -> None:
        """Search what is left."""
        found = self._search.find(self._held) if len(self._held) >= MIN_MASKED else []
        self._waiting.extend((self._offset + each.start, each) for each in found)
        self._offset += len(self._held)
        self._report_located(self._offset)

    def _report_located(self, known: int) -> None:
        """Report what is before the offset `known`, up to which all segments are marked."""
        while self._waiting and self._waiting[0][0] < known:
            offset, occurrence = self._waiting.popleft()
            self._forget_segments(offset)
            self._report(self._segments[0], occurrence, offset)
        self._forget_segments(self._waiting[0][0] if self._waiting else self._offset)

    def _forget_segments(self, before: int) -> None:
        while len(self._segments) > 1 and self._segments[1].start <= before:
            self._segments.popleft()


_Batch = list[tuple[SearchedStream, bytes | None]]


class SearchThread:
    """The thread. Chunks are searched in the order in which they are submitted."""

    def __init__(self) -> None:
        self._queue: queue.Queue[_Batch | None] = queue.Queue(_QUEUED)
        self._batch: _Batch = []  # of the reading thread
        self._size = 0  # bytes in it
        self._thread = threading.Thread(target=self._run, name="gusset-search", daemon=True)
        self._error: BaseException | None = None

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[SearchThread]:
        """A running thread; at the end of the context all that was submitted has been searched."""
        thread = cls()
        thread._thread.start()
        try:
            yield thread
        finally:
            thread._queue.put(thread._batch)
            thread._queue.put(None)
            thread._thread.join()
        thread.check()

    def submit(self, stream: SearchedStream, chunk: bytes | None) -> None:
        """Search the next chunk of a stream; None is its end. Waits while much is to be searched already."""
        self._batch.append((stream, chunk))
        self._size += len(chunk or b"")
        if self._size >= _BATCH or len(self._batch) >= _MAX_CHUNKS:
            self._queue.put(self._batch)
            self._batch, self._size = [], 0

    def check(self) -> None:
        """Raise the exception with which the thread has ended, if any."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None:
                try:
                    for stream, chunk in batch:
                        if chunk is None:
                            stream.end()
                        else:
                            stream.feed(chunk)
                except BaseException as error:  # raised in the caller's thread; until then nothing may block
                    self._error = error
