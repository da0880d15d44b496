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


def http_url(host: str, port: int, *, scheme: str = "http") -> str:
    """The URL of a server, as in `http://127.0.0.1:8080` or `http://[::1]:8080`."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
