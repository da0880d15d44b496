"""Reads zip archives from a stream, by the headers before their entries.

Only deflated entries need decoding: stored ones are in the stream as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gusset.images.byte_reader import ByteReader
from gusset.images.compression import DEFLATE, Budget, Damaged, Decoder

_MAGIC = b"PK\x03\x04"
_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED, _SIZES_FOLLOW = 1, 8  # flags
_STORED, _DEFLATED = 0, 8  # methods
_NEXT = (_MAGIC, b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06")
_DESCRIPTOR_SIZES = (12, 16, 20, 24)
_IN_ZIP64 = 0xFFFFFFFF
_PIECE = 65_536  # bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A deflated file of a zip archive; its content can be read once, before the next entry."""

    name: bytes
    content: Iterator[bytes]


def start_in(head: bytes) -> int | None:
    """Where in a file that begins with `head` a zip archive begins; None if there is none.

    A line that names an interpreter may come before, as in a Python application in a zip archive.
    """
    start = head.find(_MAGIC) if head.startswith(b"#!") else 0
    return start if start >= 0 and head.startswith(_MAGIC, start) else None


def entries(reader: ByteReader, budget: Budget) -> Iterator[Entry]:
    """The deflated entries, up to the central directory.

    Raises:
        Damaged: what follows cannot be read, or is encrypted, or compressed by another method.
    """
    while reader.peek(4) == _MAGIC:
        header = reader.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise Damaged("its zip archive is truncated")
        flags, method = struct.unpack_from("<2H", header, 6)
        size, _, name_length, extra_length = struct.unpack_from("<2I2H", header, 18)
        name, extra = reader.read(name_length), reader.read(extra_length)
        if size == _IN_ZIP64:
            size = _zip64_size(extra)
        is_size_known = not flags & _SIZES_FOLLOW
        end = reader.offset + size if is_size_known else None
        if flags & _ENCRYPTED:
            raise Damaged("its zip archive is encrypted")
        if method == _DEFLATED:
            content = _inflated(reader, budget)
            yield Entry(name, content)
            for _ in content:  # what was not read
                pass
        elif method != _STORED or end is None:
            raise Damaged("its zip archive has an entry that cannot be read as a stream")
        if end is None:
            _skip_descriptor(reader)
        elif end < reader.offset:
            raise Damaged("its zip archive is corrupt")
        else:
            reader.skip(end - reader.offset)


def _inflated(reader: ByteReader, budget: Budget) -> Iterator[bytes]:
    decoder = Decoder(DEFLATE)
    while not decoder.eof:
        data = reader.peek_some(_PIECE)
        if not data:
            raise Damaged("its zip archive is truncated")
        rest = yield from decoder.decode(data, budget)
        reader.skip(len(data) - len(rest))


def _zip64_size(extra: bytes) -> int:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1 and size >= 16 and at + 20 <= len(extra):
            return int(struct.unpack_from("<Q", extra, at + 12)[0])
        at += 4 + size
    raise Damaged("its zip archive is corrupt")


def _skip_descriptor(reader: ByteReader) -> None:
    """Skip the checksum and the sizes after an entry, of which there are four forms."""
    following = reader.peek(_DESCRIPTOR_SIZES[-1] + 4)
    for size in _DESCRIPTOR_SIZES:
        if following[size : size + 4] in _NEXT:
            reader.skip(size)
            return
    raise Damaged("its zip archive is corrupt")
