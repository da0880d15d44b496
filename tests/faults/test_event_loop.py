"""The manager's event loop never waits for PostgreSQL: it could wait for itself, and all requests with it.

A greenlet may wait there for a millisecond, then it lets the loop continue.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import httpx

from tests.faults.conftest import Starter, put
from tests.manager.conftest import Manager, lease
from tests.manager.test_pages import Visitor
from tests.serving.conftest import eventually

REPORTED = "waits on the event loop"

# A manager that logs each wait for the server on the loop's thread, outside a greenlet.
CODE = f"""
import asyncio, sys, traceback
from gusset.vault.greenlets import spawned
from gusset.vault.storage.postgres_driver import PostgresDriver
wait = PostgresDriver._wait
def reported(self, *arguments, **options):
    if asyncio._get_running_loop() is not None and not spawned():
        print("{REPORTED}", *traceback.format_stack()[-12:], file=sys.stderr, flush=True)
    return wait(self, *arguments, **options)
PostgresDriver._wait = reported
from gusset.cli.main import main
main(["manager", "--port", sys.argv[1]])
"""


def use(manager: Manager) -> None:
    """Requests of each kind: with keys, wrong keys and tokens, pages, streams, probes."""
    with manager.client() as admin, manager.client("gusset_key_aaaaaaaa_" + "a" * 43) as stranger:
        for _ in range(3):
            assert put(admin, "x", "v" * 20_000).status_code == 200  # a small body is read in any case
        for path in ("/v1/secrets", "/v1/secrets/x", "/v1/audit", "/readyz", "/metrics"):
            assert admin.get(path).status_code == 200
        assert put(stranger, "y", "v" * 20_000).status_code == 401
        token = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
        with manager.client(token) as client:
            assert lease(client).renew({"host": "h", "versions": {"x": 3}}).status_code == 200
            with client.stream("GET", "/v1/deployment/changes") as stream:
                lines = stream.iter_lines()
                next(lines)
                put(admin, "x")
                next(line for line in lines if json.loads(line)["event"] == "changed")
                time.sleep(6)  # renewals are written, and open streams checked
    visitor = Visitor(manager)
    with visitor.http:
        assert visitor.sign_in().status_code == 303
        assert visitor.http.get("/settings/secrets").status_code == 200


def test_no_request_makes_the_event_loop_wait_for_the_database(start: Starter) -> None:
    """Only before the manager serves, and after it has served, does it wait there."""
    manager = start("one")
    assert manager.stop() == 0
    with manager.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(manager.port)], env=manager.gusset.environ, stderr=log
        )
    try:
        eventually(lambda: is_up(manager), patience=30)
        before = manager.log.stat().st_size
        use(manager)
        assert REPORTED not in manager.log.read_text()[before:]
    finally:
        process.terminate()
        process.wait()


def is_up(manager: Manager) -> bool:
    try:
        with manager.client() as client:
            return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
