"""Replaces secrets' values in output, in their common encodings, and parts of them, by `***`.

`pattern_index.py` finds them. This module knows which values there are and how much of
a stream has been returned already, and counts what was masked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gusset.secrets import patterns
from gusset.secrets.fragments import fragments_of
from gusset.secrets.hits import Hit, HitCounter, Label
from gusset.secrets.pattern_index import PatternIndex, Span
from gusset.secrets.value import MASK, SecretValue

_MASK: Final = MASK.encode()


def maskable(value: SecretValue) -> bool:
    """Whether `value` is masked: at least 8 bytes, and not only white space. Callers report the others."""
    return patterns.maskable(value.reveal())


class Masker:
    """Masks all values that it has learned, including replaced ones, until `forget`. Thread-safe.

    `hits` counts what it has masked.
    """

    def __init__(self, values: Mapping[str, SecretValue] | Iterable[SecretValue] = ()) -> None:
        self.hits = HitCounter()
        self._learning = threading.Lock()
        self._known: dict[SecretValue, str] = {}  # with the names of their secrets
        self._names: set[str] = set()
        self._index = PatternIndex({}, {})
        self._lower: PatternIndex | None = None  # of the values in lower case; made when it is needed
        self.learn(values)

    def learn(self, values: Mapping[str, SecretValue] | Iterable[SecretValue]) -> None:
        """Mask these values too, from the next call on. Values that are not `maskable` are ignored.

        Hits are counted by the secrets' names, which are the mapping's keys.
        """
        named = values.items() if isinstance(values, Mapping) else (("", value) for value in values)
        with self._learning:
            new = {value: name for name, value in named if maskable(value) and value not in self._known}
            if new:
                self._add(new, dict(self._index.patterns), dict(self._index.fragments))

    def forget(self, values: Iterable[SecretValue]) -> None:
        """Mask these values no more. All patterns are made anew, so call it rarely."""
        unwanted = set(values)
        with self._learning:
            kept = {value: name for value, name in self._known.items() if value not in unwanted}
            self._known = {}
            self._add(kept, {}, {})

    def _add(
        self, new: Mapping[SecretValue, str], found: dict[bytes, Label], fragments: dict[bytes, Label]
    ) -> None:
        """Add the patterns and fragments of these values to those, and use them from now on."""
        for value, name in new.items():
            for pattern, form in patterns.patterns_of(value.reveal()).items():
                found.setdefault(pattern, Label(name, form))
            for part in patterns.texts_of(value.reveal()):
                for text in fragments_of(part):
                    fragments.setdefault(text, Label(name, patterns.PART))
        self._known.update(new)
        self._names.update(new.values())
        self._index = PatternIndex(found, fragments)
        self._lower = None

    def mask(self, data: bytes, channel: str = "log") -> bytes:
        """`data` with `***` in place of each pattern of a value; the same object when there is none.

        Hits are counted for `channel`.
        """
        spans = self._index.spans(data)
        if not spans:
            return data
        self.hits.add((label for span in spans for label in span.labels), channel)
        return _masked(data, spans, 0, len(data))

    def count(self, hits: Mapping[Hit, int]) -> None:
        """Add hits that another process has counted, but for those of secrets that this one does not know."""
        names = self._names
        self.hits.merge({hit: times for hit, times in hits.items() if hit.secret in names})

    def mask_text(self, text: str, channel: str = "log") -> str:
        """`mask` for text, such as tracebacks and error messages."""
        try:
            data, errors = text.encode("utf-8", "surrogateescape"), "surrogateescape"
        except UnicodeEncodeError:  # lone surrogates, which JSON can contain
            data, errors = text.encode("utf-8", "surrogatepass"), "replace"
        masked = self.mask(data, channel)
        return text if masked is data else masked.decode("utf-8", errors)

    def mask_header_name(self, name: bytes, channel: str = "log") -> bytes:
        """`mask` for a header's name, ignoring case: libraries change it to lower case."""
        masked = self.mask(name, channel)
        if masked is not name:
            return masked
        with self._learning:
            if self._lower is None:
                plain = {
                    value.lower(): label
                    for value, label in self._index.patterns.items()
                    if label.form == "plain"
                }
                self._lower = PatternIndex(plain, {})
            spans = self._lower.spans(name.lower())
        self.hits.add((label for span in spans for label in span.labels), channel)
        return _masked(name, spans, 0, len(name))

    def stream(self, channel: str = "log") -> MaskingStream:
        """A new `MaskingStream`, which also masks values that this masker learns later."""
        return MaskingStream(self, channel)


