"""A standby takes over: without the newest commits nothing is written until an administrator has accepted that."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest

from tests.conftest import Cli
from tests.faults.conftest import Starter, put, recovers, soon, timed
from tests.faults.load import Load, check_all_there
from tests.faults.network import Network
from tests.manager.test_integrity import head_is_witnessed
from tests.postgres_server import PostgresServer
from tests.serving.conftest import eventually

WARNING = "a failover would lose the newest writes"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Cluster:
    primary: PostgresServer
    standby: PostgresServer
    network: Network

    def has_followed(self) -> bool:
        """Whether the standby has all that was committed."""
        [(wanted,)] = self.primary.run("SELECT pg_current_wal_lsn()::text")
        return bool(self.standby.run("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", wanted)[0][0])

    def stop_following(self) -> None:
        """What is committed from now on does not reach the standby."""
        self.standby.stop()
        self.standby.start()  # without the primary's address

    def require_standby(self) -> None:
        """Each commit waits until the standby has it."""
        self.primary.run("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        self.primary.run("SELECT pg_reload_conf()")
        soon(lambda: bool(self.primary.run("SELECT 1 FROM pg_stat_replication WHERE sync_state='sync'")))

    def fail_over(self) -> None:
        """The primary crashes for good, and the standby takes over."""
        self.primary.stop(signal.SIGKILL)
        self.promote()

    def promote(self) -> None:
        assert self.standby.run("SELECT pg_promote()") == [(True,)]


@pytest.fixture
def cluster(gusset: Cli, server: PostgresServer, database: str) -> Iterator[Cluster]:
    """Managers know both servers, as several hosts in their URL."""
    with ExitStack() as stack:
        primary = stack.enter_context(server.copy())  # one for each test, since it does not come back
        standby = stack.enter_context(primary.copy(follows=True))
        network = stack.enter_context(Network.running(primary.port))
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        gusset.environ["GUSSET_DATABASE"] = f"postgresql://postgres@{hosts}/{database}"
        yield Cluster(primary, standby, network)


def records_lost(client: httpx.Client) -> bool:
    response = timed(lambda: put(client, "x"))
    return response.status_code == 503 and response.json()["code"] == "records_lost"


def test_a_standby_without_the_newest_commits_stops_writes_until_that_is_accepted(
    cluster: Cluster, start: Starter
) -> None:
    """On each manager, also one that was restarted meanwhile; reads and deliveries of what is left go on."""
    first, second = start("one"), start("two")
    assert WARNING in first.log.read_text()
    with first.client() as one, second.client() as two:
        assert put(one, "kept").status_code == 200
        soon(cluster.has_followed)
        cluster.stop_following()
        for client in (one, two):
            assert put(client, "lost").status_code == 200
        soon(lambda: head_is_witnessed(first) and head_is_witnessed(second))
        cluster.fail_over()
        soon(lambda: records_lost(one) and records_lost(two))
        for client in (one, two):
            assert timed(lambda client=client: client.get("/readyz")).status_code == 503  # type: ignore[misc]
            assert [s["name"] for s in client.get("/v1/secrets").json()["secrets"]] == ["kept"]
        second.kill()
        second.start()
        assert records_lost(two)
        first.gusset("audit", "accept-loss", "--yes")
        recovers(one)
        recovers(two)
        assert put(one, "kept").json()["version"] == 1002
    first.gusset("audit", "verify")


def test_a_standby_that_confirms_each_commit_has_all_of_them(
    cluster: Cluster, start: Starter, gusset: Cli
) -> None:
    """With synchronous commit, a failover in mid-load loses nothing, and writes go on without anybody's help."""
    cluster.require_standby()
    managers = [start("one"), start("two")]
    assert WARNING not in managers[0].log.read_text()
    load = Load(managers, 8)
    with load.running():
        eventually(lambda: min(load.acknowledged) > 5)
        cluster.fail_over()
        before = sum(load.acknowledged)
        eventually(lambda: sum(load.acknowledged) > before + 20, patience=20)
    check_all_there(load, gusset)


def test_a_server_that_turns_out_to_be_a_standby_is_left_for_the_new_primary(
    cluster: Cluster, start: Starter, gusset: Cli, database: str
) -> None:
    """Behind one address, as a load balancer gives: a connection that is read-only is not used again."""
    gusset.environ["GUSSET_DATABASE"] = f"postgresql://postgres@127.0.0.1:{cluster.network.port}/{database}"
    manager = start("one")
    with manager.client() as client:
        assert put(client, "x").status_code == 200
        soon(cluster.has_followed)
        cluster.network.target = cluster.standby.port
        cluster.primary.stop(signal.SIGKILL)
        cluster.network.cut()

        def is_read_only() -> bool:
            response = timed(lambda: put(client, "x"))
            return (response.status_code, response.json().get("code")) == (503, "host")

        soon(is_read_only)
        assert timed(lambda: client.get("/readyz")).status_code == 503
        assert timed(lambda: client.get("/v1/secrets")).status_code == 200
        cluster.promote()
        recovers(client)
        assert put(client, "x").json()["version"] == 2
    assert manager.stop() == 0
