"""A probe of the application: one GET, of which only the status counts."""

from __future__ import annotations

import pytest

from gusset.containers.proxy.upstream import probe
from tests.containers.wire import OK, RunningProxy, cut, respond_once_with, running_proxy


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (OK, 200),
        (b"HTTP/1.1 503 No\r\n\r\n", 503),
        (b"HTTP/1.0 404 Not Found\r\nContent-Length: 100000000\r\n\r\n", 404),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, 200),
    ],
)
def test_a_probe_returns_the_status_of_the_final_response(
    proxy: RunningProxy, response: bytes, status: int
) -> None:
    """It does not wait for the body."""
    heads = proxy.record_heads(*cut(response, [10, 20, 30]))
    assert proxy.call(probe(proxy.connect_to_application, "/healthy?a")) == status
    assert heads == [b"GET /healthy?a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK\r\n", b"hello\r\n\r\n", b"x" * 200_000])
def test_a_probe_fails_without_a_valid_response(proxy: RunningProxy, response: bytes) -> None:
    """Its error is an OSError, like that of a failed connection."""
    proxy.handle_with(respond_once_with(response))
    with pytest.raises(ConnectionError):
        proxy.call(probe(proxy.connect_to_application, "/"))


def test_a_probe_of_an_unreachable_application_fails() -> None:
    """With the OSError of the connection."""
    with running_proxy() as proxy:
        proxy.application.close()
        with pytest.raises(ConnectionRefusedError):
            proxy.call(probe(proxy.connect_to_application, "/"))
