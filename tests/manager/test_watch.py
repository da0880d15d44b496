"""The stream of changes, and the reports of replicas."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from gusset.backoff import Backoff
from gusset.client.manager_source import FIRST_RETRY, LONGEST_RETRY
from tests.conftest import seconds_since
from tests.manager.conftest import Manager, lease

PATIENCE = 20.0


class Stream:
    """The events of one stream, read on a thread."""

    def __init__(self, client: httpx.Client, query: str) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._client = client
        self._query = query
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._client.stream("GET", f"/v1/deployment/changes{self._query}", timeout=60) as response:
                assert response.status_code == 200
                for line in response.iter_lines():
                    self.events.put(json.loads(line))
        except httpx.TransportError:
            pass
        self.ended.set()

    def next(self) -> dict[str, Any]:
        return self.events.get(timeout=PATIENCE)


@contextmanager
def streaming(client: httpx.Client, query: str = "") -> Iterator[Stream]:
    yield Stream(client, query)


def put(admin: httpx.Client, name: str, value: str) -> None:
    assert admin.post("/v1/secrets", json={"name": name, "value": value}).status_code == 200


def test_a_change_is_sent_to_the_streams_that_it_concerns(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """A write by the API, a deletion and a restore; not the changes of other secrets, nor of notes."""
    for name in ("mine", "other"):
        put(admin, name, "first value")
    with deployment("d", "mine") as client, streaming(client) as stream:
        assert stream.next()["event"] == "hello"
        put(admin, "other", "second value")
        put(admin, "mine", "second value")
        assert stream.next()["event"] == "changed"
        admin.delete("/v1/secrets/mine")
        assert stream.next()["event"] == "changed"
        admin.post("/v1/secrets/mine/restore")
        assert stream.next()["event"] == "changed"
        admin.patch("/v1/secrets/mine", json={"note": "a note changes no value"})
        put(admin, "mine", "third value")
        assert stream.next()["event"] == "changed"
        assert stream.events.empty()


def test_a_write_by_another_process_is_sent(
    manager: Manager, admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """`gusset secret set` on the manager's machine, without the manager."""
    put(admin, "mine", "first value")
    with deployment("d", "mine") as client, streaming(client) as stream:
        assert stream.next()["event"] == "hello"
        manager.gusset("secret", "set", "mine", input=b"second value")
        assert stream.next()["event"] == "changed"


