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


def is_host(host: str) -> bool:
    """Whether a host may have this name or address: each part of it has 1 to 63 bytes."""
    try:
        return host.isprintable() and bool(host.encode("idna"))
    except UnicodeError:
        return False


def http_url(host: str, port: int, *, scheme: str = "http") -> str:
    """The URL of a server, as in `http://127.0.0.1:8080` or `http://[::1]:8080`."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def network_of(address: str | None) -> str:
    """The client that an address counts as: for IPv6 its /64, in which one machine may choose any address."""
    if address is None or ":" not in address:
        return address or "?"
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped) if mapped else parsed.exploded[:19]


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Forms of IPv6 that hide where packets go: 6to4, Teredo, NAT64 of one's own network.
_TRANSLATED = tuple(map(ipaddress.ip_network, ("2002::/16", "2001::/32", "64:ff9b:1::/48")))

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host of the public Internet."""
    parsed = _parsed(address)
    if parsed is None or not parsed.is_global or parsed.is_multicast or parsed.is_reserved:
        return False
    return not (isinstance(parsed, ipaddress.IPv6Address) and parsed.is_site_local)  # the old fec0::/10


def is_usable_privately(address: str) -> bool:
    """Whether an IP address belongs to one host: this machine, one in its networks, or a public one."""
    parsed = _parsed(address)
    if parsed is None or parsed.is_multicast or parsed.is_unspecified:
        return False
    return parsed.is_loopback or not parsed.is_reserved


def _parsed(address: str) -> _Address | None:
    """The address that packets go to; None for a form that hides it, and for what is not an IP address."""
    try:
        parsed: _Address = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed
    if parsed.scope_id is not None or any(parsed in network for network in _TRANSLATED):
        return None
    if parsed in _NAT64:
        return ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed.ipv4_mapped or parsed
