"""Functions that wait in greenlets on an event loop's thread."""

from __future__ import annotations

import asyncio
import gc

from greenlet import greenlet

from gusset.vault.greenlets import GreenletPool, wait


def test_a_burst_of_calls_leaves_no_more_greenlets_than_a_pool_keeps() -> None:
    async def burst(pool: GreenletPool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[int] = loop.create_future()
        results: list[int] = []
        for _ in range(500):
            pool.start(wait, ready, on_done=results.append)
        ready.set_result(7)
        while len(results) < 500:
            await asyncio.sleep(0)
        assert results == [7] * 500

    async def bursts() -> int:
        pool = GreenletPool()
        before = suspended_greenlets()  # other tests may have left some
        for _ in range(3):
            await burst(pool)
        return suspended_greenlets() - before

    assert 0 < asyncio.run(bursts()) <= 64


def suspended_greenlets() -> int:
    gc.collect()
    found = [each for each in gc.get_objects() if isinstance(each, greenlet)]
    return sum(bool(each) and each.parent is not None for each in found)  # a thread's own has no parent