class MaskingStream:
    """Masks a stream of bytes that arrives in chunks of any size. For one thread.

    The output does not depend on where the chunks were cut: bytes that may be
    the start of a pattern are held back until the next chunk decides. A complete
    line is returned at once, unless it ends in eight or more bytes that are the
    start of a pattern of several lines. While `holding` is true and no chunk
    arrives, the caller calls `flush` after a short time.
    """

    def __init__(self, masker: Masker, channel: str = "log") -> None:
        self._masker = masker
        self._channel = channel
        self._buffer = b""
        self._emitted = 0  # how many bytes of the buffer were returned already, by a flush or within a mask
        self._ends_in_mask = False  # whether the last returned mask also covers the bytes that follow
        self._more: list[bytes] = []  # follows the buffer, see `_is_held_whole`
        self._index: PatternIndex | None = None
        self._continuing = range(0)  # the patterns of `_index` that begin with everything that is held
        self._held = 0  # bytes

    @property
    def holding(self) -> bool:
        """Whether some bytes are held back, since they may be the start of a value."""
        return self._held > self._emitted

    def feed(self, data: bytes) -> bytes:
        """The bytes that can be returned now, masked; `data` itself when that is all of it, unmasked."""
        if self._continuing and self._is_held_whole(data):
            return b""
        whole = self._all_held() + data if self._held else data
        index = self._masker._index
        spans, cut = index.spans_and_cut(whole)
        if not spans and cut == len(whole) and whole is data:
            return data
        covered = next((span.end for span in spans if span.start < cut < span.end), cut) if spans else cut
        out = self._emit(whole, spans, covered)
        self._hold(whole[cut:], index)
        self._emitted = max(0, self._emitted - cut)
        return out

    def flush(self) -> bytes:
        """The bytes that were held back, masked: at the end of the stream, or after 200 ms without a chunk.

        The stream may continue afterwards. When the returned bytes turn out to
        have been the start of a value, the rest of the value is still masked.
        """
        self._hold(self._all_held(), self._masker._index)
        spans = self._masker._index.spans(self._buffer)
        return self._emit(self._buffer, spans, len(self._buffer))

    def _all_held(self) -> bytes:
        return b"".join((self._buffer, *self._more)) if self._more else self._buffer

    def _hold(self, data: bytes, index: PatternIndex) -> None:
        self._buffer, self._more, self._held = data, [], len(data)
        self._index, self._continuing = index, index.continuing(data)

    def _is_held_whole(self, data: bytes) -> bool:
        """Whether what is held, followed by `data`, is still the start of a pattern; it is held then.

        Only `data` is compared: a long value that arrives byte by byte is not
        compared from its start for each byte.
        """
        if self._index is not self._masker._index:
            return False
        self._continuing = self._index.narrowed(self._continuing, self._held, data)
        if not self._continuing:
            return False
        self._more.append(data)
        self._held += len(data)
        return True

    def _emit(self, data: bytes, spans: Sequence[Span], end: int) -> bytes:
        """The bytes of `data` up to `end` that were not returned yet, masked."""
        start = self._emitted
        if end <= start:
            return b""
        if not spans:
            self._emitted, self._ends_in_mask = end, False
            return data[start:end]
        out = _masked(data, spans, start, end)
        masked = [span for span in spans if span.end > start and span.start < end]
        if self._ends_in_mask and masked and masked[0].start < start:
            out = out.removeprefix(_MASK)  # the mask that was returned before covers this too
            del masked[0]
        if masked:
            self._masker.hits.add((label for span in masked for label in span.labels), self._channel)
        self._emitted = end
        self._ends_in_mask = any(span.start < end <= span.end for span in spans)
        return out


def _masked(data: bytes, spans: Sequence[Span], start: int, end: int) -> bytes:
    """`data[start:end]` with a mask for each of `spans`, which are in order and do not overlap."""
    parts: list[bytes] = []
    for first, last, _ in spans:
        if last <= start:
            continue
        if first >= end:
            break
        if start < first:
            parts.append(data[start:first])
        parts.append(_MASK)
        start = last
    if start < end:
        parts.append(data[start:end])
    return b"".join(parts)
