"""The files of an OCI folder, or of an archive as `docker save` and `podman save` write it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gusset.errors import HostError, ImageUnreadable
from gusset.images.blob_scan import ImageFile
from gusset.images.byte_reader import ByteReader
from gusset.images.compression import DEFAULT_LIMITS, Budget, Damaged, Limits, compression_of, decompressed
from gusset.images.tar_reader import BLOCK, members

_CHUNK = 1 << 18  # bytes
_MARKS = ("index.json", "manifest.json", "oci-layout")


def is_image_folder(path: Path) -> bool:
    """Whether a folder has an OCI layout, or what an archive of Docker's contains."""
    return any((path / name).is_file() for name in _MARKS)


class ImageSource:
    """A stream of files. After they were read, `links` has the links among them."""

    def __init__(self, files: Iterator[ImageFile], links: dict[str, str]) -> None:
        self.files = files
        self.links = links

    @classmethod
    def from_folder(cls, folder: Path) -> ImageSource:
        """All files of a folder; links to files are followed."""
        return cls(_files_of_folder(folder), {})

    @classmethod
    def from_archive(
        cls, chunks: Iterator[bytes], limits: Limits = DEFAULT_LIMITS, *, name: str = "the archive"
    ) -> ImageSource:
        """The files of a tar archive, which may be compressed. Its chunks are read as they come.

        `name` is what errors call it.
        """
        links: dict[str, str] = {}
        return cls(_files_of_archive(chunks, links, limits, name), links)


def read_chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The content of an open file, which may be a pipe.

    Raises:
        HostError: it cannot be read.
    """
    try:
        while chunk := file.read(_CHUNK):
            yield chunk
    except OSError as error:
        raise HostError(f"{name} cannot be read: {os.strerror(error.errno or 0).lower()}") from None


def _files_of_folder(folder: Path) -> Iterator[ImageFile]:
    def fail(error: OSError) -> None:
        raise HostError(f"{error.filename} cannot be read: {os.strerror(error.errno or 0).lower()}") from None

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                try:
                    with path.open("rb") as file:
                        size = os.fstat(file.fileno()).st_size
                        relative = path.relative_to(folder).as_posix()
                        yield ImageFile(relative, size, read_chunks(file, str(path)))
                except OSError as error:
                    fail(error)


def _files_of_archive(
    chunks: Iterator[bytes], links: dict[str, str], limits: Limits, archive: str
) -> Iterator[ImageFile]:
    reader = ByteReader(chunks)
    try:
        if compression := compression_of(reader.peek(BLOCK)):
            budget = Budget(limits)
            reader = ByteReader(decompressed(_read(reader.rest(), budget), compression, budget))
        for member in members(reader):
            name = _normal(member.path)
            if member.is_link:
                links[name] = _target(name, member.link, member.is_symbolic)
            elif member.is_file:
                yield ImageFile(name, member.size, reader.pieces(member.size))
        reader.skip_rest()  # also proves that the compressed data is whole
    except Damaged as error:
        raise ImageUnreadable(
            f"{archive} could not be searched completely: {error}", hint="save, pull or build the image again"
        ) from None


def _read(chunks: Iterator[bytes], budget: Budget) -> Iterator[bytes]:
    for chunk in chunks:
        budget.add_read(len(chunk))
        yield chunk


def _normal(path: bytes) -> str:
    return posixpath.normpath(path.decode("utf-8", "surrogateescape"))


def _target(name: str, link: bytes, is_relative: bool) -> str:
    """The file that a link leads to; a symbolic link is relative to its folder, a hard link is not."""
    return posixpath.normpath(
        posixpath.join(posixpath.dirname(name), _normal(link)) if is_relative else _normal(link)
    )
