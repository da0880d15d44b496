"""The deadline of a request, and what waits by it."""

from __future__ import annotations

import asyncio
import threading
import time

from gusset.manager.executors import Executors
from gusset.vault import deadline
from gusset.vault.deadline import ending_by, ending_within, within
from gusset.vault.greenlets import GreenletPool
from gusset.vault.storage.semaphore import Semaphore


def test_a_wait_ends_by_its_own_limit_or_the_deadline_whatever_comes_first() -> None:
    began = time.monotonic()
    assert within(5.0) >= began + 5.0
    with ending_by(7.0):
        assert within(5.0) == 7.0
        with ending_by(None):
            assert within(5.0) > 7.0
        with deadline.uncounted():
            time.sleep(0.01)
        assert 7.01 <= within(5.0) < 100
        deadline.remove()
        assert within(5.0) >= began + 5.0
    assert deadline.current() is None


def test_the_deadline_follows_a_request_into_greenlets_and_threads() -> None:
    async def request() -> list[float | None]:
        executors = Executors(longest_queue=20)
        with ending_by(7.0):
            found = [
                await executors.run(deadline.current),
                await executors.run_slow(deadline.current),
                await executors.run_page(deadline.current),
            ]
        found.append(await executors.run_slow(deadline.current))
        executors.close()
        return found

    assert asyncio.run(request()) == [7.0, 7.0, 7.0, None]


def test_each_call_of_a_pool_has_a_deadline_of_its_own() -> None:
    async def calls() -> list[float | None]:
        pool, found = GreenletPool(5.0), list[float | None]()
        pool.start(deadline.remove, on_done=lambda _: None)
        pool.start(deadline.current, on_done=found.append)
        return found

    [found] = asyncio.run(calls())
    assert found is not None
    assert 4.0 < found - time.monotonic() <= 5.0


def test_a_semaphore_is_waited_for_until_the_deadline_only() -> None:
    semaphore = Semaphore(1)
    assert semaphore.acquire(0)
    began = time.monotonic()
    with ending_within(0.05):
        assert not semaphore.acquire(within(30.0) - time.monotonic())
    assert time.monotonic() - began < 10
    timer = threading.Timer(0.05, semaphore.release)
    timer.start()
    assert semaphore.acquire(30.0)  # the wait that timed out did not keep its place
    timer.join()
