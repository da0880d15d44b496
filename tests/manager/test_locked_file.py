"""An operator who has the vault's file locked holds up no request to a manager."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx
import pytest

from tests.conftest import seconds_since
from tests.manager.conftest import ON_POSTGRES, Manager
from tests.serving.conftest import eventually

pytestmark = pytest.mark.skipif(ON_POSTGRES, reason="PostgreSQL has locks of its own: see tests/faults")

LIMIT = 5.0  # seconds within which every request ends


@contextmanager
def locked(manager: Manager) -> Iterator[None]:
    """The file as a tool has it that has begun to write and does not go on."""
    with closing(sqlite3.connect(manager.gusset.home / "vault.db", isolation_level=None)) as operator:
        operator.execute("BEGIN IMMEDIATE")
        yield
        operator.execute("ROLLBACK")


def test_requests_end_in_time_while_an_operator_has_the_file_locked(
    manager: Manager, admin: httpx.Client
) -> None:
    """Writes are refused, and are not made later; those that come while others wait are no later. Reads go on."""
    write = {"name": "x", "value": "value"}
    admin.post("/v1/secrets", json=write).raise_for_status()

    def timed(number: int) -> httpx.Response:
        time.sleep(number * 0.2)  # they do not come at once, nor one after the other
        with manager.client() as client:
            began = time.monotonic()
            if number % 4 == 3:
                response = client.get("/readyz")
            elif number % 4 == 2:  # on a thread
                response = client.post("/v1/secrets:batch", json={"secrets": [write]})
            else:
                response = client.post("/v1/secrets", json=write)
            assert seconds_since(began) < LIMIT
            return response

    with locked(manager), ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(timed, range(16)))
        assert admin.get("/v1/secrets/x").json()["version"] == 1
    for response in responses:
        assert (response.status_code, response.headers.get("retry-after")) == (503, "1"), response.text
    assert {response.json()["code"] for response in responses if "code" in response.json()} == {"unreachable"}
    eventually(lambda: admin.post("/v1/secrets", json=write).status_code == 200)
    assert admin.get("/v1/secrets/x").json()["version"] == 2
