"""Which browsers' requests a server on loopback accepts, by their Host, Origin and Sec-Fetch-Site.

A web page of any site can make its visitor's browser send requests to servers of
the visitor's own machine. Such a request has a foreign `Origin` or says that it
is not of the same origin. Where the page's host name has been made to resolve to
this machine (DNS rebinding) it has neither, but a foreign `Host`. Other clients
send none of these, and are not concerned.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from gusset.addresses import is_loopback
from gusset.errors import UsageError
from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response, caller_error

Header = Callable[[bytes], bytes | None]
"""The first header of a name in lower case, None if there is none."""

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::[0-9]*)?")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]+)?|https?://\[[0-9a-f:.]+\](?::[0-9]+)?")
_FOREIGN_SITES = frozenset((b"cross-site", b"same-site"))
_MAX_CACHED = 64
_ALLOW = "Start it with --allow-origin ORIGIN to let pages of that origin call it."


@dataclass(kw_only=True)  # not frozen: such a class cannot be unpickled when it is compiled
class BrowserRules:
    """Hosts and origins that are accepted besides this machine's own.

    Without `checks_host` any Host is accepted: for a server that others are meant to reach.
    """

    checks_host: bool
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    _good_hosts: set[bytes] = field(default_factory=set, repr=False, compare=False)  # found good before

    @classmethod
    def make(
        cls, listen_host: str, *, hosts: tuple[str, ...], origins: tuple[str, ...]
    ) -> BrowserRules | None:
        """The rules of a server that listens on `listen_host`; None if there are none.

        Raises:
            UsageError: a host or an origin is not written as it must be.
        """
        for host in hosts:
            if not host or _HOST.fullmatch(host.encode("latin-1", "replace")) is None or ":" in host:
                raise UsageError(f"--allowed-host takes a name without a port, not {host!r}")
        for origin in origins:
            if _ORIGIN.fullmatch(origin.lower()) is None:
                raise UsageError(
                    f"--allow-origin takes an origin, not {origin!r}",
                    hint="write it as https://app.example.com",
                )
        if not (is_loopback(listen_host) or hosts or origins):
            return None
        return cls(
            checks_host=is_loopback(listen_host) or bool(hosts),
            hosts=frozenset(host.lower() for host in hosts),
            origins=frozenset(origin.lower() for origin in origins),
        )

    def __call__(self, exchange: Exchange) -> Response | None:
        """Gate requests as `check` does, and let allowed origins read the response. For `HttpServer`."""
        fields = exchange.fields
        if (
            b"origin" not in fields
            and b"sec-fetch-site" not in fields
            and fields.get(b"host") in self._good_hosts
        ):
            return None  # what nearly every request is
        refusal = self.check(exchange.method, exchange.header)
        if refusal is None:
            exchange.response_headers += self.response_headers(exchange.header)
        return refusal

    def check(self, method: bytes, header: Header) -> Response | None:
        """The response that refuses a request, or answers an allowed origin's preflight; None to serve it."""
        host = header(b"host")
        if host is not None and self.checks_host and not self._is_good(host):
            text = f"The host {_shown(host)} is not served here. Start with --allowed-host NAME to serve it."
            return caller_error(421, text)
        origin, site = header(b"origin"), header(b"sec-fetch-site")
        if origin is None and site is None:
            return None
        if origin is not None and self._allows(origin):
            is_preflight = method == b"OPTIONS" and header(b"access-control-request-method") is not None
            return _preflight_response(origin, header) if is_preflight else None
        if origin is not None and not _is_own(origin, host):
            return caller_error(403, f"Pages of {_shown(origin)} may not call this server. {_ALLOW}")
        if site in _FOREIGN_SITES:
            text = (
                "Pages of other sites may not call this server. Start with --allow-origin ORIGIN to let one."
            )
            return caller_error(403, text)
        return None

    def response_headers(self, header: Header) -> tuple[tuple[bytes, bytes], ...]:
        """The headers that let a page of an allowed origin read the response; none for others."""
        origin = header(b"origin")
        if origin is None or not self._allows(origin):
            return ()
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-baseten-request-id"),
            (b"vary", b"Origin"),
        )

    def _allows(self, origin: bytes) -> bool:
        return origin.decode("latin-1").lower() in self.origins

    def _is_good(self, host: bytes) -> bool:
        if host in self._good_hosts:
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].decode("latin-1").strip("[]").lower().removesuffix(".")
        good = is_loopback(name) or name.endswith(".localhost") or name in self.hosts
        if good and len(self._good_hosts) < _MAX_CACHED:
            self._good_hosts.add(host)
        return good


def _is_own(origin: bytes, host: bytes | None) -> bool:
    """Whether a page of this server itself sent the request."""
    return host is not None and origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())


def _preflight_response(origin: bytes, header: Header) -> Response:
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-max-age", b"600"),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
    if (names := header(b"access-control-request-headers")) is not None:
        headers.append((b"access-control-allow-headers", names))
    if header(b"access-control-request-private-network") is not None:
        headers.append((b"access-control-allow-private-network", b"true"))
    return Response(200, b"", b"text/plain", tuple(headers))


def _shown(value: bytes) -> str:
    """A header's value for a message: printable and short."""
    text = value[:100].decode("latin-1")
    return text if text.isascii() and text.isprintable() else ascii(text)
