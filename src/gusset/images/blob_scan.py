"""Searches one file of an image archive: a layer, a config, a manifest or anything else."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from gusset.images import tar_reader, zip_reader
from gusset.images.byte_reader import ByteReader
from gusset.images.compression import Budget, Damaged, Limits, compression_of, decompressed, uncompressed_head
from gusset.images.hits import Hits
from gusset.images.search_thread import SearchedStream, SearchThread, Segment
from gusset.images.tar_reader import BLOCK, Member, is_tar
from gusset.images.value_search import ValueSearch

MAX_DOCUMENT = 4 << 20  # bytes of JSON; registries accept manifests of the same size

_MAX_HEAD = 65_536  # bytes, of what comes before compressed data
_MAX_NOTES = 100
CONTENT = "content"
_PARTS_OF_ATTRIBUTES = {"path": "name", "linkpath": "link target", "uname": "owner", "gname": "owner"}
_NAMED_BY_DIGEST = re.compile(r"(?:blobs/(sha256|sha384|sha512)/)?([0-9a-f]{64,128})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of an image archive or OCI folder. Its content can be read once, before the next file."""

    name: str
    size: int
    chunks: Iterator[bytes]


@dataclass(slots=True, kw_only=True)
class Blob:
    """What is known of a file that was searched. `error`: why it could not be read to its end.

    `document` is its content if that is JSON. `diff_id` is the digest of its content without
    compression, where the digest in its name does not prove the content already.
    """

    name: str
    document: bytes | None = None
    is_layer: bool = False
    error: str | None = None
    diff_id: str | None = None
    files: int = 0
    size: int = 0  # bytes, without compression


@dataclass(slots=True)
class Notes:
    """Files that were searched as they are, since they could not be opened; `more` are only counted."""

    texts: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, text: str) -> None:
        if len(self.texts) < _MAX_NOTES:
            self.texts.append(text)
        else:
            self.more += 1


