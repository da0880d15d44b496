"""Finds secrets' values in output, in their common encodings, and replaces them by `***`.

An Aho-Corasick automaton searches for the first eight bytes of all patterns at
once, which keeps it small and its speed nearly independent of the number of
secrets. At each match, a binary search in the sorted patterns finds the longest
one there, or whether one may continue in the next chunk of a stream.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from gusset.secrets import patterns
from gusset.secrets.patterns import MIN_BYTES
from gusset.secrets.value import MASK, SecretValue

_MASK = MASK.encode()
_DFA_PREFIXES = 5_000  # up to this number the faster automaton takes about ten megabytes at most

Span = tuple[int, int]


def maskable(value: SecretValue) -> bool:
    """Whether `value` is masked: at least 8 bytes, and not only white space. Callers report the others."""
    return patterns.maskable(value.reveal())


class Masker:
    """Masks all values that it has learned, including replaced ones. Safe to use from many threads."""

    def __init__(self, values: Iterable[SecretValue] = ()) -> None:
        self._learning = threading.Lock()
        self._known: frozenset[SecretValue] = frozenset()
        self._index = _Index(frozenset())
        self.learn(values)

    def learn(self, values: Iterable[SecretValue]) -> None:
        """Mask these values too, from the next call on. Values that are not `maskable` are ignored."""
        with self._learning:
            new = {value for value in values if maskable(value)} - self._known
            if new:
                self._known |= new
                added = (patterns.patterns_of(value.reveal()) for value in new)
                self._index = _Index(self._index.patterns.union(*added))

    def mask(self, data: bytes) -> bytes:
        """`data` with `***` in place of each pattern of a value; the same object when there is none."""
        index = self._index
        spans = index.spans(data)
        return _masked(data, spans, 0, len(data)) if spans else data

    def mask_text(self, text: str) -> str:
        """The same for text, such as tracebacks and error messages."""
        try:
            data, errors = text.encode("utf-8", "surrogateescape"), "surrogateescape"
        except UnicodeEncodeError:  # lone surrogates, which JSON can contain
            data, errors = text.encode("utf-8", "surrogatepass"), "replace"
        masked = self.mask(data)
        return text if masked is data else masked.decode("utf-8", errors)

    def stream(self) -> MaskingStream:
        """A new `MaskingStream`, which also masks values that this masker learns later."""
        return MaskingStream(self)


class MaskingStream:
    """Masks a stream of bytes that arrives in chunks of any size. For one thread.

    The output does not depend on where the chunks were cut: bytes that may be
    the start of a pattern are held back until the next chunk decides. A complete
    line is returned at once, unless it ends in eight or more bytes that are the
    start of a pattern of several lines. While `holding` is true and no chunk
    arrives, the caller calls `flush` after a short time.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._buffer = b""
        self._emitted = 0  # how many bytes of the buffer were returned already, by a flush or within a mask
        self._ends_in_mask = False  # whether the last returned mask also covers the bytes that follow

    @property
    def holding(self) -> bool:
        """Whether some bytes are held back, since they may be the start of a value."""
        return len(self._buffer) > self._emitted

    def feed(self, data: bytes) -> bytes:
        """The bytes that can be returned now, masked; `data` itself when that is all of it, unmasked."""
        whole = self._buffer + data if self._buffer else data
        spans, cut = self._masker._index.spans_and_cut(whole)
        if not spans and cut == len(whole) and whole is data:
            return data
        covered = next((last for first, last in spans if first < cut < last), cut)
        out = self._emit(whole, spans, covered)
        self._buffer, self._emitted = whole[cut:], max(0, self._emitted - cut)
        return out

    def flush(self) -> bytes:
        """The bytes that were held back, masked: at the end of the stream, or after 200 ms without a chunk.

        The stream may continue afterwards. When the returned bytes turn out to
        have been the start of a value, the rest of the value is still masked.
        """
        spans = self._masker._index.spans(self._buffer)
        return self._emit(self._buffer, spans, len(self._buffer))

    def _emit(self, data: bytes, spans: Sequence[Span], end: int) -> bytes:
        """The bytes of `data` up to `end` that were not returned yet, masked."""
        start = self._emitted
        if end <= start:
            return b""
        out = _masked(data, spans, start, end)
        if self._ends_in_mask and any(first < start < last for first, last in spans):
            out = out.removeprefix(_MASK)  # the mask that was returned before covers this too
        self._emitted, self._ends_in_mask = end, any(first < end <= last for first, last in spans)
        return out


