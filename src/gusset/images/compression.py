"""Decompresses streams of gzip, deflate and zstd in bounded memory, and detects decompression bombs."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, cast

from isal import isal_zlib

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OUTPUT = 1 << 20  # bytes; the most that one step of a decoder returns
GZIP, DEFLATE, ZSTD = "gzip", "deflate", "zstd"

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # of a zstd frame without content, after a byte from 0x50 to 0x5f
_EXTRA, _NAME, _COMMENT = 4, 8, 16  # flags in a gzip header
_ERRORS: tuple[type[Exception], ...] = (cast("type[Exception]", isal_zlib.error), zstd.ZstdError)
_WINDOW_BITS = {GZIP: 31, DEFLATE: -15}


class Damaged(Exception):
    """Data that cannot be read. The message says why, and not where."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Data may expand to `expanded` bytes, or to `ratio` times its size if that is more."""

    expanded: int = 8 << 30
    ratio: int = 100


DEFAULT_LIMITS = Limits()


class Budget:
    """Counts what was read of a layer, and what it and the compressed files in it have expanded to."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._read = 0
        self._expanded = 0
        self.is_spent = False

    def add_read(self, size: int) -> None:
        """Count bytes that were read."""
        self._read += size

    def add_expanded(self, size: int) -> None:
        """Count bytes that a decoder has returned.

        Raises:
            Damaged: they are more than the limits allow.
        """
        self._expanded += size
        if self._expanded > max(self._limits.expanded, self._limits.ratio * self._read):
            self.is_spent = True
            limits = self._limits
            raise Damaged(f"it expands to over {limits.expanded:,} bytes, and {limits.ratio} times its size")


def compression_of(head: bytes) -> str | None:
    """The compression of data that begins with `head`; None for none that is known."""
    if head.startswith(_GZIP_MAGIC):
        return GZIP
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _SKIPPABLE_MAGIC and head[0] >> 4 == 5):
        return ZSTD
    return None


def uncompressed_head(head: bytes) -> bytes:
    """What compression leaves as it is: names and comments of gzip, and zstd frames without content."""
    if head[1:4] == _SKIPPABLE_MAGIC:
        return head[8 : 8 + int.from_bytes(head[4:8], "little")]
    if not head.startswith(_GZIP_MAGIC):
        return b""
    flags, end = head[3:4], 10
    if flags[0] & _EXTRA:
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags[0] & flag:
            end = head.find(b"\0", end) + 1 or len(head)
    return head[:end]


def decompressed(chunks: Iterator[bytes], compression: str, budget: Budget) -> Iterator[bytes]:
    """The content, in pieces of at most `OUTPUT` bytes. Members and frames in a row are one content.

    Raises:
        Damaged: it is truncated or corrupt, something else follows it, or it expands to too much.
    """
    decoder = Decoder(compression)
    for data in chunks:
        while data := data.lstrip(b"\0") if decoder.eof else data:  # padding may follow
            if decoder.eof:
                decoder = Decoder(compression)
            data = yield from decoder.decode(data, budget)
    if not decoder.eof:
        raise Damaged(f"its {compression} data is truncated")


class Decoder:
    """Decodes one member of gzip, one deflated stream or one frame of zstd. At the end, `eof` is true."""

    def __init__(self, compression: str) -> None:
        self._compression = compression
        self._decoder: Any = (
            zstd.ZstdDecompressor()
            if compression == ZSTD
            else isal_zlib.decompressobj(_WINDOW_BITS[compression])
        )

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    def decode(self, data: bytes, budget: Budget) -> Generator[bytes, None, bytes]:
        """Yield what `data` decodes to; return those of its bytes that follow the end.

        Raises:
            Damaged: it is corrupt, or expands to too much.
        """
        try:
            steps = self._decode_zstd if self._compression == ZSTD else self._decode_zlib
            for out in steps(data):
                budget.add_expanded(len(out))
                yield out
        except _ERRORS:
            raise Damaged(f"its {self._compression} data is corrupt") from None
        return self._decoder.unused_data if self.eof else b""

    def _decode_zlib(self, data: bytes) -> Iterator[bytes]:
        out = b""
        while (data or len(out) == OUTPUT) and not self.eof:
            out = self._decoder.decompress(data, OUTPUT)
            data = self._decoder.unconsumed_tail
            yield out

    def _decode_zstd(self, data: bytes) -> Iterator[bytes]:
        yield self._decoder.decompress(data, OUTPUT)
        while not (self.eof or self._decoder.needs_input):
            yield self._decoder.decompress(b"", OUTPUT)
