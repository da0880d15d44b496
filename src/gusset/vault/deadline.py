"""The time by which the request that is handled now must end, for everything that waits for a database.

A request waits several times: for a connection, for its turn, for responses, for a commit. If each
wait had only a limit of its own, they would add up. `ending_within` is called once, where the request
arrives, and `within` wherever something waits. A thread or greenlet that is started meanwhile calls
`ending_by` with the `current` deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def ending_by(deadline: float | None) -> Iterator[None]:
    """Let all waits in this context end by the monotonic time `deadline`, if that is not None."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def ending_within(seconds: float | None) -> Iterator[None]:
    """`ending_by`, with a deadline in so many seconds."""
    with ending_by(None if seconds is None else time.monotonic() + seconds):
        yield


def call_within(seconds: float, call: Callable[[], T]) -> T:
    """Call a function with a deadline in so many seconds; for each request, so without a context manager."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        return call()
    finally:
        _deadline.reset(token)


def remove() -> None:
    """Let what follows in this context take any time, such as reading the whole log."""
    _deadline.set(None)


@contextmanager
def uncounted() -> Iterator[None]:
    """Postpone the deadline by what this takes: it is slow by itself, and does not wait for the database."""
    began = time.monotonic()
    try:
        yield
    finally:
        deadline = _deadline.get()
        if deadline is not None:
            _deadline.set(deadline + time.monotonic() - began)


def current() -> float | None:
    """The deadline of this context, by the monotonic clock; None if it has none."""
    return _deadline.get()


def within(seconds: float) -> float:
    """The monotonic time in so many seconds, or the deadline if that is earlier."""
    latest, deadline = time.monotonic() + seconds, _deadline.get()
    return latest if deadline is None else min(latest, deadline)
