"""The search for strings: the automaton and hyperscan find the same, and one replaces the other unnoticed."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import hyperscan
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gusset.secrets import string_search
from gusset.secrets.string_search import SIZE, StringSearch

THREAD = "gusset-hyperscan"


def plain(strings: list[bytes], data: bytes) -> list[int]:
    """All offsets of the strings."""
    return [at for at in range(len(data)) if data[at : at + SIZE] in strings]


def found(search: StringSearch, strings: list[bytes], data: bytes) -> list[int]:
    """The offsets of strings within the matches that the search finds."""
    matches = [(start, end) for _, start, end in search.find(data)]
    assert matches == sorted(set(matches))
    assert all(data[start:end] in strings for start, end in matches)
    offsets = {offset for start, end in matches for offset in range(start, end)}
    return [at for at in sorted(offsets) if data[at : at + SIZE] in strings]


def compiled(strings: list[bytes]) -> StringSearch:
    search = StringSearch(strings)
    assert search.compile()
    return search


def wait_for_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


def random_strings(count: int) -> list[bytes]:
    rng = random.Random(7)
    return list({rng.randbytes(SIZE) for _ in range(count)})


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little data make compiling worth it."""
    monkeypatch.setattr(string_search, "_WORTH", 100)
    monkeypatch.setattr(string_search, "_WORTH_PER_STRING", 0)
    monkeypatch.setattr(string_search, "_FEW", 1)
    yield
    wait_for_thread()


few_bytes = st.lists(st.sampled_from(b"ab\0\n\\.\xff"), min_size=SIZE, max_size=SIZE).map(bytes)


@settings(max_examples=100, deadline=None)
@given(st.lists(few_bytes, min_size=1, max_size=8, unique=True), st.data())
def test_both_searches_find_all_strings(strings: list[bytes], data: st.DataObject) -> None:
    """As a plain search does: strings that overlap, with zero bytes and bytes that are special in expressions."""
    some = st.one_of(st.sampled_from(strings), st.sampled_from(strings).map(lambda s: s[:5]), few_bytes)
    text = b"".join(data.draw(st.lists(some, max_size=8)))
    expected = plain(strings, text)
    assert found(StringSearch(strings), strings, text) == expected
    assert found(compiled(strings), strings, text) == expected


def test_several_databases_find_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many strings are spread over several databases."""
    monkeypatch.setattr(string_search, "_DATABASE_SIZE", 3)
    strings = random_strings(20)
    search = compiled(strings)
    text = b"-".join(strings) + strings[3][2:] + strings[4]
    assert found(search, strings, text) == plain(strings, text)


def test_long_data_are_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyperscan counts bytes in 32 bits. Strings across the edge of two pieces are found, once."""
    monkeypatch.setattr(string_search, "_LARGEST", 20)
    strings = [b"abcdefgh", b"bcdefghi"]
    search = compiled(strings)
    for shift in range(30):
        text = b"x" * shift + b"abcdefghi" * 9
        assert [start for _, start, _ in search.find(text)] == plain(strings, text)


def test_hyperscan_replaces_the_automaton_when_it_is_worth_it(soon: None) -> None:
    """A thread compiles after enough data, once; the calls meanwhile and afterwards find the same."""
    strings = random_strings(50)
    search, text = StringSearch(strings), b"-" * 60 + strings[7]
    first = search.find
    [(number, start, end)] = first(text)
    assert (strings[number], start, end) == (strings[7], 60, 68), "the automaton knows which"
    assert THREAD not in [thread.name for thread in threading.enumerate()], "too little data"
    assert [match[1:] for match in search.find(text)] == [(60, 68)]
    wait_for_thread()
    assert search.find(text) == [(0, 60, 68)]
    assert first(text) == [(7, 60, 68)], "who looked the function up before can still call it"
    assert THREAD not in [thread.name for thread in threading.enumerate()]


def test_without_hyperscan_the_automaton_remains(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra, so nothing is said when it is not installed."""
    monkeypatch.setitem(sys.modules, "hyperscan", None)
    strings = random_strings(50)
    search, text = StringSearch(strings), b"-" * 200 + strings[7]
    for _ in range(3):
        assert found(search, strings, text) == [200]
        wait_for_thread()
    assert not search.compile()
    assert found(search, strings, text) == [200]


def test_where_hyperscan_does_not_work_the_automaton_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs instructions that old processors do not have, and memory."""

    class Unsupported:
        def compile(self, expressions: list[bytes]) -> None:
            raise hyperscan.ArchitectureError("error code -11")

    monkeypatch.setattr(hyperscan, "Database", Unsupported)
    search = StringSearch([b"abcdefgh"])
    assert not search.compile()
    assert search.find(b"-abcdefgh") == [(0, 1, 9)]


def test_a_thread_that_cannot_be_started_changes_nothing(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of a process, or at a limit of threads."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    search = StringSearch([b"abcdefgh"])
    for _ in range(3):
        assert search.find(b"-" * 200 + b"abcdefgh") == [(0, 200, 208)]


def test_too_many_strings_stay_with_the_automaton(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One search in many databases would be slower than with the automaton."""
    monkeypatch.setattr(string_search, "_DATABASE_SIZE", 1)
    strings = random_strings(9)
    search = StringSearch(strings)
    automaton = search.find
    assert found(search, strings, b"-" * 200 + strings[0]) == [200]
    wait_for_thread()
    assert search.find == automaton


def test_threads_search_at_the_same_time() -> None:
    """Each search has memory of its own while it runs."""
    strings = random_strings(200)
    search = compiled(strings)
    texts = [b"-" * number + strings[number] * 50 for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda text: found(search, strings, text), texts * 5)
        for text, offsets in zip(texts * 5, results, strict=True):
            assert offsets == plain(strings, text)


MEMORY = """
from pathlib import Path
from gusset.portable import return_freed_memory
from tests.secrets.test_string_search import StringSearch, compiled, random_strings
def memory(name):
    return int(Path("/proc/self/status").read_text().partition(name)[2].split()[0])
compiled(random_strings(100))  # imports
search = StringSearch(random_strings(44_000))
return_freed_memory()
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS:")
for number in range(3):
    search.compile()
    print(memory("VmHWM:") - before, memory("VmRSS:") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_compiling_takes_little_memory_and_gives_it_back() -> None:
    """For as many strings as 1,000 secrets have: up to 32 MiB until it is done, and 16 MiB afterwards."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        peak, kept = (int(word) / 1024 for word in line.split())
        assert peak < 40, done.stdout  # from the second time on with the databases before
        assert kept < 16, done.stdout