def test_a_stream_continues_from_a_revision(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """A change since then is sent first; without one, `hello` is."""
    put(admin, "mine", "first value")
    with deployment("d", "mine") as client:
        revision = client.post("/v1/deployment/secrets").json()["revision"]
        with streaming(client, f"?since={revision}") as stream:
            assert stream.next() == {"event": "hello", "revision": revision}
        put(admin, "mine", "second value")
        with streaming(client, f"?since={revision}") as stream:
            event = stream.next()
            assert event["event"] == "changed" and event["revision"] != revision
        again = client.post("/v1/deployment/secrets").json()
        assert again["revision"] == event["revision"] and again["secrets"]["mine"]["version"] == 2


def test_the_creation_of_a_missing_secret_is_sent(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """A deployment may declare a secret before it exists."""
    with deployment("d", "later") as client, streaming(client) as stream:
        assert client.post("/v1/deployment/secrets").json()["missing"] == ["later"]
        assert stream.next()["event"] == "hello"
        put(admin, "later", "a value")
        assert stream.next()["event"] == "changed"


def test_streams_end_when_the_manager_stops(
    manager: Manager, deployment: Callable[..., httpx.Client]
) -> None:
    """They do not delay it, and their responses are complete."""
    with deployment("d", "x") as client, streaming(client) as stream:
        assert stream.next()["event"] == "hello"
        assert manager.stop() == 0
        assert stream.ended.wait(PATIENCE)


def test_a_replica_reports_the_versions_that_it_holds(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Only of its own secrets. It is live until it reports that it stopped. None of this is audited."""
    put(admin, "mine", "value")
    with deployment("d", "mine") as client:
        replica = lease(client)
        before = len(admin.get("/v1/audit?limit=1000").json()["records"])
        report = {"host": "gpu-1", "versions": {"mine": 1, "other": 3}, "used": {"mine": 1}}
        assert replica.renew(report).json() == {}
        [listed] = admin.get("/v1/deployments").json()["deployments"]
        [shown] = listed["replicas"]
        assert (shown["id"], shown["host"], shown["versions"], shown["used"], shown["live"]) == (
            replica.id,
            "gpu-1",
            {"mine": 1},
            {"mine": 1},
            True,
        )
        assert admin.get("/v1/secrets/mine").json()["used_by"] == ["d"]
        replica.renew({"stopped": True})
        [shown] = admin.get("/v1/deployments/d").json()["replicas"]
        assert shown["live"] is False and shown["versions"] == {"mine": 1}
        assert replica.renew({}).status_code == 404  # a lease that has ended does not begin again
    assert len(admin.get("/v1/audit?limit=1000").json()["records"]) == before


def test_a_lease_is_renewed_only_with_its_session_key(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """403 without the key, with that of another replica or deployment; 404 for an unknown replica."""
    put(admin, "mine", "value")
    with deployment("d", "mine") as client, deployment("other", "mine") as stranger:
        replica, second, third = lease(client), lease(client), lease(stranger)
        path = f"/v1/deployment/replicas/{replica.id}"
        old = client.put(path, json={"host": "h", "versions": {}})
        assert old.status_code == 403 and "Gusset-Session" in old.json()["message"]
        for key in (second.key, third.key, replica.key[:-1], "x"):
            assert client.put(path, json={}, headers={"gusset-session": key}).status_code == 403
        assert stranger.put(path, json={}, headers={"gusset-session": replica.key}).status_code == 404
        unknown = client.put("/v1/deployment/replicas/x", json={}, headers={"gusset-session": replica.key})
        assert unknown.status_code == 404
        assert replica.renew({}).status_code == 200
    refused = admin.get("/v1/audit?action=request.refuse").json()["records"]
    assert refused and all(record["target"] == "a replica's lease" for record in refused)


def test_a_claim_of_a_version_that_the_secret_does_not_have_is_refused(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """What was reported before stays; a version that was destroyed or deleted since may still be held."""
    put(admin, "mine", "value")
    with deployment("d", "mine") as client:
        replica = lease(client)
        assert replica.renew({"versions": {"mine": 1}}).status_code == 200
        for claim in ({"versions": {"mine": 2}}, {"used": {"mine": 2}}):
            refused = replica.renew(claim)
            assert refused.status_code == 409 and "no version 2" in refused.json()["message"]
        put(admin, "mine", "again")
        assert replica.renew({"versions": {"mine": 2}, "used": {"mine": 1}}).status_code == 200
        admin.delete("/v1/secrets/mine?force=true")
        assert lease(client).renew({"versions": {"mine": 2}}).status_code == 200


def test_a_session_key_is_returned_once_and_keeps_its_lease(
    manager: Manager, admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Also after the manager was restarted; a key that is not valid gets a new lease."""
    put(admin, "mine", "value")
    with deployment("d", "mine") as client:
        replica = lease(client)
        replica.renew({"host": "h", "versions": {"mine": 1}})
        manager.stop()
        manager.start()
        with manager.client(client.headers["authorization"].split()[1]) as again:
            headers = {"gusset-session": replica.key}
            fetched = again.post("/v1/deployment/secrets", headers=headers).json()
            assert (fetched["replica"], fetched["session_key"]) == (replica.id, None)
            path = f"/v1/deployment/replicas/{replica.id}"
            assert again.put(path, json={}, headers=headers).status_code == 200
            other = again.post("/v1/deployment/secrets", headers={"gusset-session": "x"}).json()
            assert other["replica"] != replica.id and other["session_key"]
    with manager.client() as admin_again:
        listed = {each["id"]: each for each in admin_again.get("/v1/deployments/d").json()["replicas"]}
        assert listed[replica.id]["versions"] == {"mine": 1} and listed[replica.id]["host"] == "h"


def test_reports_of_masked_values_are_bounded_and_only_of_the_tokens_own_secrets(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Each report is one audit record; what is malformed is refused and not repeated."""
    put(admin, "mine", "value")
    put(admin, "other", "value")
    hit = {"secret": "mine", "form": "base64", "channel": "stdout", "times": 3}
    with deployment("d", "mine") as client:
        hits = [hit, {**hit, "form": "hex"}, {**hit, "secret": "other"}, hit]
        assert client.post("/v1/deployment/masked", json={"hits": hits}).json() == {}
        for wrong in (
            {**hit, "times": 0},
            {**hit, "times": 10**30},
            {**hit, "channel": "\x1b[2J"},
            {**hit, "form": "<b>"},
            {**hit, "form": "x" * 33},
        ):
            response = client.post("/v1/deployment/masked", json={"hits": [wrong]})
            assert response.status_code == 400
            assert "\x1b" not in response.text
        assert client.post("/v1/deployment/masked", json={"hits": [hit] * 201}).status_code == 400
    [record] = admin.get("/v1/audit?action=secret.masked").json()["records"]
    assert record["target"] == "d"
    assert record["details"]["times"] == {"mine": {"base64, stdout": 6, "hex, stdout": 3}}


def test_a_secret_in_use_is_deleted_only_by_force(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """The refusal names the deployments that hold it."""
    put(admin, "mine", "value")
    with deployment("d", "mine") as client:
        lease(client).renew({"versions": {"mine": 1}})
        refused = admin.delete("/v1/secrets/mine")
        assert refused.status_code == 409 and "d" in refused.json()["message"]
        assert admin.delete("/v1/secrets/mine?force=perhaps").status_code == 400
        assert admin.delete("/v1/secrets/mine?force=true").status_code == 200
        assert client.post("/v1/deployment/secrets").json()["missing"] == ["mine"]


def test_a_secret_shows_when_it_was_last_read(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """By a deployment; people never read values."""
    put(admin, "mine", "value")
    assert admin.get("/v1/secrets/mine").json()["last_read_at"] is None
    with deployment("d", "mine") as client:
        client.post("/v1/deployment/secrets")
    assert admin.get("/v1/secrets/mine").json()["last_read_at"]


@pytest.mark.parametrize("path", ["/v1/deployment/changes", "/v1/deployment/secrets"])
def test_a_revoked_token_is_refused_on_the_next_request(
    admin: httpx.Client, deployment: Callable[..., httpx.Client], path: str
) -> None:
    """For values and for changes."""
    with deployment("d", "x") as client:
        [token] = admin.get("/v1/deployments/d/tokens").json()["tokens"]
        admin.delete(f"/v1/tokens/{token['prefix']}")
        method = "GET" if path.endswith("changes") else "POST"
        assert client.request(method, path).status_code == 401


def test_a_revoked_token_ends_an_open_stream_within_ten_seconds_however_busy(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """By elapsed time: a stream with a change every half second has no idle moment."""
    put(admin, "mine", "value")
    with deployment("d", "mine") as client, streaming(client) as stream:
        assert stream.next()["event"] == "hello"
        [token] = admin.get("/v1/deployments/d/tokens").json()["tokens"]
        admin.delete(f"/v1/tokens/{token['prefix']}")
        began = time.monotonic()
        while not stream.ended.wait(0.5):
            put(admin, "mine", f"value {time.monotonic()}")
            assert seconds_since(began) < 12


REPLICAS = int(os.environ.get("GUSSET_TEST_REPLICAS", "200"))  # 1,000 takes half a minute of CPU time


class Waiting:
    """A replica that follows its secrets by the protocol, with the backoff of gusset's own client."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._address = (host, port)
        self._head = f"Host: x\r\nAuthorization: Bearer {token}\r\n"
        self.served = asyncio.Event()
        self.refusals: list[bytes] = []

    async def run(self) -> None:
        backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
        while True:
            try:
                await self._follow()
            except (OSError, asyncio.IncompleteReadError):
                self.served.clear()
                await asyncio.sleep(random.uniform(0, backoff.next_delay()))

    async def _follow(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(
                f"POST /v1/deployment/secrets HTTP/1.1\r\n{self._head}content-length: 2\r\n\r\n{{}}".encode()
            )
            body = await self._response(reader)
            writer.write(f"GET /v1/deployment/changes HTTP/1.1\r\n{self._head}\r\n".encode())
            assert json.loads(body)["secrets"]["mine"]
            head = await reader.readuntil(b"\r\n\r\n")
            self.refusals += [] if b" 200 " in head else [head]
            self.served.set()
            while await reader.readexactly(1):
                pass
        finally:
            writer.close()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head:
            self.refusals.append(head)
            raise ConnectionRefusedError
        return await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))


def test_all_waiting_replicas_are_served_soon_after_the_manager_returns(
    manager: Manager, admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """None is refused: they return spread over the four seconds of the longest backoff."""
    put(admin, "mine", "value")
    with deployment("d", "mine") as client:
        token = client.headers["authorization"].split()[1]

    async def scenario() -> float:
        replicas = [Waiting("127.0.0.1", manager.port, token) for _ in range(REPLICAS)]
        tasks = [asyncio.create_task(replica.run()) for replica in replicas]
        await asyncio.wait_for(asyncio.gather(*(replica.served.wait() for replica in replicas)), 60)
        for replica in replicas:
            replica.refusals.clear()
        await asyncio.to_thread(manager.stop)
        await asyncio.sleep(8)  # by then all wait for the longest time between two attempts
        await asyncio.to_thread(manager.start)
        began = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*(replica.served.wait() for replica in replicas)), 60)
        taken = seconds_since(began)
        for task in tasks:
            task.cancel()
        assert [refusal for replica in replicas for refusal in replica.refusals] == []
        return taken

    assert asyncio.run(scenario()) < 5 + REPLICAS / 100
