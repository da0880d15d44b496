"""Who a client is behind reverse proxies, some of them trusted."""

from __future__ import annotations

from typing import cast

import pytest

from gusset.errors import UsageError
from gusset.runtime.exchange import Exchange
from gusset.runtime.http_server import HttpConnection
from gusset.runtime.trusted_proxies import TrustedProxies, split_port

PROXY = ("10.0.0.1", 4000)


class Connection:
    """Only the address of its other end."""

    def __init__(self, peer: tuple[str, int] | None) -> None:
        self.peer = peer


def request(peer: tuple[str, int] | None, *headers: tuple[bytes, bytes]) -> Exchange:
    return Exchange(cast(HttpConnection, Connection(peer)), b"GET", list(headers), {})


def forwarded(text: str) -> tuple[bytes, bytes]:
    return (b"X-Forwarded-For", text.encode())


@pytest.mark.parametrize(
    ("trusted", "chain", "client"),
    [
        ("10.0.0.1", "203.0.113.9", ("203.0.113.9", 0)),
        ("10.0.0.1", "203.0.113.9:555", ("203.0.113.9", 555)),
        ("10.0.0.1", "[2001:db8::1]:555", ("2001:db8::1", 555)),
        ("10.0.0.1", "6.6.6.6, 203.0.113.9", ("203.0.113.9", 0)),
        ("10.0.0.0/8", "6.6.6.6, 203.0.113.9, 10.2.3.4", ("203.0.113.9", 0)),
        ("10.0.0.1, 10.2.3.4", "203.0.113.9, 10.2.3.4", ("203.0.113.9", 0)),
        ("10.0.0.0/8", "10.9.9.9, 10.2.3.4", ("10.9.9.9", 0)),
        ("10.0.0.1", "", PROXY),
        ("10.0.0.2", "203.0.113.9", PROXY),
        (None, "203.0.113.9", PROXY),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(
    trusted: str | None, chain: str, client: tuple[str, int]
) -> None:
    """What a client writes into the header itself comes before what the proxy appends."""
    assert TrustedProxies(trusted).client(request(PROXY, forwarded(chain))) == client


def test_several_headers_are_read_as_one_list() -> None:
    """In their order."""
    exchange = request(PROXY, forwarded("6.6.6.6"), forwarded("203.0.113.9"))
    assert TrustedProxies("10.0.0.1").client(exchange) == ("203.0.113.9", 0)


@pytest.mark.parametrize(
    ("trusted", "given", "scheme"),
    [("10.0.0.1", b"https", "https"), ("10.0.0.1", b"gopher", "http"), ("10.0.0.2", b"https", "http")],
)
def test_the_scheme_is_what_a_trusted_proxy_gives(trusted: str, given: bytes, scheme: str) -> None:
    """Otherwise it is that of the listener."""
    exchange = request(PROXY, (b"x-forwarded-proto", given))
    assert TrustedProxies(trusted).scheme(exchange, "http") == scheme


def test_a_client_without_an_address_is_not_trusted() -> None:
    """It disconnected before its address could be read."""
    assert TrustedProxies("10.0.0.1").client(request(None, forwarded("203.0.113.9"))) is None


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("host", ("host", 0)),
        ("host:80", ("host", 80)),
        ("::1", ("::1", 0)),
        ("[::1]", ("::1", 0)),
        ("[::1]:x", ("::1", 0)),
        ("[::1", ("[::1", 0)),
        ("host:x", ("host:x", 0)),
    ],
)
def test_a_port_is_split_from_a_host(text: str, split: tuple[str, int]) -> None:
    """What is malformed stays as it is."""
    assert split_port(text) == split


@pytest.mark.parametrize(
    "network", ["*", "0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "::/8", "::ffff:0:0/96", "10.0.0.1,*"]
)
def test_a_network_of_nearly_every_address_is_refused(network: str) -> None:
    """Every client could then choose the address by which limits and the audit log know it."""
    with pytest.raises(UsageError, match="every client"):
        TrustedProxies(network)
