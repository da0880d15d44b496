"""Finds values of secrets in data, in all forms that the masker knows, and names the secrets.

Parts of values (see `secrets/fragments.py`) are not searched for: an image has
gigabytes of other text, in which a few bytes of a value can occur by chance.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gusset.secrets.hits import Label
from gusset.secrets.pattern_index import PatternIndex
from gusset.secrets.patterns import maskable, parts_of, patterns_of
from gusset.secrets.value import MIN_MASKED, SecretValue

_MAX_CACHED = 4_096  # bytes of a text
_LONG_ENOUGH = 12  # bytes, for a word to be a hit
_WORD_OR_NUMBER = re.compile(rb"[A-Za-z]+|[0-9]+")
_WORDS = re.compile(rb"(?:(?:[A-Za-z]{1,20}|v?[0-9]{1,4})(?![A-Za-z0-9])|[^A-Za-z0-9\x80-\xff]++)*+")
_PUBLIC_URL = re.compile(rb"\s*[a-z]+://[^\s@?#]*")
_LINE_BREAK = re.compile(rb"[\r\n]+")
_ANY_LABEL = Label("", "")  # which secret it is follows from the text that was found


@dataclass(frozen=True, slots=True)
class Found:
    """A secret whose value is in a text. `is_weak`: it is so ordinary there that it may be by chance."""

    secret: str
    form: str
    is_weak: bool


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A range of data that values cover: its offsets, and all secrets that are in it."""

    start: int
    end: int
    found: Sequence[Found]


@dataclass(frozen=True, slots=True)
class _Patterns:
    """What is searched for the sake of one secret; pattern -> form."""

    secret: str
    strong: Mapping[bytes, str]
    weak: Mapping[bytes, str]


class ValueSearch:
    """Searches for the values of secrets, each with all its versions. Immutable, for any number of threads.

    `names` are the secrets that are searched for; `ignored` those of which no value can be,
    because it is shorter than eight bytes, white space, or one character repeated.
    """

    def __init__(self, values: Mapping[str, Collection[SecretValue]]) -> None:
        patterns = [_patterns(name, values[name]) for name in sorted(values)]
        self._patterns = [each for each in patterns if each.strong or each.weak]
        self.names = tuple(each.secret for each in self._patterns)
        self.ignored = tuple(each.secret for each in patterns if not (each.strong or each.weak))
        wanted = {pattern for each in self._patterns for pattern in (*each.strong, *each.weak)}
        self._index = PatternIndex(dict.fromkeys(wanted, _ANY_LABEL), {})
        self._cached_secrets_in = lru_cache(1024)(self._secrets_in)

    def find(self, data: bytes) -> list[Occurrence]:
        """All occurrences in `data`."""
        return self._occurrences(data, self._index.spans(data), len(data))

    def find_and_cut(self, data: bytes) -> tuple[list[Occurrence], int]:
        """The occurrences in a piece of a stream, and the offset from which on to search again with the next.

        What is found from that offset on is left out.
        """
        spans, cut = self._index.spans_and_cut(data)
        # The masker lets the start of a pattern pass at the end of a line; this does not.
        cut = min(cut, max(len(data) - MIN_MASKED + 1, 0))
        return self._occurrences(data, spans, cut), cut

    def _occurrences(
        self, data: bytes, spans: Iterable[tuple[int, int, object]], end: int
    ) -> list[Occurrence]:
        occurrences = []
        for first, last, _ in spans:
            if first >= end:
                break
            text = data[first:last]
            look_up = self._cached_secrets_in if len(text) <= _MAX_CACHED else self._secrets_in
            occurrences.append(Occurrence(first, last, look_up(text)))
        return occurrences

    def _secrets_in(self, text: bytes) -> tuple[Found, ...]:
        """All secrets of which a pattern is in `text`: several can share a value, or one contain another."""
        found = []
        for each in self._patterns:
            for patterns, is_weak in ((each.strong, False), (each.weak, True)):
                form = next((form for pattern, form in patterns.items() if pattern in text), None)
                if form is not None:
                    found.append(Found(each.secret, form, is_weak))
                    break
        return tuple(found)


def _patterns(name: str, values: Iterable[SecretValue]) -> _Patterns:
    strong: dict[bytes, str] = {}
    weak: dict[bytes, str] = {}
    for value in values:
        revealed = value.reveal()
        if _without_run(revealed) is None:
            continue
        ordinary = {pattern for text in _ordinary_texts(revealed) for pattern in patterns_of(text)}
        for pattern, form in patterns_of(revealed).items():
            if (wanted := _without_run(pattern)) is not None:
                (weak if pattern in ordinary else strong).setdefault(wanted, form)
    return _Patterns(name, strong, weak)


def _without_run(pattern: bytes) -> bytes | None:
    """The pattern, or what follows a character that is repeated at its beginning; None if that is too short.

    Long runs of zeros, dashes or blanks are in many files. Each of their bytes would be compared.
    """
    length = len(pattern) - len(pattern.lstrip(pattern[:1]))
    wanted = pattern[length - 1 :] if length >= MIN_MASKED else pattern
    return wanted if maskable(wanted) else None


def _ordinary_texts(value: bytes) -> list[bytes]:
    """The value, its lines, and the parts that are searched for, as far as other files may well have them."""
    lines = [line for line in _LINE_BREAK.split(value) if line.strip() != value.strip()]
    parts = [part for part in parts_of(value) if part.strip() != value.strip()]
    is_json = value.lstrip().startswith((b"{", b"["))  # otherwise the parts are passwords in URLs
    short = [text for text in (value, *(() if is_json else parts)) if _is_short_and_plain(text.strip())]
    return [*short, *(text for text in (*lines, *(parts if is_json else ())) if is_ordinary(text))]


def _is_short_and_plain(text: bytes) -> bool:
    return len(text) < _LONG_ENOUGH and bool(_WORD_OR_NUMBER.fullmatch(text))


def is_ordinary(text: bytes) -> bool:
    """Whether a line or a string within a value is made of words and short numbers, or an address."""
    return bool(_WORDS.fullmatch(text) or _PUBLIC_URL.fullmatch(text))
