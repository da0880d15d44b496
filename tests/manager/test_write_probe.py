"""The check behind `/readyz` whether the vault can be written, with a double of the vault and of time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gusset.manager import housekeeping
from gusset.manager.housekeeping import WriteProbe


def test_a_check_that_ends_as_another_one_begins_has_its_own_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request makes a check, and each result is old at once here."""
    monkeypatch.setattr(housekeeping, "PROBE_EVERY", -1.0)
    others: list[asyncio.Task[None]] = []

    class Executors:
        async def run(self, function: Callable[[], None]) -> None:
            function()
            if not others:  # begins after this has ended, and before the one that waits for it goes on
                begin = asyncio.get_running_loop().call_soon
                begin(lambda: others.append(asyncio.create_task(probe.check())))

    executors: Any = Executors()
    vault: Any = SimpleNamespace(check_writable=lambda: None)
    probe = WriteProbe(vault, executors)

    async def scenario() -> None:
        first: Awaitable[None] = probe.check()
        await first
        await others[0]

    asyncio.run(scenario())
    assert len(others) == 1
