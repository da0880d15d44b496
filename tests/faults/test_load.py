"""Many writers on several managers, while managers and the database are killed: no acknowledged write is lost."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import Cli
from tests.faults.conftest import Starter, number, put_in_turn
from tests.faults.load import Load, check_all_there
from tests.manager.conftest import Manager
from tests.manager.test_durable import started_by
from tests.manager.test_repeated_requests import KILLED_AFTER_COMMIT, START
from tests.postgres_server import PostgresServer
from tests.serving.conftest import eventually

WRITES = number("WRITES", 10)  # by each of 32 writers
KILLS = number("KILLS", 8)


@pytest.mark.slow
@pytest.mark.timeout(300 + WRITES)
def test_three_managers_with_32_writers_keep_one_chain(start: Starter, gusset: Cli) -> None:
    load = Load([start(name) for name in ("one", "two", "three")], 32, WRITES)
    with load.running():
        pass
    assert load.acknowledged == [WRITES] * 32
    assert load.failures.keys() <= {"unreachable"}  # a machine that is too slow for it says so
    check_all_there(load, gusset)


@pytest.mark.slow
@pytest.mark.timeout(300 + 10 * KILLS)
def test_kills_of_managers_and_of_the_database_lose_no_acknowledged_write(
    start: Starter, gusset: Cli, server: PostgresServer
) -> None:
    """`kill -9` at random moments; each write that was acknowledged was made once, the others not at all."""
    managers = [start(name) for name in ("one", "two", "three")]
    moments = random.Random(4711)
    load = Load(managers, 8)
    with load.running():
        for round_ in range(KILLS):
            time.sleep(moments.uniform(0.1, 0.6))
            if round_ % 4 == 3:
                server.stop(signal.SIGKILL)
                server.start()
            else:
                manager = managers[round_ % 4]
                manager.kill()
                manager.start()
            before = sum(load.acknowledged)
            eventually(lambda before=before: sum(load.acknowledged) > before, patience=30)  # type: ignore[misc]
    check_all_there(load, gusset)
    print(f"{KILLS} kills, {sum(load.acknowledged)} acknowledged writes, failures {dict(load.failures)}")


def test_a_write_that_a_killed_manager_had_made_is_not_made_again(start: Starter) -> None:
    """Killed between commit and response: the other manager knows it by its key."""
    first, second = start("one"), start("two")
    body, headers = {"name": "x", "value": "value"}, {"idempotency-key": "k"}
    assert first.stop() == 0
    killed = started_by(KILLED_AFTER_COMMIT + START, first)
    with killed, first.client() as one, pytest.raises(httpx.TransportError):
        one.post("/v1/secrets", json=body, headers=headers)
    with second.client() as two:
        again = two.post("/v1/secrets", json=body, headers=headers)
        assert (again.status_code, again.json()["version"]) == (200, 1)
        assert again.headers["idempotency-replayed"] == "true"
        assert len(two.get("/v1/secrets/x/versions").json()["versions"]) == 1


def test_conditional_writes_through_two_managers_lose_no_update(start: Starter) -> None:
    """Each of eight people adds one to what they have read, and reads again after a 412."""
    managers = [start("one"), start("two")]
    with managers[0].client() as client:
        client.post("/v1/secrets", json={"name": "count", "value": "v", "note": "0"})

    def add(number: int) -> None:
        with managers[number % 2].client() as client:
            while not _add_one(client):
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(16)))
    for manager in managers:
        assert _count(manager) == ("16", 17)


def _add_one(client: httpx.Client) -> bool:
    seen = client.get("/v1/secrets/count")
    if seen.status_code == 503:  # a slow machine
        return False
    body = {"name": "count", "value": "v", "note": str(int(seen.json()["note"]) + 1)}
    done = client.post("/v1/secrets", json=body, headers={"if-match": seen.headers["etag"]})
    if done.status_code == 503:
        assert done.json()["code"] == "unreachable"  # a slow machine: nothing was written
        return False
    assert done.status_code in (200, 412), done.text
    return done.status_code == 200


def _count(manager: Manager) -> tuple[str, int]:
    with manager.client() as client:
        found = client.get("/v1/secrets/count").json()
        return found["note"], found["version"]


def test_a_name_that_two_people_create_at_once_through_two_managers_is_one_secret(start: Starter) -> None:
    """Two spellings: one is created, the other one conflicts with it."""
    managers = [start("one"), start("two")]

    def create(pair: tuple[Manager, str]) -> httpx.Response:
        with pair[0].client() as client:
            return put_in_turn(client, pair[1])

    for round_ in range(10):
        names = [f"the-name-{round_}", f"the_name_{round_}"]
        with ThreadPoolExecutor(2) as pool:
            statuses = sorted(r.status_code for r in pool.map(create, zip(managers, names, strict=True)))
        assert statuses == [200, 409]
