"""A manager that is paused in the middle of a transaction, as by a frozen virtual machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.conftest import Cli, seconds_since
from tests.faults.conftest import LIMIT, Starter, put, recovers, soon, timed
from tests.manager.conftest import Manager
from tests.postgres_server import PostgresServer

# Whether a session has the chain's lock, and waits for a table.
WAITS_WITH_LOCK = """
SELECT 1 FROM pg_locks has JOIN pg_locks waits USING (pid)
WHERE has.locktype = 'advisory' AND has.granted AND NOT waits.granted
AND waits.relation = 'secrets'::regclass
"""


@contextmanager
def paused(manager: Manager) -> Iterator[None]:
    os.kill(manager.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(manager.process.pid, signal.SIGCONT)


def test_a_manager_that_is_paused_with_the_chains_lock_blocks_nobody_and_commits_nothing_late(
    start: Starter, gusset: Cli, server: PostgresServer, database: str
) -> None:
    """It holds the lock and waits to read a table when it is paused; then it could, but does not go on."""
    first, second = start("paused"), start("other")
    responses: list[httpx.Response] = []
    with first.client() as one, second.client() as two, server.admin(database) as operator:
        assert put(one, "x", "before").status_code == 200
        operator.execute("BEGIN")
        operator.execute("LOCK TABLE secrets IN ACCESS EXCLUSIVE MODE")
        request = threading.Thread(target=lambda: responses.append(put(one, "x", "late")))
        request.start()
        soon(lambda: bool(server.run(WAITS_WITH_LOCK, database=database)))
        with paused(first):
            operator.execute("ROLLBACK")
            began = time.monotonic()
            assert timed(lambda: put(two, "x", "meanwhile")).status_code == 200
            assert seconds_since(began) < LIMIT
            assert timed(lambda: two.get("/readyz")).status_code == 200
            time.sleep(1)  # far longer than a commit needs: the paused transaction would have made it by now
        request.join()
        assert [response.status_code for response in responses] == [503]
        assert responses[0].json()["code"] in ("unreachable", "outcome_unknown")
        recovers(one)
        versions = one.get("/v1/secrets/x/versions").json()["versions"]
        assert [each["version"] for each in versions] == [1, 2]
        assert two.post("/v1/audit/verify").json()["problems"] == []


def test_a_manager_that_is_paused_for_longer_than_its_sessions_last_goes_on(start: Starter) -> None:
    """Its connections have ended; the first request is served by new ones."""
    manager = start("one")
    with manager.client() as client:
        assert put(client, "x").status_code == 200
        with paused(manager):
            time.sleep(4)  # longer than STATEMENT_TIMEOUT, the longest that a session has
        recovers(client)
