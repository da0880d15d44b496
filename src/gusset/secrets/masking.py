"""Finds secrets' values, in every form that they commonly take, and puts `***` in their place.

An Aho-Corasick automaton looks for the first eight bytes of all forms at once,
which keeps it small and its speed nearly independent of the number of secrets.
Where eight bytes fit, the sorted list of forms tells which is there, or begins
there and may go on in the next piece of a stream.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from gusset.secrets import forms
from gusset.secrets.forms import MIN_BYTES
from gusset.secrets.value import MASK, SecretValue

_MASK = MASK.encode()
_DFA_HEADS = 5_000  # up to here the faster automaton costs some ten megabytes at most

Span = tuple[int, int]


def maskable(value: SecretValue) -> bool:
    """Whether `value` is masked: it has at least 8 bytes, not all white space. Callers report the others."""
    return forms.maskable(value.reveal())


class Masker:
    """Masks the values that it was told of, old ones too. Safe to use from many threads."""

    def __init__(self, values: Iterable[SecretValue] = ()) -> None:
        self._learning = threading.Lock()
        self._known: frozenset[SecretValue] = frozenset()
        self._index = _Index(frozenset())
        self.learn(values)

    def learn(self, values: Iterable[SecretValue]) -> None:
        """Mask these values too, from the next call on; values known before stay masked.

        Values that are not `maskable` are passed over.
        """
        with self._learning:
            new = {value for value in values if maskable(value)} - self._known
            if new:
                self._known |= new
                self._index = _Index(self._index.forms.union(*(forms.forms(value.reveal()) for value in new)))

    def mask(self, data: bytes) -> bytes:
        """`data` with `***` for each form of a value; `data` itself when there is none."""
        index = self._index
        spans = index.spans(data)
        return _masked(data, spans, 0, len(data)) if spans else data

    def mask_text(self, text: str) -> str:
        """The same for text, as of tracebacks and error bodies."""
        try:
            data, errors = text.encode("utf-8", "surrogateescape"), "surrogateescape"
        except UnicodeEncodeError:  # lone surrogates, as JSON can bring them
            data, errors = text.encode("utf-8", "surrogatepass"), "replace"
        masked = self.mask(data)
        return text if masked is data else masked.decode("utf-8", errors)

    def stream(self) -> MaskingStream:
        """A new `MaskingStream` that masks what this masker knows, now and later."""
        return MaskingStream(self)


class MaskingStream:
    """Masks a stream of bytes that arrives in pieces of any size; for one thread.

    What leaves does not depend on where the pieces were cut: bytes that may
    begin a form of a value are held back until the next ones tell. A complete
    line leaves at once, unless its last eight bytes or more are the beginning
    of a form of several lines. The caller lets go, by `flush`, of what is still
    `holding` after a while of silence.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._buffer = b""
        self._left = 0  # how much of the buffer has left already: let go, or as part of a mask
        self._open = False  # whether it left as part of a mask, which then stands for more of the value too

    @property
    def holding(self) -> bool:
        """Whether some bytes are held back, since they may begin a value."""
        return len(self._buffer) > self._left

    def feed(self, data: bytes) -> bytes:
        """What can leave now, masked; `data` itself when all of it can and nothing is masked."""
        whole = self._buffer + data if self._buffer else data
        spans, cut = self._masker._index.spans_and_cut(whole)
        if not spans and cut == len(whole) and whole is data:
            return data
        covered = next((last for first, last in spans if first < cut < last), cut)
        out = self._leave(whole, spans, covered)
        self._buffer, self._left = whole[cut:], max(0, self._left - cut)
        return out

    def flush(self) -> bytes:
        """What was held back, masked: for the end of the stream, or after 200 ms of silence.

        The stream may go on after it. When what was let go turns out to have
        been the beginning of a value, the rest of the value is still masked.
        """
        spans = self._masker._index.spans(self._buffer)
        return self._leave(self._buffer, spans, len(self._buffer))

    def _leave(self, data: bytes, spans: Sequence[Span], end: int) -> bytes:
        """What of `data` has not left yet up to `end`, masked."""
        start = self._left
        if end <= start:
            return b""
        out = _masked(data, spans, start, end)
        if self._open and any(first < start < last for first, last in spans):
            out = out.removeprefix(_MASK)  # the mask that left before stands for this too
        self._left, self._open = end, any(first < end <= last for first, last in spans)
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
    """Where forms are in a piece of data. Never changes."""

    def __init__(self, all_forms: frozenset[bytes]) -> None:
        self.forms = all_forms
        self._sorted = sorted(all_forms)
        self._shorter = _longest_proper_prefixes(self._sorted)
        self._heads = _heads(self._sorted)
        self._search = BytesAhoCorasick(
            self._heads,
            MatchKind.LeftmostLongest,
            Implementation.DFA if len(self._heads) <= _DFA_HEADS else Implementation.ContiguousNFA,
        )

    def spans(self, data: bytes) -> list[Span]:
        """The parts of `data` to mask, in order, merged where forms overlap."""
        return self._merged(data, self._candidates(data))

    def spans_and_cut(self, data: bytes) -> tuple[list[Span], int]:
        """The same, and from where on `data` must be kept, since a form may begin there and go on."""
        candidates = self._candidates(data)
        spans = self._merged(data, candidates) if candidates else []
        cut = next((start for start in candidates if self._may_go_on(data, start)), None)
        return spans, self._short_tail(data) if cut is None else cut

    def _candidates(self, data: bytes) -> list[int]:
        """All places where the first bytes of a form are."""
        found = self._search.find_matches_as_indexes(data) if self._heads else ()
        if not found:
            return []
        heads = self._heads
        # The search skips places that overlap the one before: look at those one by one.
        return [
            place
            for _, start, end in found
            for place in range(start, end)
            if data[place : place + MIN_BYTES] in heads
        ]

    def _merged(self, data: bytes, candidates: Iterable[int]) -> list[Span]:
        spans: list[Span] = []
        for start in candidates:
            end = start + self._form_length(data, start)
            if end == start:
                continue
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
        return spans

    def _form_length(self, data: bytes, start: int) -> int:
        """The length of the longest form that is in `data` at `start`, 0 for none."""
        low, high, longest = self._heads[data[start : start + MIN_BYTES]]
        place = bisect_right(self._sorted, data[start : start + longest], low, high) - 1
        while place >= low:
            form = self._sorted[place]
            if data.startswith(form, start):
                return len(form)
            place = self._shorter[place]
        return 0

    def _may_go_on(self, data: bytes, start: int) -> bool:
        """Whether all of `data` from `start` on is the beginning of a longer form."""
        low, high, longest = self._heads[data[start : start + MIN_BYTES]]
        return len(data) - start < longest and self._begins(data[start:], low, high)

    def _short_tail(self, data: bytes) -> int:
        """Where the longest suffix of the last line begins that is too short for a head but begins a form."""
        size = len(data)
        earliest = max(size - MIN_BYTES + 1, data.rfind(b"\n", max(size - MIN_BYTES, 0)) + 1, 0)
        for start in range(earliest, size):
            if self._begins(data[start:], 0, len(self._sorted)):
                return start
        return size

    def _begins(self, tail: bytes, low: int, high: int) -> bool:
        place = bisect_right(self._sorted, tail, low, high)
        return place < high and self._sorted[place].startswith(tail)


def _longest_proper_prefixes(ordered: list[bytes]) -> list[int]:
    """For each form the place of the longest other form that it starts with, -1 for none."""
    places: list[int] = []
    open_forms: list[int] = []
    for place, form in enumerate(ordered):
        while open_forms and not form.startswith(ordered[open_forms[-1]]):
            open_forms.pop()
        places.append(open_forms[-1] if open_forms else -1)
        open_forms.append(place)
    return places


def _heads(ordered: list[bytes]) -> dict[bytes, tuple[int, int, int]]:
    """For the first bytes of forms: the slice of `ordered` that has them, and the longest's length."""
    heads: dict[bytes, tuple[int, int, int]] = {}
    for place, form in enumerate(ordered):
        low, _, longest = heads.get(form[:MIN_BYTES], (place, place, 0))
        heads[form[:MIN_BYTES]] = (low, place + 1, max(longest, len(form)))
    return heads
