"""Finds secrets' values, in every form that they commonly take, and puts `***` in their place."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from gusset.secrets.value import MASK, SecretValue

MIN_BYTES = 8

_MASK = MASK.encode()


def maskable(value: SecretValue) -> bool:
    """Whether `value` is long enough to be masked; shorter ones would mask innocent text."""
    return len(value) >= MIN_BYTES


class Masker:
    """Masks the values that it was told of, old ones too. Safe to use from many threads."""

    def __init__(self, values: Iterable[SecretValue] = ()) -> None:
        self._learning = threading.Lock()
        self._known: frozenset[SecretValue] = frozenset()
        self._index = _Index(())
        self.learn(values)

    def learn(self, values: Iterable[SecretValue]) -> None:
        """Mask these values too, from the next call on; values known before stay masked."""
        with self._learning:
            known = self._known | {value for value in values if maskable(value)}
            if known != self._known:
                self._index = _Index({value.reveal() for value in known})
                self._known = known

    def mask(self, data: bytes) -> bytes:
        """`data` with `***` for each form of a value; `data` itself when there is none."""
        return self._index.mask(data)

    def mask_text(self, text: str) -> str:
        """The same for text, as of tracebacks and error bodies."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self._index.mask(data)
        return text if masked is data else masked.decode("utf-8", "surrogatepass")

    def stream(self) -> MaskingStream:
        """A new `MaskingStream` that masks what this masker knows, now and later."""
        return MaskingStream(self)


class MaskingStream:
    """Masks a stream of bytes that arrives in pieces of any size."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._held = b""

    @property
    def holding(self) -> bool:
        """Whether some bytes are held back, since they may begin a value."""
        return bool(self._held)

    def feed(self, data: bytes) -> bytes:
        """What can leave now, masked."""
        index = self._masker._index
        data = self._held + data if self._held else data
        cut = index.held_from(data)
        self._held = data[cut:]
        return index.mask(data[:cut] if self._held else data)

    def flush(self) -> bytes:
        """What was held back, masked: for the end of the stream, or after 200 ms of silence."""
        data, self._held = self._held, b""
        return self._masker.mask(data)


class _Index:
    def __init__(self, values: Iterable[bytes]) -> None:
        self._needles = sorted(values)
        self._longest = max(map(len, self._needles), default=0)
        self._search = BytesAhoCorasick(self._needles, MatchKind.Standard, Implementation.ContiguousNFA)

    def mask(self, data: bytes) -> bytes:
        found = self._search.find_matches_as_indexes(data, overlapping=True)
        if not found:
            return data
        parts: list[bytes] = []
        end = 0
        for _, start, stop in sorted(found, key=lambda match: match[1:]):
            if start >= end:
                parts += (data[end:start], _MASK)
            end = max(end, stop)
        return b"".join((*parts, data[end:]))

    def held_from(self, data: bytes) -> int:
        for start in range(max(data.rfind(b"\n") + 1, len(data) - self._longest + 1), len(data)):
            tail = data[start:]
            place = bisect_left(self._needles, tail)
            if place < len(self._needles) and self._needles[place].startswith(tail):
                return start
        return len(data)
