"""Clients behind a reverse proxy: their address and scheme, as a trusted proxy forwards them."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from gusset.errors import UsageError
from gusset.runtime.exchange import Exchange

_SCHEMES = {"http", "https"}
_SHORTEST = {4: 8, 6: 16}  # bits of a network's prefix; a shorter one is not one organisation's
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # every address of IPv4


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted. Others are ignored."""

    def __init__(self, addresses: str | None = None) -> None:
        """`addresses`, separated by commas: addresses, or networks as in 10.0.0.0/8.

        Raises:
            UsageError: `*`, or a network that is nearly every address: who connects could then choose
                the address that limits and the audit log know them by.
        """
        self._addresses: set[object] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for text in (addresses or "").split(","):
            self._add(text.strip())
        self._is_trusted = lru_cache(maxsize=4096)(self._check)

    def _add(self, text: str) -> None:
        try:
            if text == "*" or "/" in text:
                network = ipaddress.ip_network("0.0.0.0/0" if text == "*" else text)
                if network.prefixlen < _SHORTEST[network.version] or (
                    network.version == 6 and _MAPPED.overlaps(network)
                ):
                    raise _everybody(text)
                self._networks.append(network)
            else:
                self._addresses.add(ipaddress.ip_address(text))
        except ValueError:
            self._addresses.add(text)  # matches a client that is named exactly so

    def client(self, exchange: Exchange) -> tuple[str, int] | None:
        """The address and port of the client; port 0 where a proxy gives none."""
        peer = exchange.peer
        if not self._trusts(peer):
            return peer
        forwarded = [value for name, value in exchange.headers if name.lower() == b"x-forwarded-for"]
        if not forwarded:
            return peer
        hosts = [host.strip() for host in b", ".join(forwarded).decode("latin-1").split(",")]
        host, port = self._first_untrusted(hosts)
        return (host, port) if host else peer

    def scheme(self, exchange: Exchange, default: str) -> str:
        """The scheme that the client used: what the proxy gives, else `default`, that of the listener."""
        if self._trusts(exchange.peer):
            given = [value for name, value in exchange.headers if name.lower() == b"x-forwarded-proto"]
            if given and (scheme := given[-1].decode("latin-1").strip()) in _SCHEMES:
                return scheme
        return default

    def _trusts(self, peer: tuple[str, int] | None) -> bool:
        return peer is not None and self._is_trusted(peer[0])

    def _check(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host in self._addresses
        return address in self._addresses or any(address in network for network in self._networks)

    def _first_untrusted(self, hosts: list[str]) -> tuple[str, int]:
        """The client: each proxy appends who connected to it, so it is the last that is no trusted proxy."""
        for text in reversed(hosts):
            host, port = split_port(text)
            if not host or len(host) > 253 or not self._is_trusted(host):
                return host, port
        return split_port(hosts[0])


def _everybody(text: str) -> UsageError:
    return UsageError(
        f"the trusted proxy cannot be {text}: every client could then choose its own address",
        hint="give the proxy's address or its network, such as 10.0.0.5 or 10.0.0.0/24",
    )


def split_port(text: str) -> tuple[str, int]:
    """Split `host`, `host:port`, `[IPv6]` or `[IPv6]:port`; anything else is returned whole, with port 0."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return text, 0
        return host, _port(rest[1:])
    host, _, port = text.partition(":")
    if text.count(":") == 1 and (not port or _is_port(port)):
        return host, _port(port)
    return text, 0


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def _port(text: str) -> int:
    return int(text) if _is_port(text) else 0
