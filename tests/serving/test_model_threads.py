"""How calls reach the model's threads and their results the loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial
from random import Random
from time import sleep

import pytest

from gusset.serving.inference.model_threads import ModelThreads
from tests.serving.conftest import eventually

COUNT = 5
COUNTED = "counted"  # the name of the threads that `Pipes` looks at


class Pipes:
    """What goes through the pipes between the loop and its threads."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._loop = threading.get_ident()
        self._read, self._write = os.read, os.write
        self._waits: list[int] = []  # the reads that threads have begun
        self.to_threads: list[int] = []  # bytes of each write
        self.to_loop: list[int] = []
        patch.setattr(os, "read", self.read)
        patch.setattr(os, "write", self.write)

    def read(self, descriptor: int, size: int) -> bytes:
        if _is_counted():
            self._waits.append(size)
        return self._read(descriptor, size)

    def write(self, descriptor: int, data: bytes) -> int:
        if threading.get_ident() == self._loop:
            self.to_threads.append(len(data))
        elif _is_counted():
            self.to_loop.append(len(data))
        return self._write(descriptor, data)

    def wait_for_idle_threads(self) -> None:
        """Block the loop until each thread waits for a byte again, as it did at first."""
        eventually(lambda: len(self._waits) == COUNT + sum(self.to_threads), "all threads are idle")


def _is_counted() -> bool:
    """Whether this is one of the model's threads, and not one that another test has left."""
    return threading.current_thread().name.startswith(COUNTED)


def test_calls_start_in_the_order_in_which_they_were_put_however_many_arrive_at_once() -> None:
    async def scenario() -> None:
        threads = ModelThreads(asyncio.get_running_loop(), 1, "model")
        started: list[int] = []
        numbers = iter(range(1000))
        for burst in (1, 1, 5, 1, 2, 1, 1, 30, 1):
            ended = [
                asyncio.ensure_future(threads.run(partial(started.append, next(numbers))))
                for _ in range(burst)
            ]
            await asyncio.sleep(0)
            ended += [asyncio.ensure_future(threads.run(partial(started.append, next(numbers))))]
            await asyncio.gather(*ended)
        assert started == sorted(started)
        assert len(started) == next(numbers)

    asyncio.run(scenario())


def test_calls_that_no_thread_has_started_are_counted_as_waiting_from_when_they_are_put() -> None:
    async def scenario() -> None:
        threads = ModelThreads(asyncio.get_running_loop(), 1, "model")
        begun, may_end = threading.Event(), threading.Event()
        delivered: list[str] = []

        def block() -> Callable[[], object]:
            begun.set()
            may_end.wait(10)
            return partial(delivered.append, "block")

        threads.put(block)
        assert begun.wait(10)
        for number in range(3):
            threads.put(lambda number=number: partial(delivered.append, str(number)))  # type: ignore[misc]
            assert threads.waiting == number + 1
        await asyncio.sleep(0)
        assert threads.waiting == 3
        may_end.set()
        async with asyncio.timeout(10):
            while len(delivered) < 4:
                await asyncio.sleep(0.01)
        assert delivered == ["block", "0", "1", "2"]
        assert threads.waiting == 0

    asyncio.run(scenario())


def test_no_call_is_left_behind_when_threads_run_out_of_calls_and_get_more() -> None:
    """Threads that are about to wait, and calls that are put meanwhile, do not miss each other."""

    async def scenario() -> None:
        threads = ModelThreads(asyncio.get_running_loop(), 4, "model")
        random = Random(7)
        async with asyncio.timeout(60):
            for _ in range(1500):
                burst = random.choice((1, 1, 2, 3, 5, 9))
                ends = await asyncio.gather(
                    *(threads.run(partial(sleep, random.choice((0, 0, 0.0001)))) for _ in range(burst))
                )
                assert len(ends) == burst
        assert threads.waiting == 0

    asyncio.run(scenario())


def test_calls_that_arrive_together_wake_their_threads_at_once_and_their_results_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One write for all calls of a turn of the loop, and one for all results that are ready until it looks."""

    async def scenario() -> None:
        pipes = Pipes(monkeypatch)
        threads = ModelThreads(asyncio.get_running_loop(), COUNT, COUNTED)
        delivered: list[None] = []
        for is_first in (True, False, False):
            calls, results = len(pipes.to_threads), len(pipes.to_loop)
            for _ in range(COUNT):
                threads.put(lambda: partial(delivered.append, None))
            await asyncio.sleep(0)
            pipes.wait_for_idle_threads()
            assert threads.waiting == 0
            if not is_first:  # the threads were there
                assert pipes.to_threads[calls:] == [COUNT]
                assert pipes.to_loop[results:] == [1]
            while len(delivered) < COUNT:
                await asyncio.sleep(0)
            delivered.clear()

    asyncio.run(scenario())


def test_where_no_more_threads_can_be_started_calls_wait_for_those_that_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As at a limit of a container's processes. One thread serves all; with none, a call fails at once."""

    async def scenario() -> None:
        threads = ModelThreads(asyncio.get_running_loop(), 64, "model")
        start = threading.Thread.start

        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await threads.run(lambda: 0)
        monkeypatch.setattr(threading.Thread, "start", start)
        assert await threads.run(lambda: 1) == 1
        monkeypatch.setattr(threading.Thread, "start", refuse)
        async with asyncio.timeout(10):
            for _ in range(3):
                calls = [threads.run(partial(int, number)) for number in range(5)]
                assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]
                assert await threads.run(lambda: 6) == 6
            assert [record.getMessage() for record in caplog.records] == [
                "The system gives no more threads (can't start new thread): calls share 1."
            ]
            monkeypatch.setattr(threading.Thread, "start", start)
            both = threading.Barrier(2, timeout=10)
            await asyncio.gather(threads.run(both.wait), threads.run(both.wait))

    asyncio.run(scenario())
