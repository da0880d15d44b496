"""Finds the patterns of values, and parts of their fragments, in data.

`string_search.py` searches for strings of eight bytes: the heads of all patterns,
and the grams of all fragments. At a head, a binary search in the sorted patterns
finds the longest one there. At a gram, the part around it is compared with the
fragment.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from gusset.secrets.fragments import GRAM, MIN_PART, STRIDE, grams_of, last_run, without_last_run
from gusset.secrets.hits import Label
from gusset.secrets.patterns import LONG, common_length, repeated_bytes
from gusset.secrets.string_search import StringSearch
from gusset.secrets.value import MIN_MASKED

_MAX_POSITIONS: Final = 8  # of one gram: fragments that repeat themselves have it at many
_MAX_PREFIX: Final = STRIDE - 1  # bytes
# What a prefix is the prefix of, as bits.
_OF_PATTERN: Final = 1
_OF_GRAM: Final = 2
_BEFORE_GRAM: Final = 4
_NO_PATTERNS: Final = range(0)
_MAX_BEFORE: Final = 4_096  # grams; with more than that, any few bytes probably precede one


class Span(NamedTuple):
    """A part of the data to mask, and what it stands for."""

    start: int
    end: int
    labels: tuple[Label, ...]


class PatternIndex:
    """Finds what to mask in data. Immutable."""

    def __init__(self, patterns: Mapping[bytes, Label], fragments: Mapping[bytes, Label]) -> None:
        self.patterns = patterns
        self.fragments = fragments
        self._sorted = sorted(patterns)
        self._shorter = _longest_proper_prefixes(self._sorted)
        self._heads = _heads(self._sorted)
        self._texts = list(fragments)
        self._grams = _grams(self._texts)
        wanted = [*self._heads, *(gram for gram in self._grams if gram not in self._heads)]
        self.search = StringSearch(wanted)
        self._sorted_grams = sorted(self._grams)
        self._prefixes = _prefixes(self._heads, self._grams)
        self._holds_runs = len(self._grams) > _MAX_BEFORE
        if not self._holds_runs:
            _add_prefixes_before(self._prefixes, self._grams, self._texts)

    def spans(self, data: bytes) -> list[Span]:
        """The parts of `data` to mask, in order, merged where they overlap."""
        return self._find(data)[0]

    def spans_and_cut(self, data: bytes) -> tuple[list[Span], int]:
        """The same, and the offset from which to keep `data`: what starts there may continue."""
        spans, cut = self._find(data)
        if not self._heads or data.endswith(b"\n"):  # a complete line, as almost always
            return spans, cut
        return spans, min(cut, self._tail_cut(data))

    def continuing(self, prefix: bytes) -> range:
        """Which patterns, by their number, begin with `prefix` and are longer."""
        size = len(prefix)
        if size < MIN_MASKED or prefix[:MIN_MASKED] not in self._heads:
            return _NO_PATTERNS
        low, high, _ = self._heads[prefix[:MIN_MASKED]]
        first = bisect_right(self._sorted, prefix, low, high)
        return range(first, bisect_right(self._sorted, prefix, first, high, key=lambda each: each[:size]))

    def narrowed(self, continuing: range, size: int, more: bytes) -> range:
        """Those of `continuing`, of which `size` bytes were found, that match `more` next and are longer."""
        end = size + len(more)

        def following(pattern: bytes) -> bytes:
            return pattern[size:end]

        low = bisect_left(self._sorted, more, continuing.start, continuing.stop, key=following)
        high = bisect_right(self._sorted, more, low, continuing.stop, key=following)
        while low < high and len(self._sorted[low]) == end:
            low += 1
        return range(low, high)

    def _find(self, data: bytes) -> tuple[list[Span], int]:
        """What to mask, and from where on a pattern or a part may continue."""
        spans: list[Span] = []
        cut = len(data)
        found = self.search.find(data)
        if not found:
            return spans, cut
        unrepeated = 0  # before it, heads are within a run that is one span
        for offset in _offsets(found):
            key = data[offset : offset + MIN_MASKED]
            if key in self._heads and offset >= unrepeated:
                length, label = self._match(data, offset)
                if label is not None:
                    end, unrepeated = self._run_of_matches(data, offset, length)
                    _add(spans, offset, end, label)
                if offset < cut and self._may_continue(data, offset):
                    cut = offset
            if key in self._grams:
                cut = min(cut, self._add_parts(spans, data, offset))
        return spans, cut

    def _match(self, data: bytes, start: int) -> tuple[int, Label | None]:
        """The length of the longest pattern in `data` at `start`, and its label; None for no pattern."""
        low, high, longest = self._heads[data[start : start + MIN_MASKED]]
        number = bisect_right(self._sorted, data[start : start + longest], low, high) - 1
        while number >= low:
            pattern = self._sorted[number]
            if data.startswith(pattern, start):
                return len(pattern), self.patterns[pattern]
            number = self._shorter[number]
        return 0, None

    def _run_of_matches(self, data: bytes, start: int, length: int) -> tuple[int, int]:
        """The end of a match, and up to where the same pattern matches again and again, all in one span."""
        period = repeated_bytes(data[start : start + LONG]) if length == LONG else 0
        if not period:
            return start + length, 0
        times = max(0, common_length(data, start + period, data, start) + period - LONG) // period
        return start + times * period + LONG, start + times * period

    def _may_continue(self, data: bytes, start: int) -> bool:
        """Whether all of `data` from `start` on is a prefix of a longer pattern."""
        low, high, longest = self._heads[data[start : start + MIN_MASKED]]
        return len(data) - start < longest and _is_proper_prefix(data[start:], self._sorted, low, high)

    def _tail_cut(self, data: bytes) -> int:
        """From where on the end of `data` may be a prefix of a pattern or part; its length for none.

        Only shorter prefixes than a head or gram; the search finds the others. A pattern
        may begin in the last line only.
        """
        tail = data[1 - MIN_MASKED :]
        size, before = len(tail), len(data) - len(tail)
        run = len(without_last_run(tail))
        cut = max(run, size - _MAX_PREFIX) if self._holds_runs else size
        prefixes = self._prefixes
        for start in range(tail.rfind(b"\n") + 1, size):
            kinds = prefixes.get(tail[start : start + _MAX_PREFIX])
            if kinds is None:
                continue
            if kinds & _OF_GRAM and start >= run and _is_prefix(tail, start, self._sorted_grams):
                first = max(0, before + start - _MAX_PREFIX)  # a part may begin before its first gram
                return min(before + cut, max(first, before + run) if run else last_run(data, first))
            is_before_gram = kinds & _BEFORE_GRAM and start >= max(run, size - _MAX_PREFIX)
            if start < cut and (
                is_before_gram or (kinds & _OF_PATTERN and _is_prefix(tail, start, self._sorted))
            ):
                cut = start
        return before + cut

    # --- parts of fragments

    def _add_parts(self, spans: list[Span], data: bytes, offset: int) -> int:
        """Add the parts around the gram at `offset`. Returns from where on one may continue.

        That is the length of `data` for none. Only a few bytes around the gram are
        compared: what is more of a part has grams of its own.
        """
        size = cut = len(data)
        for number, position in self._grams[data[offset : offset + GRAM]]:
            text = self._texts[number]
            start = offset - _common_before(data, offset, text, position)
            end = offset + GRAM + _common_after(data, offset + GRAM, text, position + GRAM)
            if end - start >= MIN_PART:
                _add(spans, start, end, self.fragments[text])
            if end == size and position + end - offset < len(text):
                cut = min(cut, start)
        return cut


def _is_proper_prefix(data: bytes, ordered: Sequence[bytes], low: int = 0, high: int | None = None) -> bool:
    """Whether one of `ordered` begins with `data`, and is longer than it."""
    number = bisect_right(ordered, data, low, high)
    return number < (len(ordered) if high is None else high) and ordered[number].startswith(data)


def _offsets(found: Iterable[tuple[int, int, int]]) -> Iterator[int]:
    """All offsets at which a head or gram may be: each one within a match."""
    done = 0
    for _, start, end in found:
        yield from range(max(start, done), end)
        done = end


def _is_prefix(tail: bytes, start: int, ordered: Sequence[bytes]) -> bool:
    """Whether one of `ordered` begins with `tail[start:]`, as one does with its first `_MAX_PREFIX` bytes."""
    return len(tail) - start <= _MAX_PREFIX or _is_proper_prefix(tail[start:], ordered)


def _prefixes(heads: Iterable[bytes], grams: Iterable[bytes]) -> dict[bytes, int]:
    """What each prefix of up to `_MAX_PREFIX` bytes may be a prefix of."""
    prefixes: dict[bytes, int] = {}
    for strings, kind in ((heads, _OF_PATTERN), (grams, _OF_GRAM)):
        for string in strings:
            for size in range(1, _MAX_PREFIX + 1):
                prefixes[string[:size]] = prefixes.get(string[:size], 0) | kind
    return prefixes


def _add_prefixes_before(
    prefixes: dict[bytes, int], grams: Mapping[bytes, Iterable[tuple[int, int]]], texts: Sequence[bytes]
) -> None:
    """Add the beginnings of parts that end before the part's first gram begins."""
    for number, position in (each for positions in grams.values() for each in positions):
        for first in range(max(0, position - _MAX_PREFIX), position):
            for end in range(first + 1, position + 1):
                prefix = texts[number][first:end]
                prefixes[prefix] = prefixes.get(prefix, 0) | _BEFORE_GRAM


