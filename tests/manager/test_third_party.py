"""A client that others wrote for this API, Truss's own, works with only the address replaced."""

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


def test_trusss_own_client_drives_the_api(manager: Manager, python: Path) -> None:
    """Create, replace, list, per team, delete, a key; a bad key and a bad name are refused as it expects."""
    done = subprocess.run(
        [str(python), str(SCRIPT), manager.address],
        input=manager.key.encode(),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    said: dict[str, Any] = json.loads(done.stdout.partition(b"RESULT ")[2])
    assert said["base"] == manager.address
    assert {"id", "created_at", "name", "team_name"} <= said["made"].keys()
    assert (said["again"]["id"], said["again"]["created_at"]) == (
        said["made"]["id"],
        said["made"]["created_at"],
    )
    assert [s["name"] for s in said["listed"]["secrets"]] == ["hf_access_token"]
    assert said["team"]["team_name"] == "default"
    assert [s["name"] for s in said["team_listed"]["secrets"]] == ["db_password", "hf_access_token"]
    assert said["deleted"] == {"name": "db_password"}
    assert "api_key" in said["key"]
    assert [s["name"] for s in said["with_it"]["secrets"]] == ["hf_access_token"]
    assert (said["bad_key"], said["bad_name"]) == (401, 400)
    assert not leaks_in(done.stdout, b"first value of the token", b"second value of the token")
