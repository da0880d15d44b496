"""The slots of predictions."""

from __future__ import annotations

import asyncio

from gusset.serving.inference.prediction_slots import PredictionSlots


async def _hold(slots: PredictionSlots, log: list[str], name: str, until: asyncio.Event) -> None:
    if not slots.take():
        await slots.wait()
    log.append(name)
    try:
        await until.wait()
    finally:
        slots.give()


def test_slots_are_given_in_order() -> None:
    """No more run than there are slots, and those that wait come in the order in which they came."""

    async def run() -> None:
        slots, log = PredictionSlots(2), list[str]()
        events = [asyncio.Event() for _ in range(5)]
        tasks = [asyncio.create_task(_hold(slots, log, str(i), event)) for i, event in enumerate(events)]
        await asyncio.sleep(0)
        assert (log, slots.waiting) == (["0", "1"], 3)
        events[1].set()
        while len(log) < 3:
            await asyncio.sleep(0)
        assert (log, slots.waiting, slots.take()) == (["0", "1", "2"], 2, False)
        for event in events:
            event.set()
        await asyncio.gather(*tasks)
        assert log == list("01234")
        assert [slots.take() for _ in range(3)] == [True, True, False]

    asyncio.run(run())


def test_a_waiter_that_is_cancelled_loses_no_slot() -> None:
    """Neither while it waits, nor just after it got one, nor when one is given back before it has noticed."""

    async def run() -> None:
        slots, log, end = PredictionSlots(1), list[str](), asyncio.Event()
        for moment in ("waiting", "given", "cancelled first"):
            assert slots.take()
            task = asyncio.create_task(_hold(slots, log, moment, end))
            await asyncio.sleep(0)
            if moment == "given":
                slots.give()
                task.cancel()
            elif moment == "cancelled first":
                task.cancel()
                slots.give()
            else:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                slots.give()
            await asyncio.gather(task, return_exceptions=True)
            assert (slots.waiting, log, task.cancelled()) == (0, [], True)
            assert slots.take()
            assert not slots.take()
            slots.give()

    asyncio.run(run())
