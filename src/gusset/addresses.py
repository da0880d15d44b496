"""Network addresses as text: pure functions, for both ends of a connection."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether a server that listens on `host` accepts connections to every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def http_url(host: str, port: int, *, scheme: str = "http") -> str:
    """The URL of a server, as in `http://127.0.0.1:8080` or `http://[::1]:8080`."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def network_of(address: str | None) -> str:
    """The client that an address counts as: of IPv6 the /64, in which one machine may choose its address."""
    if address is None or ":" not in address:
        return address or "?"
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped) if mapped else parsed.exploded[:19]
