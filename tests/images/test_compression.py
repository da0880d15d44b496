"""Decompression of streams: gzip, deflate and zstd, cut anywhere."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from gusset.images.compression import (
    DEFAULT_LIMITS,
    DEFLATE,
    GZIP,
    OUTPUT,
    ZSTD,
    Budget,
    Damaged,
    Decoder,
    Limits,
    compression_of,
    decompressed,
    uncompressed_head,
)
from tests.images.archives import pieces

PACK: Mapping[str, Callable[[bytes], bytes]] = {GZIP: gzip.compress, ZSTD: zstd.compress}
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


def unpack(data: bytes, compression: str, chunk: int = 1_000, limits: Limits = DEFAULT_LIMITS) -> bytes:
    budget = Budget(limits)
    budget.add_read(len(data))
    return b"".join(decompressed(pieces(data, chunk), compression, budget))


@given(
    parts=st.lists(st.binary(max_size=2_000), min_size=1, max_size=4),
    compression=st.sampled_from([GZIP, ZSTD]),
    chunk=st.integers(1, 400),
    padding=st.integers(0, 40),
)
def test_members_in_a_row_are_one_content(
    parts: list[bytes], compression: str, chunk: int, padding: int
) -> None:
    """Wherever the stream is cut, and with zeros after them."""
    data = b"".join(PACK[compression](part) for part in parts) + bytes(padding)

    assert unpack(data, compression, chunk) == b"".join(parts)


@given(content=st.binary(max_size=5_000), rest=st.binary(max_size=300), chunk=st.integers(1, 400))
def test_a_deflated_stream_ends_where_it_ends(content: bytes, rest: bytes, chunk: int) -> None:
    """The bytes after it are returned, none of them lost."""
    packer = zlib.compressobj(wbits=-15)
    data = packer.compress(content) + packer.flush() + rest
    decoder, out, left = Decoder(DEFLATE), b"", b""
    for piece in pieces(data, chunk):
        if decoder.eof:
            left += piece
            continue
        steps = decoder.decode(piece, Budget(DEFAULT_LIMITS))
        while True:
            try:
                out += next(steps)
            except StopIteration as end:
                left += end.value
                break

    assert (out, left) == (content, rest)


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_zeros_come_out_in_small_pieces(compression: str) -> None:
    """However small the compressed data is."""
    data = PACK[compression](bytes(20 * OUTPUT + 7))
    out = [len(each) for each in decompressed(iter([data]), compression, Budget(DEFAULT_LIMITS))]

    assert max(out) <= OUTPUT and sum(out) == 20 * OUTPUT + 7


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:20], lambda data: data + b"x"])
def test_truncated_data_and_bytes_that_follow_are_an_error(
    damage: Callable[[bytes], bytes], compression: str
) -> None:
    """An incomplete layer is never taken for a whole one."""
    with pytest.raises(Damaged):
        unpack(damage(PACK[compression](b"content " * 50)), compression)


def test_a_wrong_checksum_is_an_error() -> None:
    """Of gzip; no digest is needed to notice it."""
    data = gzip.compress(b"content")
    with pytest.raises(Damaged, match="corrupt"):
        unpack(data[:-8] + bytes(8), GZIP)


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_a_bomb_is_an_error(compression: str) -> None:
    """Data that expands beyond the size and beyond the ratio; either alone is allowed."""
    bomb = PACK[compression](bytes(3_000_000))
    with pytest.raises(Damaged, match="expands"):
        unpack(bomb, compression, limits=Limits(expanded=2_000_000, ratio=10))
    assert unpack(bomb, compression, limits=Limits(expanded=4_000_000, ratio=10))
    assert unpack(bomb, compression, limits=Limits(expanded=2_000_000, ratio=100_000))


def test_frames_without_content_are_skipped() -> None:
    """Tools put a table of contents into them; it can be searched."""
    assert compression_of(SKIPPABLE) == ZSTD
    assert unpack(SKIPPABLE + zstd.compress(b"content") + SKIPPABLE, ZSTD) == b"content"
    assert uncompressed_head(SKIPPABLE + b"more") == b"hello"


def test_the_name_in_a_gzip_header_can_be_searched() -> None:
    """It is not compressed."""
    header = b"\x1f\x8b\x08\x1c" + bytes(6) + (4).to_bytes(2, "little") + b"fourname\0comment\0"
    assert uncompressed_head(header + b"data") == header
    packed = gzip.compress(b"content", mtime=0)
    assert uncompressed_head(packed) == packed[:10]
