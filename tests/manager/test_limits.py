"""What one client cannot do to the others of a manager: take its connections, its memory or its time."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.manager.conftest import Manager
from tests.serving.test_callers import make_certificate, trusting


@pytest.fixture
def few_descriptors(manager: Manager) -> Manager:
    """A manager that can open 256 files, and so keeps 56 connections."""
    manager.stop()
    with few_files():
        manager.start()
    return manager


@contextlib.contextmanager
def few_files() -> Iterator[None]:
    """Processes that are started now can open 256 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def connections(manager: Manager, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Connections that each send the beginning of something, and then wait."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", manager.port), timeout=20))
            with contextlib.suppress(OSError):  # it was closed at once
                client.sendall(sent)
            opened.append(client)
        yield opened


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /signin HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 100000\r\n\r\nemail=",
    ],
    ids=["idle", "slow heads", "slow bodies"],
)
def test_slow_connections_do_not_keep_others_out(few_descriptors: Manager, sent: bytes) -> None:
    """More of them than the manager keeps: the oldest make room, and everything else goes on."""
    with connections(few_descriptors, 150, sent):
        for _ in range(3):
            assert httpx.get(f"{few_descriptors.address}/healthz").status_code == 200
            assert httpx.get(f"{few_descriptors.address}/readyz").status_code == 200
        with few_descriptors.client() as admin:
            assert admin.get("/v1/secrets").status_code == 200
            assert admin.post("/v1/secrets", json={"name": "a", "value": "value"}).status_code == 200


def test_silent_tls_handshakes_do_not_keep_others_out(few_descriptors: Manager, tmp_path: Path) -> None:
    """They count as connections from when they are accepted."""
    chain, key = make_certificate(tmp_path, "manager")
    few_descriptors.stop()
    with few_files():
        few_descriptors.start("--tls-certificate", str(chain), "--tls-key", str(key))
    trusted = trusting(chain)
    with connections(few_descriptors, 150, b""), connections(few_descriptors, 150, b"\x16\x03\x01"):
        for path in ("/healthz", "/readyz", "/signin"):
            assert httpx.get(f"{few_descriptors.address}{path}", verify=trusted).status_code == 200


def test_streams_leave_connections_to_probes(few_descriptors: Manager) -> None:
    """Of one address there may be three quarters of the connections. Beyond that it gets 503."""
    with few_descriptors.client() as admin, contextlib.ExitStack() as stack:
        token = admin.post("/v1/deployments", json={"name": "m", "secrets": []}).json()["token"]
        head = f"GET /v1/deployment/changes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        statuses = []
        for _ in range(60):
            client = socket.create_connection(("127.0.0.1", few_descriptors.port), timeout=20)
            stack.enter_context(client).sendall(head.encode())
            statuses.append(client.recv(65_536).split(b" ")[1])
        assert statuses == [b"200"] * 42 + [b"503"] * 18
        for path in ("/healthz", "/readyz"):
            assert httpx.get(f"{few_descriptors.address}{path}").status_code == 200
        assert httpx.get(f"{few_descriptors.address}/signin").status_code == 503


def test_a_body_is_not_read_before_the_key_is_checked(manager: Manager) -> None:
    """The response comes without it, also where the client waits for `100 Continue`; the refusal is recorded."""
    for path, framing in (
        ("/v1/secrets:batch", "Content-Length: 16000000\r\nExpect: 100-continue"),
        ("/v1/secrets", "Content-Length: 1000000"),
        ("/v1/secrets", "Transfer-Encoding: chunked"),
    ):
        with socket.create_connection(("127.0.0.1", manager.port), timeout=20) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nonsense\r\n{framing}\r\n\r\n"
            client.sendall(head.encode())
            received = b"".join(iter(lambda: client.recv(65_536), b""))
        assert received.startswith(b"HTTP/1.1 401 "), (path, framing, received)
    with manager.client() as admin:
        records = admin.get("/v1/audit", params={"limit": "100"}).json()["records"]
        assert any(record["outcome"] == "not_signed_in" for record in records), records


def test_a_body_is_read_once_the_key_is_checked(manager: Manager) -> None:
    """Whether the body comes with the head, after it, or after `100 Continue`."""
    body = json.dumps({"name": "large", "value": "v" * 30_000}).encode()
    head = (
        f"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {manager.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", manager.port), timeout=20) as client:
        for parts in ((head + b"\r\n" + body,), (head + b"\r\n" + body[:9000], body[9000:])):
            for part in parts:
                client.sendall(part)
                time.sleep(0.05)  # the parts arrive one by one
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
        client.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_pipelined_request_after_a_refused_body_is_not_handled(manager: Manager) -> None:
    """What follows a head without a valid key cannot be told from its body."""
    inner = f"GET /v1/users/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {manager.key}\r\n\r\n"
    head = f"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nContent-Length: {len(inner)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", manager.port), timeout=20) as client:
        client.sendall((head + inner + inner).encode())
        received = b"".join(iter(lambda: client.recv(65_536), b""))
    assert received.count(b"HTTP/1.1 ") == 1 and received.startswith(b"HTTP/1.1 401 ")


def test_what_is_not_http_gets_a_json_error(manager: Manager) -> None:
    """As every error of the API."""
    with socket.create_connection(("127.0.0.1", manager.port), timeout=20) as client:
        client.sendall(b"\0\0\0\0\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65_536), b""))
    assert received.startswith(b"HTTP/1.1 400 ") and b'"message"' in received


def test_a_token_cannot_fill_the_audit_log_with_reports_of_masked_values(
    manager: Manager, admin: httpx.Client
) -> None:
    """Each report is a record; beyond 120 a minute the token gets 429."""
    admin.post("/v1/secrets", json={"name": "a", "value": "value"})
    registered = admin.post("/v1/deployments", json={"name": "m", "secrets": ["a"]}).json()
    hit = {"secret": "a", "form": "plain", "channel": "stdout", "times": 1}
    with manager.client(registered["token"]) as deployment:
        began, accepted = time.monotonic(), 0
        report = {"hits": [hit]}
        while (
            accepted < 1_000
            and (response := deployment.post("/v1/deployment/masked", json=report)).is_success
        ):
            accepted += 1
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert 120 <= accepted <= 121 + 2 * (time.monotonic() - began)  # two more are allowed each second


@pytest.mark.parametrize(
    "body", [{"version": [1]}, {"versions": [True]}, {"versions": ["1"]}, {"versions": [1], "all": True}]
)
def test_a_body_that_is_not_understood_destroys_nothing(admin: httpx.Client, body: dict[str, object]) -> None:
    """A misspelt key would otherwise mean all versions."""
    admin.post("/v1/secrets", json={"name": "a", "value": "value"})
    response = admin.post("/v1/secrets/a/destroy", json=body)
    assert response.status_code == 400, response.text
    assert admin.get("/v1/secrets/a/versions").json()["versions"][0]["state"] == "current"