def _common_before(data: bytes, start: int, text: bytes, position: int) -> int:
    """How many bytes before `start` equal those of `text` before `position`; at most four."""
    most, length = min(STRIDE - 1, start, position), 0
    while length < most and data[start - length - 1] == text[position - length - 1]:
        length += 1
    return length


def _common_after(data: bytes, end: int, text: bytes, position: int) -> int:
    """How many bytes from `end` on equal those of `text` from `position` on; at most `MIN_PART`."""
    most, length = min(MIN_PART, len(data) - end, len(text) - position), 0
    while length < most and data[end + length] == text[position + length]:
        length += 1
    return length


def _add(spans: list[Span], start: int, end: int, label: Label) -> None:
    """Add a span; merge it with those before that it overlaps."""
    labels: tuple[Label, ...] = (label,)
    while spans and start < spans[-1].end:
        last = spans.pop()
        start, end = min(start, last.start), max(end, last.end)
        known = last.labels
        labels = known if any(label.secret == each.secret for each in known) else (*known, label)
        label = labels[-1]
    spans.append(Span(start, end, labels))


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


def _heads(ordered: list[bytes]) -> dict[bytes, tuple[int, int, int]]:
    """For each head of patterns: where its patterns begin and end in `ordered`, and the longest length."""
    heads: dict[bytes, tuple[int, int, int]] = {}
    for number, pattern in enumerate(ordered):
        low, _, longest = heads.get(pattern[:MIN_MASKED], (number, number, 0))
        heads[pattern[:MIN_MASKED]] = (low, number + 1, max(longest, len(pattern)))
    return heads


def _grams(texts: Iterable[bytes]) -> dict[bytes, tuple[tuple[int, int], ...]]:
    """For each gram: the numbers of the texts that have it, and where."""
    grams: dict[bytes, tuple[tuple[int, int], ...]] = {}
    for number, text in enumerate(texts):
        seen: set[bytes] = set()
        for position, gram in grams_of(text):
            compared = text[max(0, position - STRIDE + 1) : position + GRAM + MIN_PART]
            positions = grams.get(gram, ())
            if compared not in seen and len(positions) < _MAX_POSITIONS:
                seen.add(compared)
                grams[gram] = (*positions, (number, position))
    return grams
