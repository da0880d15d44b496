"""What PostgreSQL may do to a manager: each request ends in time with the right code, and all is soon well again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from gusset.manager.live.streams import CHANGES
from gusset.secrets.value import SecretValue
from gusset.vault import open_vault
from gusset.vault.storage.postgres import Postgres
from tests.conftest import Cli, seconds_since
from tests.faults.conftest import LIMIT, SetUp, Starter, number, put, recovers, soon, timed
from tests.faults.load import Load, check_all_there
from tests.faults.network import Network
from tests.manager.conftest import Manager
from tests.manager.test_integrity import head_is_witnessed
from tests.postgres_server import SETTINGS, PostgresServer
from tests.serving.conftest import eventually
from tests.vault.conftest import settings_in

PAUSE = number("PAUSE", 8)  # seconds
SESSION = "a" * 43  # nobody's
LARGE = "v" * 20_000  # the key of such a request is looked up before its body is read


def refused(response: httpx.Response) -> tuple[int, str]:
    """The status and the code of a refusal, which says when to try again."""
    assert response.headers["retry-after"] == "1"
    return response.status_code, response.json()["code"]


def statuses_while(fault: Iterator[object], client: httpx.Client) -> Counter[int]:
    """The statuses of writes, reads and probes while a fault lasts; each must come in time."""
    requests: list[Callable[[], httpx.Response]] = [
        lambda: put(client, "x"),
        lambda: put(client, "x", LARGE),
        lambda: client.get("/v1/secrets"),
        lambda: client.get("/readyz"),
        lambda: client.post("/v1/deployment/secrets"),
    ]
    return Counter(timed(request).status_code for _ in fault for request in requests)


def for_seconds(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield


@pytest.mark.slow
@pytest.mark.timeout(300 + PAUSE)
def test_a_pause_of_the_database_holds_up_no_request(start: Starter, server: PostgresServer) -> None:
    """Whatever is requested, and however long it lasts: 503 in time."""
    with start("one").client() as client:
        assert put(client, "x").status_code == 200
        with server.paused():
            seen = statuses_while(for_seconds(PAUSE), client)
        assert set(seen) == {503}
        recovers(client)


def storm(manager: Manager, count: int) -> list[tuple[int, float]]:
    """Send so many requests at the same moment, reads, writes and probes: the status and seconds of each."""
    body = json.dumps({"name": "x", "value": "value"})
    requests = [
        f"POST /v1/secrets HTTP/1.1\r\nContent-Length: {len(body)}\r\n",
        "GET /v1/secrets HTTP/1.1\r\n",
        "GET /v1/secrets/x HTTP/1.1\r\n",
        "GET /readyz HTTP/1.1\r\n",
    ]
    common = f"Host: manager\r\nAuthorization: Bearer {manager.key}\r\nConnection: close\r\n\r\n"

    async def send(number: int) -> tuple[int, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
        await all_connected.wait()
        began = time.monotonic()
        writer.write((requests[number % 4] + common + (body if number % 4 == 0 else "")).encode())
        response = await reader.read()
        writer.close()
        return int(response.split()[1]), seconds_since(began)

    async def send_all() -> list[tuple[int, float]]:
        return await asyncio.gather(*(send(number) for number in range(count)))

    all_connected = asyncio.Barrier(count)
    return asyncio.run(send_all())


@contextmanager
def locked(server: PostgresServer, database: str, table: str) -> Iterator[None]:
    """A table that an operator has locked."""
    with server.admin(database) as operator:
        operator.execute("BEGIN")
        operator.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
        operator.execute("ROLLBACK")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [pytest.param(250, marks=pytest.mark.matrix), 400])
@pytest.mark.parametrize("fault", ["silent", "locked"])
def test_each_request_of_a_storm_ends_in_time(
    start: Starter, server: PostgresServer, database: str, fault: str, count: int
) -> None:
    """Whatever each of them has to wait for. Afterwards as many are handled at once as before."""
    manager = start("one")
    with manager.client() as client:
        assert put(client, "x").status_code == 200
        with server.paused() if fault == "silent" else locked(server, database, "secrets"):
            for _ in range(2):
                responses = storm(manager, count)
                assert {status for status, _ in responses} <= {200, 503}
                assert max(seconds for _, seconds in responses) < LIMIT
        recovers(client)
        soon(lambda: {status for status, _ in storm(manager, 64)} == {200})
        for _ in range(2):  # the second comes too soon after the first to be signed with it
            assert put(client, "x").status_code == 200
        soon(lambda: head_is_witnessed(manager))


@pytest.mark.slow
def test_a_silent_network_holds_up_no_request(
    start: Starter, gusset: Cli, server: PostgresServer, database: str
) -> None:
    """What is sent is lost, and no connection ends; afterwards new connections are made."""
    with Network.running(server.port) as network:
        gusset.environ["GUSSET_DATABASE"] = f"postgresql://postgres@127.0.0.1:{network.port}/{database}"
        manager = start("one")
        with manager.client() as client:
            assert put(client, "x").status_code == 200
            with network.silent():
                assert set(statuses_while(for_seconds(PAUSE), client)) == {503}
            recovers(client)
            network.cut()
            recovers(client)
        assert manager.stop() == 0


def test_connections_that_are_used_up_are_reported(
    start: Starter, server: PostgresServer, database: str
) -> None:
    with start("one").client() as client, ExitStack() as others:
        assert put(client, "x").status_code == 200
        taken = [others.enter_context(server.admin())]

        def take_all() -> bool:
            """Take what is free; a connection that was ended may take a moment to become free."""
            with suppress(psycopg.OperationalError):
                while True:
                    taken.append(others.enter_context(server.admin()))
            return len(taken) == int(SETTINGS["max_connections"])

        # Meanwhile the manager must not connect again: it would have one of them.
        taken[0].execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        taken[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database]
        )
        eventually(take_all, "others have all connections")
        taken[0].execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
        assert refused(timed(lambda: put(client, "x"))) == (503, "unreachable")
        assert refused(timed(lambda: client.get("/v1/secrets"))) == (503, "unreachable")
        assert timed(lambda: client.get("/readyz")).status_code == 503
        others.close()
        recovers(client)


def test_no_client_is_told_where_the_database_is(start: Starter, gusset: Cli, server: PostgresServer) -> None:
    """The log is, once for all requests, and so is whoever runs a command on the vault itself."""
    manager = start("one")
    place = f"127.0.0.1:{server.port}"
    server.stop()
    try:
        with manager.client() as client:
            for path in ("/readyz", "/v1/secrets", "/v1/secret/data/x", "/settings/secrets", "/readyz") * 2:
                response = timed(lambda: client.get(path, headers={"cookie": f"gusset_session={SESSION}"}))  # noqa: B023
                assert response.status_code == 503, path
                assert "the database does not respond" in response.text.lower()
                assert "127.0.0.1" not in response.text and str(server.port) not in response.text, path
            assert refused(client.get("/v1/secrets")) == (503, "unreachable")
            hint = client.get("/v1/secrets").json()["hint"]
        assert hint == "try again; the manager's log has the details"
        assert place.encode() in gusset("secret", "list", status=8).stderr
    finally:
        server.start()
    lines = [json.loads(line)["message"] for line in manager.log.read_text().splitlines()]
    of_requests = [line for line in lines if line.startswith("the database does not respond (")]
    assert of_requests and all(place in line for line in of_requests)
    assert len(set(of_requests)) == len(of_requests)


@pytest.mark.parametrize(
    ("table", "value"),
    [
        pytest.param("secrets", "value", id="secrets"),
        pytest.param("audit", "value", id="audit"),
        pytest.param("meta", LARGE, id="meta"),
    ],
)
def test_tables_that_an_operator_locked_fail_requests_in_time(
    start: Starter, server: PostgresServer, database: str, table: str, value: str
) -> None:
    """Nothing was written, and nothing is later."""
    with start("one").client() as client:
        assert put(client, "x").status_code == 200
        with locked(server, database, table):
            for _ in range(2):  # for the second, it is no longer known whether access has changed
                assert refused(timed(lambda: put(client, "x", value))) == (503, "unreachable")
        recovers(client)
        assert client.get("/v1/secrets/x").json()["version"] == 1


def test_a_stream_of_changes_is_refused_in_time_while_nothing_can_be_read_for_it(
    start: Starter, server: PostgresServer, database: str
) -> None:
    """It is authenticated, and would be silent until the operator is done. Then the next one begins."""
    manager = start("one")
    with manager.client() as client:
        token = client.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
        with manager.client(token) as replica:
            assert replica.get("/v1/deployment").status_code == 200
            with locked(server, database, "secrets"):
                for _ in range(2):
                    assert refused(timed(lambda: replica.get(CHANGES))) == (503, "unreachable")
            soon(lambda: first_event(replica) == "hello")


def first_event(replica: httpx.Client) -> str | None:
    """The first event of a stream of changes; None if it is refused."""
    with replica.stream("GET", CHANGES) as response:
        return str(json.loads(next(response.iter_lines()))["event"]) if response.status_code == 200 else None


def test_requests_do_not_wait_for_those_that_wait_for_the_database(
    start: Starter, server: PostgresServer, database: str
) -> None:
    """Reads wait for a locked table, on each connection of the manager, and writes come: it still responds.

    No request has to wait until all before it have failed.
    """
    manager, deadline = start("one"), time.monotonic() + 60

    def send(number: int) -> None:
        with manager.client() as own:
            requests = [
                lambda: put(own, "x"),
                lambda: own.get("/v1/secrets"),
                lambda: own.get("/v1/secrets/x"),
            ]
            while time.monotonic() < deadline:
                assert timed(requests[min(number % 4, 2)]).status_code in (200, 503)

    with manager.client() as client, ThreadPoolExecutor(48) as pool, server.admin(database) as operator:
        assert put(client, "x").status_code == 200
        operator.execute("BEGIN")
        operator.execute("LOCK TABLE secrets IN ACCESS EXCLUSIVE MODE")
        deadline = time.monotonic() + 5
        done = pool.map(send, range(48))
        while time.monotonic() < deadline:
            began = time.monotonic()
            assert client.get("/healthz").status_code == 200
            assert seconds_since(began) < 1.0
            time.sleep(0.05)
        operator.execute("ROLLBACK")
        list(done)
        recovers(client)


def test_a_read_only_database_is_not_ready(start: Starter, server: PostgresServer, database: str) -> None:
    """Reads go on."""
    with start("one").client() as client:
        assert put(client, "x").status_code == 200
        server.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", database)
        try:
            # The connections from before are ending: the first requests may still meet them.
            soon(lambda: refused(timed(lambda: put(client, "x"))) == (503, "host"))
            soon(lambda: timed(lambda: client.get("/readyz")).status_code == 503)
            soon(lambda: timed(lambda: client.get("/v1/secrets")).status_code == 200)
        finally:
            server.run(f"ALTER DATABASE {database} RESET default_transaction_read_only")
        recovers(client)


def test_a_change_without_its_notification_is_noticed_within_a_second(
    start: Starter, gusset: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Postgres, "announce", lambda *_: None)
    manager = start("one")
    with manager.client() as admin, ExitStack() as stack:
        put(admin, "x")
        token = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
        client = stack.enter_context(manager.client(token))
        lines = stack.enter_context(client.stream("GET", "/v1/deployment/changes")).iter_lines()
        assert json.loads(next(lines))["event"] == "hello"
        settings = settings_in(gusset.home, database=gusset.environ["GUSSET_DATABASE"])
        with open_vault(settings) as vault:
            began = time.monotonic()
            vault.secrets.writer.set("x", SecretValue(b"next"), actor="alice")
            next(line for line in lines if json.loads(line)["event"] == "changed")
            assert seconds_since(began) < 1.0


def test_a_manager_whose_notifications_are_lost_notices_changes_within_a_second(
    start: Starter, server: PostgresServer, database: str
) -> None:
    """Of its connections just that one is dead, without a sign. The others serve requests all the while."""
    polls = b"SELECT coalesce(max(seq), 0)"
    with Network.running(server.port) as network, ExitStack() as stack:
        url = f"postgresql://postgres@127.0.0.1:{network.port}/{database}"
        deaf, other = start("deaf", GUSSET_DATABASE=url), start("other")
        reader, writer = stack.enter_context(deaf.client()), stack.enter_context(other.client())
        put(writer, "x")
        token = writer.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
        client = stack.enter_context(deaf.client(token))
        lines = stack.enter_context(client.stream("GET", "/v1/deployment/changes")).iter_lines()
        assert json.loads(next(lines))["event"] == "hello"
        for number in range(3):
            seen = network.count(polls)
            soon(lambda seen=seen: network.count(polls) >= seen + 4)  # the connection has lasted for a while
            network.silence(b"LISTEN gusset")
            began = time.monotonic()
            put(writer, "x", f"next {number}")
            next(line for line in lines if json.loads(line)["event"] == "changed")
            assert seconds_since(began) < 1.0
            assert reader.get("/v1/secrets").status_code == 200
            assert put(reader, "y").status_code == 200
        assert network.count(b"LISTEN gusset") >= 4
        stack.close()
        assert deaf.stop() == 0  # while it reaches the database


# A full disk

DISK = "96m"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder that is a small file system."""
    with tempfile.TemporaryDirectory(prefix="gusset-disk-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", folder], capture_output=True
        )
        if mounted.returncode != 0:
            pytest.skip("a small file system cannot be mounted: it needs root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """The file system without a free byte, also after PostgreSQL has removed files of its own."""
    filler, ended = disk / "filler", threading.Event()

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while not ended.is_set():
                try:
                    file.write(bytes(4096))
                except OSError:
                    ended.wait(0.01)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        filler.unlink()


@pytest.mark.slow
@pytest.mark.system("mount")
def test_a_full_disk_of_the_database_refuses_writes_and_loses_nothing(
    small_disk: Path, set_up: SetUp, server: PostgresServer, tmp_path: Path, gusset: Cli
) -> None:
    """PostgreSQL may end over it; started again with some space, it has each acknowledged write."""
    own = PostgresServer(small_disk, SETTINGS | {"max_wal_size": "32MB", "min_wal_size": "32MB"})
    own.create()
    try:
        own.run("CREATE DATABASE vault")
        gusset.environ["GUSSET_DATABASE"] = own.url("vault")
        (gusset.home / "audit.witness").unlink(missing_ok=True)
        done = gusset("manager", "init", "--email", "eve@example.com", "--output", "json", input=b"a" * 20)
        start = Starter(gusset, json.loads(done.stdout)["api_key"], tmp_path)
        manager = start("one")
        load = Load([manager], 4)
        with manager.client() as client, load.running():
            eventually(lambda: min(load.acknowledged) > 0)
            with full(small_disk):
                deadline = time.monotonic() + 20
                while load.failures["host"] + load.failures["unreachable"] == 0:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                timed(lambda: client.get("/readyz"))  # ready, as long as small writes find room
                response = timed(
                    lambda: client.post("/v1/secrets", json={"name": "y", "value": "v" * 60_000})
                )
                assert response.status_code == 503
                assert str(small_disk) not in response.text

            def is_well() -> bool:
                if not own.is_up:  # it may end over the full disk, also a moment later
                    own.stop()
                    own.start()
                return put(client, "after").status_code == 200

            eventually(is_well, patience=30)  # PostgreSQL may have its log to replay
            recovers(client)
        check_all_there(load, gusset)
        assert manager.stop() == 0
    finally:
        own.stop(signal.SIGQUIT)
