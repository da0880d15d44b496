"""Truss's own API client works with a manager if only its address is replaced."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import leaks_in
from tests.examples.environments import TRUSS, Unavailable
from tests.manager.conftest import Manager

SCRIPT = Path(__file__).parent / "third_party.py"


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        TRUSS.make()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(f"no environment with truss: {error}")
    return TRUSS.python


def test_truss_own_client_works_with_the_manager(manager: Manager, python: Path) -> None:
    """It creates, replaces, lists and deletes secrets and creates a key; refusals are as it expects."""
    done = subprocess.run(
        [str(python), str(SCRIPT), manager.address],
        input=manager.key.encode(),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    results: dict[str, Any] = json.loads(done.stdout.partition(b"RESULT ")[2])
    assert results["base"] == manager.address
    assert {"id", "created_at", "name", "team_name"} <= results["made"].keys()
    assert (results["again"]["id"], results["again"]["created_at"]) == (
        results["made"]["id"],
        results["made"]["created_at"],
    )
    assert [s["name"] for s in results["listed"]["secrets"]] == ["hf_access_token"]
    assert results["team"]["team_name"] == "default"
    assert [s["name"] for s in results["team_listed"]["secrets"]] == ["db_password", "hf_access_token"]
    assert results["deleted"] == {"name": "db_password"}
    assert "api_key" in results["key"]
    assert [s["name"] for s in results["with_it"]["secrets"]] == ["hf_access_token"]
    assert (results["bad_key"], results["bad_name"]) == (401, 400)
    assert not leaks_in(done.stdout, b"first value of the token", b"second value of the token")
