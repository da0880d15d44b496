"""Reads tar archives from a stream, in every dialect that layers are written in.

Unlike `tarfile` it reports where each header and attribute is in the stream, and
its memory does not depend on sizes that the archive claims.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gusset.images.byte_reader import ByteReader
from gusset.images.compression import Damaged

BLOCK = 512

_MAX_EXTENSION = 1 << 20  # bytes, of the extended header of one member; Go's limit, too
_MAX_EXTENSIONS = 2 << 20  # bytes, of all extended headers of one member
_END = bytes(BLOCK)
_SEVEN = ord("7")
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX, _OLD_SPARSE = b"L", b"K", b"x", b"g", b"S"
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_FILES = (b"0", b"\0", b"7", _OLD_SPARSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A record of an extended header. `offset` is where in the stream its text begins."""

    key: str
    value: bytes
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of an archive, with the offsets of its parts in the stream.

    `extensions_offset` is where its first header is, and `offset` where the one
    with its fields is. `split_name` is where a slash joins two fields to its path; 0 for one field.
    """

    path: bytes
    link: bytes
    is_file: bool
    is_link: bool
    is_symbolic: bool
    split_name: int
    attributes: tuple[Attribute, ...]
    extensions_offset: int
    offset: int
    content_offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the next member's header."""
        return self.content_offset + -(-self.size // BLOCK) * BLOCK


@dataclass(slots=True, kw_only=True)
class _Extensions:
    """What the headers before a member's own header say of it."""

    path: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    length: int = 0  # bytes of these headers
    attributes: list[Attribute] = field(default_factory=list)


def is_tar(head: bytes) -> bool:
    """Whether data that begins with `head` is a tar archive, which may be empty."""
    return len(head) >= BLOCK and (head[:BLOCK] == _END or _has_checksum(head[:BLOCK]))


def members(reader: ByteReader) -> Iterator[Member]:
    """Each member in turn. The reader is at its content then, which may be read or left.

    Ends at the end mark; the bytes after it are not read.

    Raises:
        Damaged: it is not a tar archive, or truncated, or corrupt.
    """
    extensions, extensions_offset = _Extensions(), reader.offset
    while header := reader.read(BLOCK):
        offset = reader.offset - BLOCK
        if header == _END:
            return
        if len(header) < BLOCK:
            raise Damaged("its tar archive is truncated")
        if not _has_checksum(header):
            raise Damaged(f"it is not a tar archive, or a corrupt one (at byte {offset:,})")
        if header[156:157] in (_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX):
            _read_extension(reader, header, extensions)
            continue
        if header[156:157] == _OLD_SPARSE:
            _skip_sparse_map(reader, header)
        member = _member(header, extensions, extensions_offset, offset, reader.offset)
        yield member
        _skip(reader, member.end - reader.offset)
        extensions, extensions_offset = _Extensions(), reader.offset


def _member(
    header: bytes, extensions: _Extensions, extensions_offset: int, offset: int, content_offset: int
) -> Member:
    kind = header[156:157]
    name, prefix = _text(header[:100]), b""
    if header[257:263] == b"ustar\0":  # GNU's dialect has times in these bytes
        prefix = _text(header[345:500])
    size = extensions.size if extensions.size is not None else _number(header[124:136])
    return Member(
        path=extensions.path if extensions.path is not None else (prefix + b"/" + name if prefix else name),
        link=extensions.link if extensions.link is not None else _text(header[157:257]),
        is_file=kind in _FILES,
        is_link=kind in (_HARD_LINK, _SYMBOLIC_LINK),
        is_symbolic=kind == _SYMBOLIC_LINK,
        split_name=len(prefix) if extensions.path is None else 0,
        attributes=tuple(extensions.attributes),
        extensions_offset=extensions_offset,
        offset=offset,
        content_offset=content_offset,
        size=0 if kind in _WITHOUT_CONTENT else size,
    )


def _read_extension(reader: ByteReader, header: bytes, extensions: _Extensions) -> None:
    size, kind = _number(header[124:136]), header[156:157]
    if size > _MAX_EXTENSION:
        raise Damaged(f"its tar archive has an extended header of {size:,} bytes")
    extensions.length += BLOCK + size
    if extensions.length > _MAX_EXTENSIONS:
        raise Damaged(f"its tar archive has a member with over {_MAX_EXTENSIONS:,} bytes of extended headers")
    start = reader.offset
    data = reader.read(size)
    _skip(reader, size - len(data) + -size % BLOCK)
    if kind == _LONG_NAME:
        extensions.path = _text(data)
    elif kind == _LONG_LINK:
        extensions.link = _text(data)
    else:
        attributes = list(_attributes(data, start))
        extensions.attributes += attributes
        if kind == _PAX:
            _apply({each.key: each.value for each in attributes}, extensions)


def _apply(records: Mapping[str, bytes], extensions: _Extensions) -> None:
    extensions.path = records.get("GNU.sparse.name", records.get("path", extensions.path))
    extensions.link = records.get("linkpath", extensions.link)
    if (size := records.get("size")) is not None:
        extensions.size = _decimal(size)


def _attributes(data: bytes, start: int) -> Iterator[Attribute]:
    """The records, each `LENGTH KEY=VALUE` and a line feed, up to the first that cannot be read."""
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not (space and digits.isdigit() and int(digits) > len(digits)):
            return
        key, _, value = data[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        yield Attribute(key=key.decode("utf-8", "replace"), value=value, offset=start + at)
        at += int(digits)


def _skip_sparse_map(reader: ByteReader, header: bytes) -> None:
    is_extended = header[482:483] == b"\1"
    while is_extended:
        block = reader.read(BLOCK)
        if len(block) < BLOCK:
            raise Damaged("its tar archive is truncated")
        is_extended = block[504:505] == b"\1"


def _skip(reader: ByteReader, size: int) -> None:
    if reader.skip(size) < size:
        raise Damaged("its tar archive is truncated")


def _has_checksum(header: bytes) -> bool:
    try:
        expected = _number(header[148:156])
    except Damaged:
        return False
    others = header[:148] + b" " * 8 + header[156:]
    total = _sum(others[:256]) + _sum(others[256:])
    if total == expected:
        return True
    return total - 256 * sum(byte > 127 for byte in others) == expected  # of old programs with signed bytes


def _sum(data: bytes) -> int:
    """The sum of at most 256 bytes. Adler-32 contains it, and is ten times as fast as `sum`."""
    return (zlib.adler32(data) & 0xFFFF) - 1


def _number(data: bytes) -> int:
    if data[0] & 0x80:  # base 256, for large numbers
        number = int.from_bytes(data, "big") & ~(1 << (8 * len(data) - 1))
        if data[0] & 0x40 or number >> 62:
            raise Damaged("its tar archive has a negative or too large number")
        return number
    text = data.strip(b" \0")
    if not text:
        return 0
    if not text.isdigit() or max(text) > _SEVEN:
        raise Damaged("its tar archive has a number that is not octal")
    return int(text, 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise Damaged("its tar archive has a size that is not a number")
    return int(text)


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]