class BlobScanner:
    """Searches files one after the other. `notes` says which archives in layers could not be opened."""

    def __init__(self, search: ValueSearch, thread: SearchThread, hits: Hits, limits: Limits) -> None:
        self._search = search
        self._thread = thread
        self._hits = hits
        self._limits = limits
        self.notes = Notes()

    def scan(self, file: ImageFile) -> Blob:
        """Search a file to its end, or up to where it is damaged."""
        self._thread.check()
        blob, budget = Blob(name=file.name), Budget(self._limits)
        algorithm, digest = _digest_in(file.name)
        hashed = hashlib.new(algorithm)
        raw = ByteReader(_counted(file.chunks, hashed, budget))
        try:
            self._scan_content(blob, raw, file.size, budget)
            raw.skip_rest()
        except Damaged as error:
            blob.error = str(error)
        else:
            if digest and hashed.hexdigest() != digest:
                blob.error = f"the digest of its content ({algorithm}) is not the one in its name"
        return blob

    def _scan_content(self, blob: Blob, raw: ByteReader, size: int, budget: Budget) -> None:
        head = raw.peek(BLOCK)
        self._hits_in(blob, blob.name.encode("utf-8", "surrogateescape"), "name in the archive")
        if size <= MAX_DOCUMENT and head.lstrip()[:1] in (b"{", b"[") and not is_tar(head):
            blob.document = raw.read(size)
            self._hits_in(blob, blob.document, CONTENT)
            return
        if compression := compression_of(head):
            self._hits_in(blob, uncompressed_head(raw.peek(_MAX_HEAD)), "header of the compressed data")
            content = decompressed(raw.rest(), compression, budget)
        else:
            content = raw.rest()
        if _digest_in(blob.name)[1]:
            self._scan_stream(blob, content, budget)
        else:
            hashed = hashlib.sha256()
            self._scan_stream(blob, _counted(content, hashed, None), budget)
            blob.diff_id = f"sha256:{hashed.hexdigest()}"

    def _hits_in(self, blob: Blob, data: bytes, part: str) -> None:
        for occurrence in self._search.find(data):
            self._hits.add_found(blob.name, part, occurrence.found)

    def _scan_stream(self, blob: Blob, chunks: Iterator[bytes], budget: Budget) -> None:
        stream = self._stream(blob, Segment(path=b"", part=CONTENT))
        reader = ByteReader(self._searched(chunks, stream))
        try:
            head = reader.peek(BLOCK)
            blob.is_layer = is_tar(head) or not head  # an empty layer may have no bytes at all
            if blob.is_layer:
                self._scan_members(blob, reader, stream, budget)
            stream.mark_end()
            reader.skip_rest()
        finally:
            blob.size = reader.offset
            stream.mark_end()
            self._thread.submit(stream, None)

    def _scan_members(self, blob: Blob, reader: ByteReader, stream: SearchedStream, budget: Budget) -> None:
        for member in tar_reader.members(reader):
            *segments, padding = _segments_of(member)
            for segment in segments:
                stream.mark(segment)
            if member.split_name:
                self._find_across(blob, member)
            if member.is_file:
                blob.files += 1
            head = reader.peek(min(BLOCK, member.size))
            if _is_ustar(head):
                self._mark_members(member, reader, stream)
                stream.mark(padding)
            else:
                stream.mark(padding)
                self._open(blob, member, head, reader.pieces(member.size), budget)
        stream.mark(Segment(path=b"", part="bytes after the end of the layer", start=reader.offset))

    def _find_across(self, blob: Blob, member: Member) -> None:
        """Find values in a name that are cut by the border between the two fields that contain it."""
        for occurrence in self._search.find(member.path):
            if occurrence.start <= member.split_name < occurrence.end:
                self._hits.add_found(blob.name, "name", occurrence.found, path=member.path)

    # --- files that are archives themselves

    def _open(
        self, blob: Blob, member: Member, head: bytes, content: Iterator[bytes], budget: Budget
    ) -> None:
        """Search what is in a compressed file or a zip archive that begins with `head`."""
        try:
            if compression := compression_of(head):
                self._scan_compressed(blob, member, decompressed(content, compression, budget))
            elif (start := zip_reader.start_in(head)) is not None:
                self._scan_zip(blob, member, content, start, budget)
        except Damaged as error:
            if budget.is_spent:
                raise Damaged(f"{error}, most of it in {self._hits.masked(member.path)}") from None
            self.notes.add(f"{self._hits.masked(member.path)}: {error}")

    def _mark_members(self, archive: Member, reader: ByteReader, stream: SearchedStream) -> None:
        """Mark the members of a tar archive in a layer. Their content is in the layer's stream already."""
        with contextlib.suppress(Damaged):
            for member in tar_reader.members(ByteReader(reader.pieces(archive.size))):
                if member.content_offset + member.size > archive.size:
                    return
                for segment in _segments_of(member, archive=archive.path, base=archive.content_offset):
                    stream.mark(segment)

    def _scan_compressed(self, blob: Blob, member: Member, content: Iterator[bytes]) -> None:
        stream = self._stream(blob, Segment(path=member.path, part=CONTENT))
        reader = ByteReader(self._searched(content, stream))
        try:
            head = reader.peek(BLOCK)
            if _is_ustar(head):
                for each in tar_reader.members(reader):
                    for segment in _segments_of(each, archive=member.path):
                        stream.mark(segment)
            stream.mark_end()
            reader.skip_rest()
        finally:
            stream.mark_end()
            self._thread.submit(stream, None)

    def _scan_zip(
        self, blob: Blob, member: Member, content: Iterator[bytes], start: int, budget: Budget
    ) -> None:
        reader = ByteReader(content)
        reader.skip(start)
        for entry in zip_reader.entries(reader, budget):
            stream = self._stream(blob, Segment(path=member.path, part=CONTENT, inside=entry.name))
            stream.mark_end()
            try:
                for _ in self._searched(entry.content, stream):
                    pass
            finally:
                self._thread.submit(stream, None)

    def _stream(self, blob: Blob, segment: Segment) -> SearchedStream:
        return SearchedStream(self._search, partial(self._hits.add, blob.name), segment)

    def _searched(self, chunks: Iterator[bytes], stream: SearchedStream) -> Iterator[bytes]:
        for chunk in chunks:
            self._thread.submit(stream, chunk)
            yield chunk


def _segments_of(member: Member, *, archive: bytes | None = None, base: int = 0) -> Iterator[Segment]:
    """The segments of a member in the stream, or in `archive`, which begins at `base` of the stream."""
    path, inside = (member.path, b"") if archive is None else (archive, member.path)

    def segment(part: str, start: int) -> Segment:
        return Segment(path=path, part=part, inside=inside, start=base + start)

    if member.extensions_offset < member.offset:
        yield segment("extended header", member.extensions_offset)
        for each in member.attributes:
            yield segment(_PARTS_OF_ATTRIBUTES.get(each.key, f"attribute {each.key}"), each.offset)
    yield segment("", member.offset)
    if member.size:
        yield segment(CONTENT, member.content_offset)
    yield segment("padding", member.content_offset + member.size)


def _is_ustar(head: bytes) -> bool:
    return head[257:262] == b"ustar" and is_tar(head)


def _counted(chunks: Iterator[bytes], hashed: hashlib._Hash, budget: Budget | None) -> Iterator[bytes]:
    for chunk in chunks:
        hashed.update(chunk)
        if budget is not None:
            budget.add_read(len(chunk))
        yield chunk


def _digest_in(name: str) -> tuple[str, str]:
    """The algorithm and the digest that a file's name promises; an empty digest for another name.

    The names of layers in Docker's archives are digests, too, but of what is in other files.
    """
    match = _NAMED_BY_DIGEST.fullmatch(name)
    if match is None or not (match[1] or name.endswith(".json")):
        return "sha256", ""
    return match[1] or "sha256", match[2]
