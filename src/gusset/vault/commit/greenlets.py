"""Lets plain functions wait for what an event loop does, without a thread for each.

The vault's acts are plain functions that wait for a commit. On an event loop
`spawn` runs such a function in a greenlet; `wait`, deep inside it, hands an
awaitable out to the loop and goes on with its result.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class _Spawned(greenlet):  # type: ignore[misc]  # without types of its own
    """A greenlet whose parent is a coroutine of `spawn`."""


async def spawn(act: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `act` on this thread; whatever it gives to `wait` is awaited here."""
    child = _Spawned(act)
    found = child.switch(*args, **kwargs)
    while not child.dead:
        try:
            value = await found
        except BaseException:
            found = child.throw(*sys.exc_info())
        else:
            found = child.switch(value)
    result: T = found
    return result


def spawned() -> bool:
    """Whether the caller may `wait`."""
    return isinstance(getcurrent(), _Spawned)


def wait(awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`, in a function that `spawn` called."""
    parent = getcurrent().parent
    assert parent is not None  # noqa: S101  # see `spawned`
    result: T = parent.switch(awaitable)
    return result
