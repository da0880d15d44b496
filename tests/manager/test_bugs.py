"""Unexpected exceptions beside requests: what they end, and what the log has of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gusset.manager import housekeeping
from gusset.manager.executors import Executors
from gusset.manager.housekeeping import LeaseTimer
from gusset.vault import open_vault
from tests.vault.conftest import settings_in

VALUE = "s3cr3t-v4lue-in-a-message"


def test_what_is_done_beside_requests_goes_on_after_a_bug(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says where it was raised, without its message, which may hold a value."""
    monkeypatch.setattr(housekeeping, "RENEWALS_EVERY", 0.1)
    monkeypatch.setattr(housekeeping, "_AFTER_BUG", 0.01)
    calls = 0

    def write_uses() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError(VALUE)

    async def run() -> None:
        with open_vault(settings_in(home)) as vault:
            executors = Executors()
            timer = LeaseTimer(vault, executors, write_uses)
            timer.start()
            async with asyncio.timeout(20):
                while calls < 3:
                    await asyncio.sleep(0.01)
            timer.stop()
            executors.close()

    with caplog.at_level(logging.ERROR, "gusset.manager"):
        asyncio.run(run())
    assert "A bug in gusset: RuntimeError at test_bugs.py" in caplog.text
    assert VALUE not in caplog.text
