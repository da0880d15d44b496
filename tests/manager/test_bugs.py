"""Unexpected exceptions: what they end, and what the log has of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gusset.manager import housekeeping
from gusset.manager.executors import Executors
from gusset.manager.housekeeping import LeaseTimer
from gusset.vault import open_vault
from tests.manager.conftest import Manager
from tests.manager.test_durable import started_by
from tests.serving.conftest import eventually
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
            executors = Executors(longest_queue=20)
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


def test_a_bug_before_a_request_is_handled_or_after_is_a_500_or_a_closed_connection(manager: Manager) -> None:
    """The log says where it was raised, without its message. Other requests are handled."""
    manager.stop()
    code = (
        "import sys\n"
        "from gusset.manager.api.router import Router\n"
        "from gusset.manager.metrics import Metrics\n"
        "find, count = Router.find, Metrics.count\n"
        "def failing_find(self, path, method):\n"
        f"    if path == '/v1/before': raise RuntimeError('{VALUE}')\n"
        "    return find(self, path, method)\n"
        "def failing_count(self, route, status, seconds):\n"
        f"    if route == '/v1/teams': raise LookupError('{VALUE}')\n"
        "    return count(self, route, status, seconds)\n"
        "Router.find, Metrics.count = failing_find, failing_count\n"
        "from gusset.cli.main import main; main(['manager', '--port', sys.argv[1]])\n"
    )
    with started_by(code, manager), manager.client() as client:
        response = client.get("/v1/before")
        assert (response.status_code, response.json()["code"]) == (500, "bug")
        assert client.get("/v1/teams").status_code == 200
        eventually(lambda: "LookupError" in manager.log.read_text(), "the second bug is logged")
        with manager.client() as another:  # the connection is closed by now, or about to be
            assert another.get("/v1/secrets").status_code == 200
        log = manager.log.read_text()
    manager.log.write_text("")  # the fixture looks for bugs there
    assert "A bug in gusset: RuntimeError at <string>" in log
    assert "A bug in gusset: LookupError at <string>" in log
    assert VALUE not in log
