"""Runs the manager: listens, with TLS if it has a certificate, and drains when it is stopped."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from gusset.addresses import http_url, is_loopback, is_wildcard
from gusset.errors import UsageError
from gusset.manager.api.router import failure_log
from gusset.manager.app import Manager, make_manager
from gusset.manager.auth.authenticator import KEY_RATE
from gusset.manager.auth.bootstrap_link import BootstrapLink
from gusset.manager.bugs import RepetitionFilter, log_bugs_of_loop
from gusset.manager.middleware import LIMITS
from gusset.runtime.http_server import HttpServer
from gusset.runtime.listener import listen
from gusset.runtime.supervision import StopSignals
from gusset.runtime.tls import ServerTls, TlsFiles
from gusset.runtime.trusted_proxies import TrustedProxies
from gusset.vault.wiring import Vault

DRAIN_SECONDS = 10.0  # for requests in flight when the manager is stopped
GC_THRESHOLD = 20_000  # objects, not 700: requests leave hardly any garbage for it to find


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where and how the manager listens. A trusted proxy gives its clients' addresses and scheme."""

    host: str = "127.0.0.1"
    port: int = 8700
    certificate: Path | None = None
    key: Path | None = None
    trusted_proxy: str | None = None
    insecure_http: bool = False

    def check(self) -> None:
        """Raises UsageError for plain HTTP that others could read, a certificate without its key, and a
        trusted proxy that matches every client."""
        TlsFiles.given(self.certificate, self.key)
        TrustedProxies(self.trusted_proxy)
        if self.certificate or self.trusted_proxy or self.insecure_http or is_loopback(self.host):
            return
        raise UsageError(
            f"plain HTTP on {self.host} would let others on the network read keys and values",
            hint="give --tls-certificate and --tls-key, or --trusted-proxy ADDRESS if one terminates TLS;\n"
            "--insecure-http if you mean it",
        )

    @property
    def scheme(self) -> str:
        return "https" if self.certificate else "http"

    @property
    def on_all_addresses(self) -> bool:
        return is_wildcard(self.host)

    @property
    def reachable_host(self) -> str:
        """A host that this machine can connect to."""
        return "localhost" if self.on_all_addresses else self.host

    def tls(self) -> ServerTls | None:
        """TLS with the certificate, None without one. Raises UsageError if it cannot be used."""
        files = TlsFiles.given(self.certificate, self.key)
        return ServerTls.open(files) if files else None


def run(
    vault: Vault,
    listening: Listening,
    *,
    bootstrap_link: BootstrapLink | None,
    announce: Callable[[str], None],
    key_rate: int = KEY_RATE,
) -> None:
    """Serve until SIGTERM or Ctrl-C. `announce` is called with the URL once it accepts connections.

    `bootstrap_link` is the link of a manager that has not been set up. `key_rate` limits the requests
    per second of one valid key; 0 sets no limit.

    Raises:
        UsageError: see `Listening.check`; the certificate or key cannot be used.
        HostError: the port is in use or not permitted.
    """
    listening.check()
    failure_log.addFilter(RepetitionFilter())
    tls = listening.tls()
    with listen(listening.host, listening.port) as listener:
        address = http_url(listening.reachable_host, listener.getsockname()[1], scheme=listening.scheme)
        proxies = TrustedProxies(listening.trusted_proxy)
        manager = make_manager(
            vault,
            bootstrap_link=bootstrap_link,
            proxies=proxies,
            scheme=listening.scheme,
            key_rate=key_rate,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(manager, listener, tls, lambda: announce(address)))


async def _abort(server: HttpServer, signals: StopSignals) -> None:
    """A second signal: wait no longer for requests in flight."""
    await signals.stop_now.wait()
    server.connections.abort()


async def _serve(
    manager: Manager, listener: socket.socket, tls: ServerTls | None, on_start: Callable[[], None]
) -> None:
    asyncio.get_running_loop().set_exception_handler(log_bugs_of_loop)
    middleware = manager.middleware
    server = HttpServer(
        middleware,
        limits=LIMITS,
        is_probe=middleware.is_probe,
        body_limit=middleware.body_limit,
        skips_body=middleware.skips_body,
        render_refusal=middleware.render_refusal,
    )
    signals = StopSignals()
    signals.install()
    manager.start()
    await server.start(listener, tls=tls)
    # Objects that exist now are kept. A full collection would look at all of them, which takes 50 ms in which
    # no request is handled, and free none.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    on_start()
    await signals.drain.wait()
    manager.end_streams()
    abort = asyncio.create_task(_abort(server, signals))
    await server.drain(DRAIN_SECONDS)
    abort.cancel()
    manager.close()
