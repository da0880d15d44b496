"""Both ends of a proxy: an application that does as a test says, and raw connections of clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from gusset.containers.proxy.proxy import Proxy, Routes
from gusset.runtime.connections import Limits

PATIENCE = 30.0  # seconds until a test gives up hope; no test passes by waiting for so long
ROUTES = Routes(predict="/infer", readiness="/is/ready", liveness="/is/alive")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def narrow(sock: socket.socket) -> socket.socket:
    """Let the kernel hold little of what nobody reads (as much as 64 MB else), here and on what is accepted here."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
    return sock


class Wire:
    """One connection, read by what is expected of it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self._unread = bytearray()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def exactly(self, size: int) -> bytes:
        """So many bytes, or what there was before the end."""
        while len(self._unread) < size and self._more():
            pass
        return self._take(size)

    def until(self, end: bytes) -> bytes:
        """All up to `end` and with it, or what there was before the end."""
        while end not in self._unread and self._more():
            pass
        found = self._unread.find(end)
        return self._take(len(self._unread) if found < 0 else found + len(end))

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def response(self) -> tuple[int, bytes, bytes]:
        """Status, head, and a body with a length."""
        head = self.head()
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return int(head.split(b" ")[1]), head, self.exactly(int(length or b"0"))

    def rest(self) -> bytes:
        """All that comes until the other side ends."""
        while self._more():
            pass
        return self._take(len(self._unread))

    def end(self) -> None:
        """Send no more."""
        self.sock.shutdown(socket.SHUT_WR)

    def _take(self, size: int) -> bytes:
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _more(self) -> bytes:
        data = self.sock.recv(65_536)
        self._unread += data
        return data

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


Handle = Callable[[Wire], None]


def answering(*pieces: bytes) -> Handle:
    """An application that answers each request without a body so."""

    def handle(wire: Wire) -> None:
        while wire.head():
            wire.send(*pieces)

    return handle


@dataclass
class Application:
    """A server; each of its connections is handled by `handle` on a thread of its own, then closed."""

    handle: Handle = field(default_factory=lambda: answering(OK))
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = narrow(socket.create_server(("127.0.0.1", 0)))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._run, args=(Wire(sock),), daemon=True).start()

    def _run(self, wire: Wire) -> None:
        with wire, contextlib.suppress(OSError):
            self.handle(wire)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


class Proxied:
    """A proxy before an application, on a loop of its own."""

    def __init__(self, application: Application, **options: Any) -> None:
        self.application = application
        self.not_ready: str | None = None
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        self.errors: list[str] = []  # what asyncio would only log
        self._loop.set_exception_handler(lambda _, context: self.errors.append(repr(context)))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listener = narrow(socket.create_server(("127.0.0.1", 0)))
        self.port: int = listener.getsockname()[1]
        options.setdefault("connect", self.connect_to_application)
        options.setdefault("routes", ROUTES)
        self.proxy = Proxy(ready=lambda: self.not_ready, **options)
        self.call(self.proxy.start(listener))

    async def connect_to_application(self) -> socket.socket:
        sock = narrow(socket.socket())
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.application.port))
        except OSError:
            sock.close()
            raise
        return sock

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the proxy's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def handle(self, handle: Handle) -> None:
        """From now on, the application does this, on new connections alone."""
        self.application.handle = handle

    def connect(self) -> Wire:
        return Wire(narrow(socket.create_connection(("127.0.0.1", self.port))))

    def talk(self, *pieces: bytes) -> bytes:
        """Send, and read until the proxy closes."""
        with self.connect() as wire:
            wire.send(*pieces)
            return wire.rest()

    def close(self) -> None:
        self.call(self.proxy.drain(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()
        self.application.close()
        assert self.errors == []


@contextmanager
def proxied(handle: Handle | None = None, limits: Limits | None = None, **options: Any) -> Iterator[Proxied]:
    """A proxy, before an application that handles its connections so."""
    application = Application(handle) if handle else Application()
    running = Proxied(application, limits=limits, **options)
    try:
        yield running
    finally:
        running.close()


def get(path: str = "/x", *fields: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode("latin-1")


def post(body: bytes, *fields: str, path: str = "/x") -> bytes:
    """A request with a body of known length."""
    return get(path, f"Content-Length: {len(body)}", *fields, method="POST") + body
