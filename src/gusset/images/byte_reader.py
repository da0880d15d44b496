"""Reads exact numbers of bytes from a stream of chunks."""

from __future__ import annotations

from collections.abc import Iterator


class ByteReader:
    """A position in a stream of chunks. `offset` is how many bytes were read or skipped."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0  # of the next byte in `_chunk`
        self.offset = 0

    def peek(self, size: int) -> bytes:
        """The next `size` bytes without reading them; fewer at the end of the stream."""
        while len(self._chunk) - self._at < size and self._fetch():
            pass
        return self._chunk[self._at : self._at + size]

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end of the stream. All are in memory at once."""
        data = self.peek(size)
        self._advance(len(data))
        return data

    def peek_some(self, most: int) -> bytes:
        """Up to `most` of the next bytes without reading them; empty only at the end of the stream."""
        if self._at == len(self._chunk):
            self._fetch()
        return self._chunk[self._at : self._at + most]

    def skip(self, size: int) -> int:
        """Skip `size` bytes; how many there were."""
        return sum(len(piece) for piece in self._views(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces; fewer at the end of the stream."""
        return (bytes(piece) for piece in self._views(size))

    def _views(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            if self._at == len(self._chunk) and not self._fetch():
                return
            piece = memoryview(self._chunk)[self._at : self._at + size]
            size -= len(piece)
            self._advance(len(piece))
            yield piece

    def rest(self) -> Iterator[bytes]:
        """All bytes that follow, in pieces."""
        data = self._chunk[self._at :]
        self._advance(len(data))
        yield data
        for chunk in self._chunks:
            self.offset += len(chunk)
            yield chunk

    def skip_rest(self) -> None:
        """Skip all bytes that follow."""
        for _ in self.rest():
            pass

    def _advance(self, size: int) -> None:
        self._at += size
        self.offset += size

    def _fetch(self) -> bool:
        """Add the next chunk to those bytes that were not read yet; whether there is one."""
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._at = self._chunk[self._at :] + chunk, 0
                return True
        return False
