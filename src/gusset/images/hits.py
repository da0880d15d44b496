"""Collects where values were found. Names of files are masked here: one may contain a value."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from gusset.images.search_thread import Segment
from gusset.images.value_search import Found, Occurrence
from gusset.secrets.masking import Masker

_MAX_HITS = 1_000  # different ones of a secret; more are only counted
_MAX_TEXT = 500  # characters of a name
_HEADER_FIELDS = (  # of a tar header: end of the field, and what it is
    (100, "name"),
    (157, "header"),
    (257, "link target"),
    (265, "header"),
    (329, "owner"),
    (345, "header"),
    (500, "name"),
    (512, "header"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A secret that was found in a file of an image archive, mostly in a layer.

    `path` is a file in that layer, `inside` a file in it if it is an archive; `part` says what
    of the file contains the value, such as "content" or "link target". All texts are masked.
    """

    blob: str
    path: str
    inside: str
    part: str
    secret: str
    form: str
    is_weak: bool


class Hits:
    """The hits and how often each occurred. Safe to use from many threads."""

    def __init__(self, masker: Masker) -> None:
        self.counts: Counter[Hit] = Counter()
        self.omitted = 0  # occurrences that are not in `counts`
        self._different: Counter[tuple[str, bool]] = (
            Counter()
        )  # hits, by the secret and whether they are weak
        self._lock = threading.Lock()
        self._masker = masker
        self.masked = lru_cache(1_024)(self._masked)

    def add(self, blob: str, segment: Segment, occurrence: Occurrence, offset: int) -> None:
        """Count an occurrence at that offset of a stream."""
        part = segment.part or next(
            field
            for end, field in _HEADER_FIELDS
            if offset - segment.start < end or end == _HEADER_FIELDS[-1][0]
        )
        self.add_found(blob, part, occurrence.found, path=segment.path, inside=segment.inside)

    def add_found(
        self, blob: str, part: str, found: Iterable[Found], *, path: bytes = b"", inside: bytes = b""
    ) -> None:
        """Count secrets that were found in a part of a file."""
        for each in found:
            hit = Hit(
                blob=blob,
                path=self.masked(path),
                inside=self.masked(inside),
                part=self.masked(part.encode("utf-8", "replace")),
                secret=each.secret,
                form=each.form,
                is_weak=each.is_weak,
            )
            with self._lock:
                self._count(hit)

    def _count(self, hit: Hit) -> None:
        kind = (hit.secret, hit.is_weak)
        if hit not in self.counts:
            if self._different[kind] == _MAX_HITS:
                self.omitted += 1
                return
            self._different[kind] += 1
        self.counts[hit] += 1

    def _masked(self, text: bytes) -> str:
        """A text from the image without values, and not longer than people can read."""
        shown = self._masker.mask(text).decode("utf-8", "replace")
        return shown if len(shown) <= _MAX_TEXT else shown[:_MAX_TEXT] + "..."
