"""GET requests to addresses that others choose: bounded, without redirects, and to no private address.

A host's addresses are resolved once and checked, and the connection goes to one of them: it does
not matter if the name resolves to another address the next time.
"""

# httpx is imported in functions: it is slow to import, and few managers need it.

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from gusset.addresses import is_loopback, is_public, is_usable_privately

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 262_144  # of a response
TIMEOUT = 5.0  # seconds for everything
_MAX_ADDRESSES = 4  # that are tried

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class FetchFailed(Exception):
    """A request failed. The message says why, without the text of any response."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The IP addresses of a host. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PinnedHttp:
    """Makes GET requests within these bounds."""

    def __init__(self, resolve: Resolve = resolve) -> None:
        self._resolve = resolve

    async def get(self, url: str, *, allow_private: bool) -> bytes:
        """The body of a response with the status 200.

        Raises:
            FetchFailed: there is none within the limits.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._get(parts, await self._addresses(host, port, allow_private))
        except TimeoutError:
            raise FetchFailed(f"{host} did not respond within {TIMEOUT:g} s") from None

    async def _addresses(self, host: str, port: int, allow_private: bool) -> Sequence[str]:
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise FetchFailed(f"the name {host} has no address") from None
        allowed = [address for address in found if is_allowed(host, address, allow_private=allow_private)]
        if not allowed:
            raise FetchFailed(f"{host} has only private addresses, which were not allowed")
        return allowed[:_MAX_ADDRESSES]

    async def _get(self, parts: SplitResult, addresses: Sequence[str]) -> bytes:
        import httpx

        loop = asyncio.get_running_loop()
        context = await loop.run_in_executor(None, _tls_context)  # reads the certificates of all authorities
        failure = ""
        async with httpx.AsyncClient(
            verify=context, trust_env=False, follow_redirects=False, timeout=TIMEOUT
        ) as client:
            for address in addresses:
                try:
                    return await _get_from(client, parts, address)
                except httpx.ConnectError as error:
                    failure = _reason(error)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    raise FetchFailed(f"{parts.hostname} did not respond ({_reason(error)})") from None
        raise FetchFailed(f"no connection to {parts.hostname} ({failure})")


def is_allowed(host: str, address: str, *, allow_private: bool) -> bool:
    """Whether a request to `host` may go to one of its addresses.

    If `host` is this machine, only to a loopback address.
    """
    if is_loopback(host):
        return is_loopback(address)
    return is_public(address) or (allow_private and is_usable_privately(address))


async def _get_from(client: httpx.AsyncClient, parts: SplitResult, address: str) -> bytes:
    import httpx

    url = httpx.URL(parts.geturl()).copy_with(host=address)
    headers = {"host": parts.netloc, "accept": "application/json", "accept-encoding": "identity"}
    # The certificate must be that of the host, not of the address.
    names = {"sni_hostname": parts.hostname}
    async with client.stream("GET", url, headers=headers, extensions=names) as response:
        if response.is_redirect:
            raise FetchFailed(f"{parts.hostname} redirects, which is not followed")
        if response.status_code != 200:
            raise FetchFailed(f"{parts.hostname} responded with HTTP {response.status_code}")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_BYTES:
                raise FetchFailed(f"the response of {parts.hostname} has more than {MAX_BYTES} bytes")
        return bytes(body)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)
    return httpx.create_ssl_context()


def _reason(error: Exception) -> str:
    """What is known of a failure: the text of OpenSSL's refusal of a certificate, else the error's type."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
