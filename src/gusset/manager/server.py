"""Runs the manager: a socket, perhaps TLS, and a stop that lets requests under way finish."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from gusset.addresses import http_url, is_loopback
from gusset.errors import UsageError
from gusset.manager.app import Manager
from gusset.runtime.listener import listen

DRAIN = 10  # seconds for requests under way
IDLE = 75  # seconds that a connection may say nothing


@dataclass(frozen=True, slots=True)
class Listening:
    """Where and how the manager listens. `trusted_proxy` may speak for its clients' addresses and scheme."""

    host: str = "127.0.0.1"
    port: int = 8700
    certificate: Path | None = None
    key: Path | None = None
    trusted_proxy: str | None = None
    insecure_http: bool = False

    def check(self) -> None:
        """Raises UsageError for plain HTTP that others could read, and for half a certificate."""
        if (self.certificate is None) != (self.key is None):
            raise UsageError("TLS needs both --tls-certificate and --tls-key")
        if self.certificate or self.trusted_proxy or self.insecure_http or is_loopback(self.host):
            return
        raise UsageError(
            f"plain HTTP on {self.host} would let others on the network read keys and values",
            hint="give --tls-certificate and --tls-key, or --trusted-proxy ADDRESS where one ends TLS;\n"
            "--insecure-http if you mean it",
        )

    @property
    def scheme(self) -> str:
        return "https" if self.certificate else "http"


class _Server(uvicorn.Server):
    """Ends the streams of changes first: nobody waits for what never ends by itself."""

    def __init__(self, config: uvicorn.Config, manager: Manager, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._manager = manager
        self._started = started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal, and let that be a proper end: uvicorn would raise the signal again."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What is there now stays: a full collection would look through all of it, for 50 ms in
            # which nobody is answered, and free nothing.
            gc.collect()
            gc.freeze()
            self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._manager.changes.stop()
        await super().shutdown(sockets)


def run(manager: Manager, listening: Listening, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C. `announce` is called with the address once it answers.

    Raises:
        UsageError: see `Listening.check`; the certificate or key cannot be used.
        HostError: the port is taken or may not be used.
    """
    listening.check()
    with listen(listening.host, listening.port) as listener:
        address = http_url(listening.host, listener.getsockname()[1], scheme=listening.scheme)
        try:
            config = uvicorn.Config(
                manager.app,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=listening.trusted_proxy is not None,
                forwarded_allow_ips=listening.trusted_proxy or "",
                ssl_certfile=listening.certificate,
                ssl_keyfile=listening.key,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=DRAIN,
                backlog=1024,
            )
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"the certificate or its key cannot be used: {type(error).__name__}") from None
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        server = _Server(config, manager, lambda: announce(address))
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))
