"""A custom image that is only for its callers: what the proxy lets pass, and what reaches the application."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from gusset.runtime.caller_auth import CallerAuth, digests_of
from gusset.runtime.tls import ServerTls, TlsFiles
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import SecretValue
from tests.containers.wire import (
    OK,
    SWITCHING,
    WEBSOCKET_REQUEST,
    RunningProxy,
    Wire,
    get,
    post,
    running_proxy,
)
from tests.serving.conftest import eventually
from tests.serving.test_callers import make_certificate, trusting

KEY = "caller-Zx81QqLmN4vTtYbWs93KdPfGhJcR2aXe"
HEADER = f"Authorization: Api-Key {KEY}"


@pytest.fixture
def auth() -> CallerAuth:
    return CallerAuth(digests_of(["app"], {"app": Delivered(SecretValue(KEY.encode()), 1, "")}))


@pytest.fixture
def guarded(auth: CallerAuth) -> Iterator[RunningProxy]:
    with running_proxy(caller_auth=auth) as proxy:
        yield proxy


def test_only_a_callers_request_reaches_the_application(guarded: RunningProxy, auth: CallerAuth) -> None:
    """Without the header that has the key; others are as they were sent."""
    heads = guarded.record_heads()
    with guarded.connect() as client:
        client.send(get("/x", "X-Other: 1", HEADER, "authorization: Bearer second"))
        assert client.response()[0] == 200
        for fields in ([], ["Authorization: Api-Key wrong"], [f"Authorization: Basic {KEY}"]):
            client.send(get("/x", *fields))
            status, head, body = client.response()
            assert status == 401
            assert b"www-authenticate: Api-Key, Bearer\r\n" in head
            assert b"error" in body and KEY.encode() not in body
    (head,) = heads
    assert b"authorization" not in head.lower() and KEY.encode() not in head
    assert b"X-Other: 1\r\n" in head
    assert auth.requests["app"] == 1 and auth.refused == 3


def test_without_callers_the_header_is_passed_on(proxy: RunningProxy) -> None:
    heads = proxy.record_heads()
    with proxy.connect() as client:
        client.send(get("/x", HEADER))
        assert client.response()[0] == 200
    assert HEADER.encode() in heads[0]


@pytest.mark.parametrize("path", ["/", "/ping", "/v1/models/model", "/v1/models/model/loaded"])
def test_probes_are_open(guarded: RunningProxy, path: str) -> None:
    """Only as probes: not with a body, with another method or for a websocket."""
    with guarded.connect() as client:
        client.send(get(path))
        assert client.response()[0] == 200
    upgrade = get(path, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: k")
    for request in (get(path, method="DELETE"), post(b"1", path=path), upgrade):
        assert guarded.exchange(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)).startswith(
            b"HTTP/1.1 401 "
        )
    body = get(path, "Content-Length: 1") + b"1"
    assert guarded.exchange(body).startswith(b"HTTP/1.1 401 ")


def test_a_body_is_not_read_before_the_key_is_checked(guarded: RunningProxy) -> None:
    response = guarded.exchange(get("/predict", "Content-Length: 99999999", method="POST"))
    assert response.startswith(b"HTTP/1.1 401 ")
    assert guarded.application.connections == 0


def test_a_websocket_needs_a_key(guarded: RunningProxy) -> None:
    heads = guarded.record_heads(SWITCHING)
    with guarded.connect() as client:
        client.send(WEBSOCKET_REQUEST)
        assert client.response()[0] == 401
    with guarded.connect() as client:
        client.send(WEBSOCKET_REQUEST.replace(b"\r\n\r\n", f"\r\n{HEADER}\r\n\r\n".encode()))
        assert client.head() == SWITCHING
    assert len(heads) >= 1 and KEY.encode() not in b"".join(heads)


def test_a_new_key_counts_at_once(guarded: RunningProxy, auth: CallerAuth) -> None:
    auth.replace(digests_of(["app"], {"app": Delivered(SecretValue(b"another"), 2, "")}))
    guarded.handle_with(lambda wire: wire.send(OK) if wire.head() else None)
    with guarded.connect() as client:
        client.send(get("/x", HEADER))
        assert client.response()[0] == 401
        client.send(get("/x", "Authorization: Bearer another"))
        assert client.response()[0] == 200


def test_gussets_own_metrics_count_callers(guarded: RunningProxy) -> None:
    """Also while the application is not ready; `/metrics` is the application's. They need a key."""
    heads = guarded.record_heads()
    with guarded.connect() as client:
        for path, fields, status in (
            ("/gusset/metrics", [], 401),
            ("/x", [HEADER], 200),
            ("/metrics", [HEADER], 200),
            ("/gusset/metrics", [HEADER], 200),
        ):
            client.send(get(path, *fields))
            found, _, body = client.response()
            assert (path, found) == (path, status)
        exposition = body.decode()
        assert 'gusset_caller_requests_total{caller="app"} 3\n' in exposition
        assert "gusset_caller_refused_total 1\n" in exposition
        assert "gusset_model_ready 1\n" in exposition
        assert KEY not in exposition
        guarded.not_ready = "It is starting."
        client.send(get("/gusset/metrics", HEADER))
        assert b"gusset_model_ready 0\n" in client.response()[2]
    assert [head.split()[1] for head in heads] == [b"/x", b"/metrics"]


def test_callers_over_tls_and_a_new_certificate(tmp_path: Path, auth: CallerAuth) -> None:
    """New connections get the new certificate; those that are open go on, a websocket too."""
    chain, key = make_certificate(tmp_path, "first")
    new_chain, new_key = make_certificate(tmp_path, "second")
    first, second = trusting(chain), trusting(new_chain)

    with running_proxy(caller_auth=auth, tls=ServerTls.open(TlsFiles(chain, key))) as proxy:

        def connect(context: ssl.SSLContext) -> Wire:
            return Wire(context.wrap_socket(proxy.connect().sock, server_hostname="127.0.0.1"))

        def accepts(context: ssl.SSLContext) -> bool:
            try:
                connect(context).sock.close()
            except ssl.SSLCertVerificationError:
                return False
            return True

        with connect(first) as client, connect(first) as websocket:
            for fields, status in (([], 401), ([HEADER], 200)):
                client.send(get("/x", *fields))
                assert client.response()[0] == status
            proxy.handle_with(_echo_after_switching)
            websocket.send(WEBSOCKET_REQUEST.replace(b"\r\n\r\n", f"\r\n{HEADER}\r\n\r\n".encode()))
            assert websocket.head() == SWITCHING

            chain.write_bytes(new_chain.read_bytes())
            key.write_bytes(new_key.read_bytes())
            eventually(lambda: accepts(second), "the new certificate")
            assert not accepts(first)
            websocket.send(b"frame")
            assert websocket.exactly(5) == b"frame"
            client.send(get("/x"))
            assert client.response()[0] == 401
        with connect(second) as client:
            client.send(get("/x"))
            assert client.response()[0] == 401


def _echo_after_switching(wire: Wire) -> None:
    wire.head()
    wire.send(SWITCHING)
    wire.send(wire.exactly(5))