def _masked(data: bytes, spans: Iterable[Span], start: int, end: int) -> bytes:
    """`data[start:end]` with a mask for each of `spans`, which are in order and do not overlap."""
    parts: list[bytes] = []
    for first, last in spans:
        if last <= start:
            continue
        if first >= end:
            break
        parts += (data[start:first], _MASK)
        start = last
    return b"".join((*parts, data[start:end]))


class _Index:
    """Finds patterns in data. Immutable."""

    def __init__(self, patterns: frozenset[bytes]) -> None:
        self.patterns = patterns
        self._sorted = sorted(patterns)
        self._shorter = _longest_proper_prefixes(self._sorted)
        self._prefixes = _prefixes(self._sorted)
        self._search = BytesAhoCorasick(
            self._prefixes,
            MatchKind.LeftmostLongest,
            Implementation.DFA if len(self._prefixes) <= _DFA_PREFIXES else Implementation.ContiguousNFA,
        )

    def spans(self, data: bytes) -> list[Span]:
        """The parts of `data` to mask, in order, merged where patterns overlap."""
        return self._merged(data, self._candidates(data))

    def spans_and_cut(self, data: bytes) -> tuple[list[Span], int]:
        """The same, and the offset from which to keep `data`: a pattern may start there and continue."""
        candidates = self._candidates(data)
        spans = self._merged(data, candidates) if candidates else []
        cut = next((start for start in candidates if self._may_continue(data, start)), None)
        return spans, self._short_tail(data) if cut is None else cut

    def _candidates(self, data: bytes) -> list[int]:
        """All offsets at which the first bytes of a pattern are."""
        found = self._search.find_matches_as_indexes(data) if self._prefixes else ()
        if not found:
            return []
        prefixes = self._prefixes
        # The search skips matches that overlap the one before, so check every offset within a match.
        return [
            offset
            for _, start, end in found
            for offset in range(start, end)
            if data[offset : offset + MIN_BYTES] in prefixes
        ]

    def _merged(self, data: bytes, candidates: Iterable[int]) -> list[Span]:
        spans: list[Span] = []
        for start in candidates:
            end = start + self._match_length(data, start)
            if end == start:
                continue
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
        return spans

    def _match_length(self, data: bytes, start: int) -> int:
        """The length of the longest pattern in `data` at `start`; 0 for none."""
        low, high, longest = self._prefixes[data[start : start + MIN_BYTES]]
        number = bisect_right(self._sorted, data[start : start + longest], low, high) - 1
        while number >= low:
            pattern = self._sorted[number]
            if data.startswith(pattern, start):
                return len(pattern)
            number = self._shorter[number]
        return 0

    def _may_continue(self, data: bytes, start: int) -> bool:
        """Whether all of `data` from `start` on is the start of a longer pattern."""
        low, high, longest = self._prefixes[data[start : start + MIN_BYTES]]
        return len(data) - start < longest and self._is_start(data[start:], low, high)

    def _short_tail(self, data: bytes) -> int:
        """The offset of the end of the last line that starts a pattern but has fewer than `MIN_BYTES` bytes.

        The length of `data` when there is none.
        """
        size = len(data)
        earliest = max(size - MIN_BYTES + 1, data.rfind(b"\n", max(size - MIN_BYTES, 0)) + 1, 0)
        for start in range(earliest, size):
            if self._is_start(data[start:], 0, len(self._sorted)):
                return start
        return size

    def _is_start(self, tail: bytes, low: int, high: int) -> bool:
        number = bisect_right(self._sorted, tail, low, high)
        return number < high and self._sorted[number].startswith(tail)


def _longest_proper_prefixes(ordered: list[bytes]) -> list[int]:
    """For each pattern the index of the longest other pattern that it starts with; -1 for none."""
    prefixes: list[int] = []
    stack: list[int] = []
    for number, pattern in enumerate(ordered):
        while stack and not pattern.startswith(ordered[stack[-1]]):
            stack.pop()
        prefixes.append(stack[-1] if stack else -1)
        stack.append(number)
    return prefixes


def _prefixes(ordered: list[bytes]) -> dict[bytes, tuple[int, int, int]]:
    """For each prefix of patterns: where its patterns begin and end in `ordered`, and the longest length."""
    prefixes: dict[bytes, tuple[int, int, int]] = {}
    for number, pattern in enumerate(ordered):
        low, _, longest = prefixes.get(pattern[:MIN_BYTES], (number, number, 0))
        prefixes[pattern[:MIN_BYTES]] = (low, number + 1, max(longest, len(pattern)))
    return prefixes
