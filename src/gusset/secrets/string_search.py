"""Searches data for many strings of eight bytes at once.

An Aho-Corasick automaton does it; its speed is nearly independent of the number
of strings. Where hyperscan is installed (`gusset[fast-masking]`), which is
three times as fast, it replaces the automaton once so much data was searched
that compiling its databases is worth the time. Both find the same.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from gusset.portable import return_freed_memory

SIZE: Final = 8  # bytes of each string

_DFA_SIZE = 5_000  # strings; up to here the faster automaton takes about ten megabytes at most
# Compiling takes up to 3 KB for each string until it is done, and a search with many databases is slow.
_DATABASE_SIZE = 12_288  # strings
_MAX_DATABASES = 5
_FEW = 100  # strings; with fewer the automaton is as fast
# Bytes to search before: compiling takes about 20 ms, and 15 µs for each string.
_WORTH = 1_000_000
_WORTH_PER_STRING = 1_000
_LARGEST: Final = 2**30  # bytes; hyperscan counts in 32 bits

# Of data: matches in ascending order, as (number of the string, or 0; start; end).
Search = Callable[[bytes], Sequence[tuple[int, int, int]]]


class StringSearch:
    """Finds where in data one of `strings` is, which are different and of `SIZE` bytes each. Thread-safe.

    `find` is a `Search`. Of matches that overlap it may leave out those that begin
    later, so a string begins anywhere in a match. It is replaced by a faster
    function while threads call it, so it is looked up for each call.
    """

    def __init__(self, strings: Sequence[bytes]) -> None:
        self._strings = strings
        self.find: Search = _automaton_search(strings) if strings else _nothing
        if _FEW <= len(strings) <= _DATABASE_SIZE * _MAX_DATABASES:
            self.find = self._until_worth_compiling(self.find)

    def compile(self) -> bool:
        """Use hyperscan from now on. Takes up to a second.

        Returns whether it is installed and supports this machine; otherwise nothing changes.
        """
        search = _hyperscan_search(self._strings) if self._strings else None
        if search:
            self.find = search
            return_freed_memory()  # else the process keeps what compiling took
        return search is not None

    def _until_worth_compiling(self, automaton: Search) -> Search:
        """A search with the automaton that has a thread compile when enough data were searched."""
        left = _WORTH + _WORTH_PER_STRING * len(self._strings)
        starting = threading.Lock()

        def find(data: bytes) -> Sequence[tuple[int, int, int]]:
            nonlocal left
            left -= len(data)
            if left < 0 and starting.acquire(blocking=False):
                self.find = automaton  # meanwhile, and if there is no hyperscan
                with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter is ending
                    threading.Thread(target=self.compile, name="gusset-hyperscan").start()
            return automaton(data)

        return find


def _automaton_search(strings: Sequence[bytes]) -> Search:
    kind = Implementation.DFA if len(strings) <= _DFA_SIZE else Implementation.ContiguousNFA
    search: Search = BytesAhoCorasick(strings, MatchKind.LeftmostLongest, kind).find_matches_as_indexes
    return search


def _nothing(data: bytes) -> Sequence[tuple[int, int, int]]:
    return ()


def _hyperscan_search(strings: Sequence[bytes]) -> Search | None:
    """A search with hyperscan; None where it is not installed, or does not support this machine."""
    try:
        hyperscan = importlib.import_module("hyperscan")  # an extra
        databases = [
            _compiled(hyperscan, strings[start : start + _DATABASE_SIZE])
            for start in range(0, len(strings), _DATABASE_SIZE)
        ]
    except Exception:  # whatever is wrong with it, such as a module of the model by this name
        return None
    # What a search works with, for as many as run at once. A list's methods are atomic.
    unused: list[list[tuple[Callable[..., None], Any]]] = []

    def find(data: bytes) -> Sequence[tuple[int, int, int]]:
        if len(data) > _LARGEST:
            return _find_in_pieces(find, data)
        try:
            scans = unused.pop()
        except IndexError:
            scans = [(database.scan, database.scratch.clone()) for database in databases]
        ends: list[int] = []
        for scan, scratch in scans:
            scan(data, _add_end, 0, ends, scratch)
        unused.append(scans)
        return [(0, end - SIZE, end) for end in sorted(ends)] if ends else ()

    return find


def _compiled(hyperscan: Any, strings: Sequence[bytes]) -> Any:
    """A database of these strings: as regular expressions, since literal ones would end at a zero byte.

    Each has a number of its own by default. With one number for all, compiling takes very long.
    """
    database = hyperscan.Database()
    database.compile(expressions=[b"".join(b"\\x%02x" % byte for byte in string) for string in strings])
    return database


def _add_end(number: int, start: int, end: int, flags: int, ends: list[int]) -> None:
    ends.append(end)


def _find_in_pieces(find: Search, data: bytes) -> list[tuple[int, int, int]]:
    step = _LARGEST - SIZE + 1
    pieces = ((offset, data[offset : offset + _LARGEST]) for offset in range(0, len(data), step))
    return [(0, offset + start, offset + end) for offset, piece in pieces for _, start, end in find(piece)]
