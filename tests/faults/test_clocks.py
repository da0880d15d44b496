"""Managers whose machines have different clocks: PostgreSQL's decides what has expired."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from gusset.vault import open_vault
from tests.conftest import Cli
from tests.faults.clocks import clock_off_by, has_faketime
from tests.faults.conftest import Starter, put, soon
from tests.manager.conftest import ADMIN, PASSWORD, Manager, lease
from tests.manager.test_pages import Visitor
from tests.vault.conftest import settings_in

pytestmark = has_faketime


@pytest.fixture
def managers(start: Starter) -> Iterator[tuple[Manager, Manager]]:
    """One whose clock is five minutes ahead, and one whose clock is right."""
    yield start("ahead", **clock_off_by(300)), start("right")


def test_a_manager_that_is_ahead_records_the_databases_time(managers: tuple[Manager, Manager]) -> None:
    code = [sys.executable, "-c", "import time; print(time.time())"]
    its_time = subprocess.run(code, env=managers[0].gusset.environ, capture_output=True, check=True).stdout
    assert float(its_time) > time.time() + 200
    with managers[0].client() as ahead:
        put(ahead, "x")
        recorded = datetime.fromisoformat(ahead.get("/v1/secrets/x").json()["updated_at"])
    assert abs(recorded - datetime.now(UTC)) < timedelta(seconds=60)


def test_keys_expire_at_the_same_moment_on_both(managers: tuple[Manager, Manager]) -> None:
    """A key that lasts for six seconds is good on the manager that is ahead, and then on none."""
    ahead, right = managers
    expiry = (datetime.now(UTC) + timedelta(seconds=6)).isoformat()
    with right.client() as admin:
        made = admin.post(
            "/v1/api_keys", json={"name": "short", "scopes": ["secrets:read"], "expires_at": expiry}
        )
        assert made.status_code == 200, made.text
    with ahead.client(made.json()["api_key"]) as one, right.client(made.json()["api_key"]) as two:
        assert [client.get("/v1/secrets").status_code for client in (one, two)] == [200, 200]
        soon(lambda: [client.get("/v1/secrets").status_code for client in (one, two)] == [401, 401])


def test_a_replica_that_the_other_manager_serves_is_running(managers: tuple[Manager, Manager]) -> None:
    """In both directions: neither manager takes the other's replicas for lost."""
    with managers[1].client() as admin:
        put(admin, "x")
        token = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
    for mine, other in (managers, managers[::-1]):
        with mine.client(token) as client, other.client() as admin:
            replica = lease(client)
            assert replica.renew({"host": "h", "versions": {"x": 1}}).status_code == 200
            shown = admin.get("/v1/deployments").json()["deployments"][0]["replicas"]
            assert [each["live"] for each in shown if each["id"] == replica.id] == [True]


def test_a_session_of_one_manager_is_one_of_the_other(managers: tuple[Manager, Manager]) -> None:
    visitor = Visitor(managers[0])
    with visitor.http:
        assert visitor.sign_in(ADMIN, PASSWORD).status_code == 303
        assert visitor.http.get(f"{managers[1].address}/settings/secrets").status_code == 200


def test_both_count_as_alive(managers: tuple[Manager, Manager], gusset: Cli) -> None:
    """A rotation of the root key waits for each: it must not take one for dead."""
    settings = settings_in(gusset.home, database=gusset.environ["GUSSET_DATABASE"])
    with open_vault(settings) as vault:
        soon(lambda: len(vault.managers.alive()) == len(managers))
