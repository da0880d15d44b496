"""No acknowledged write is lost: with many writers, a killed manager, a full disk."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.conftest import Cli
from tests.manager.conftest import ON_POSTGRES, Manager


def verify(gusset: Cli) -> None:
    gusset("audit", "verify")


@contextmanager
def started_by(code: str, manager: Manager) -> Iterator[None]:
    """A manager that `code` starts, which injects a fault, in place of the fixture's."""
    with manager.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(manager.port)], env=manager.gusset.environ, stderr=log
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                with manager.client() as client:
                    client.get("/healthz")
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def test_32_writers_on_one_secret_make_32_versions(manager: Manager, admin: httpx.Client) -> None:
    """Each with its audit record, in a valid chain."""
    ready = threading.Barrier(32)

    def write(number: int) -> int:
        with manager.client() as client:
            ready.wait()
            response = client.post("/v1/secrets", json={"name": "one", "value": f"value {number}"})
            assert response.status_code == 200, response.text
            version: int = response.json()["version"]
            return version

    with ThreadPoolExecutor(32) as pool:
        versions = list(pool.map(write, range(32)))

    assert sorted(versions) == list(range(1, 33))
    listed = admin.get("/v1/secrets/one/versions").json()["versions"]
    assert [v["version"] for v in listed] == list(range(1, 33))
    assert [v["state"] for v in listed] == ["older"] * 31 + ["current"]
    records = admin.get("/v1/audit", params={"target": "one", "limit": "100"}).json()["records"]
    assert sorted(r["details"]["version"] for r in records) == list(range(1, 33))
    assert admin.post("/v1/audit/verify").json()["problems"] == []


def test_concurrent_conditional_writes_lose_no_update(manager: Manager, admin: httpx.Client) -> None:
    """Each adds one to what it has read, and reads again after a 412."""
    admin.post("/v1/secrets", json={"name": "count", "value": "0", "note": "0"})

    def add(_: int) -> None:
        with manager.client() as client:
            while True:
                seen = client.get("/v1/secrets/count")
                body = {"name": "count", "value": "v", "note": str(int(seen.json()["note"]) + 1)}
                done = client.post("/v1/secrets", json=body, headers={"if-match": seen.headers["etag"]})
                if done.status_code == 200:
                    return
                assert done.status_code == 412, done.text

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    final = admin.get("/v1/secrets/count").json()
    assert (final["note"], final["version"]) == ("32", 33)


def test_a_killed_manager_loses_no_acknowledged_write(manager: Manager) -> None:
    """Ten times, at a random moment, while writers write as fast as they can."""
    acknowledged: dict[str, int] = {}
    lock = threading.Lock()

    def writer(number: int, stop: threading.Event) -> None:
        name, count = f"secret-{number}", 0
        with manager.client() as client:
            while not stop.is_set():
                try:
                    response = client.post("/v1/secrets", json={"name": name, "value": f"value {count}"})
                except httpx.TransportError:
                    return
                assert response.status_code == 200
                count += 1
                with lock:
                    acknowledged[name] = response.json()["version"]

    for _ in range(10):
        stop = threading.Event()
        threads = [threading.Thread(target=writer, args=(number, stop)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(random.uniform(0.05, 0.4))  # the kill comes at any moment
        manager.kill()
        stop.set()
        for thread in threads:
            thread.join()
        verify(manager.gusset)
        manager.start()
        with manager.client() as client:
            held = {s["name"]: s["version"] for s in client.get("/v1/secrets").json()["secrets"]}
        assert all(held.get(name, 0) >= version for name, version in acknowledged.items())
    assert len(acknowledged) == 4
    verify(manager.gusset)


@pytest.mark.skipif(ON_POSTGRES, reason="tests/faults fills the disk of PostgreSQL")
def test_a_full_disk_refuses_writes_and_loses_nothing(manager: Manager, admin: httpx.Client) -> None:
    """Reads go on, and so do writes when there is room again. SQLite's limit of pages simulates the disk."""
    admin.post("/v1/secrets", json={"name": "kept", "value": "value"})
    manager.stop()
    # max_page_count is set per connection, so the manager is started by code that adds it to all.
    code = (
        "import sys, gusset.vault.storage.sqlite as s; s._PRAGMAS = (*s._PRAGMAS, 'PRAGMA max_page_count=120');"
        "from gusset.cli.main import main; main(['manager', '--port', sys.argv[1]])"
    )
    with started_by(code, manager), manager.client() as client:
        for number in range(60):
            response = client.post("/v1/secrets", json={"name": f"big-{number}", "value": "v" * 20_000})
            if response.status_code != 200:
                break
        assert (response.status_code, response.json()["code"]) == (503, "host"), response.text
        assert "disk is full" in response.json()["message"]
        for refused in (response, client.get("/readyz")):
            assert refused.status_code == 503, refused.text
            assert str(manager.gusset.home) not in refused.text and "vault.db" not in refused.text
        names = [s["name"] for s in client.get("/v1/secrets").json()["secrets"]]
        assert "kept" in names and f"big-{number}" not in names
    manager.start()
    with manager.client() as client:
        assert client.post("/v1/secrets", json={"name": "after", "value": "value"}).status_code == 200
    verify(manager.gusset)


def test_writes_go_on_when_no_thread_can_be_started_for_the_witness_file(manager: Manager) -> None:
    """A checkpoint is lost, with a warning; neither writes nor deliveries wait for it."""
    manager.stop()
    code = (
        "import asyncio, sys\n"
        "to_thread = asyncio.to_thread\n"
        "async def failing(function, *arguments):\n"
        "    if function.__qualname__ == 'WitnessFile.add':\n"
        '        raise RuntimeError("can\'t start new thread")\n'
        "    return await to_thread(function, *arguments)\n"
        "asyncio.to_thread = failing\n"
        "from gusset.cli.main import main; main(['manager', '--port', sys.argv[1]])"
    )
    with started_by(code, manager), manager.client() as client:
        deadline = time.monotonic() + 20
        while manager.log.read_text().count("can't start new thread") < 2:
            response = client.post("/v1/secrets", json={"name": "one", "value": "value"})
            assert response.status_code == 200, response.text
            assert time.monotonic() < deadline
    manager.start()
    verify(manager.gusset)
