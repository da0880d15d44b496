"""Both ends of a proxy: an application whose behaviour a test sets, and raw client connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from gusset.containers.proxy.proxy import Proxy, Routes
from gusset.runtime.connections import Limits

PATIENCE = 30.0  # seconds until a wait fails; no test passes by waiting for so long
ROUTES = Routes(predict="/infer", readiness="/is/ready", liveness="/is/alive")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def narrow(sock: socket.socket) -> socket.socket:
    """Keep the kernel's receive buffers small, which else grow to 64 MB; also of connections accepted here."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
    return sock


class Wire:
    """One connection, read in the units that a test expects."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self._unread = bytearray()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def exactly(self, size: int) -> bytes:
        """`size` bytes, or what came before the end."""
        while len(self._unread) < size and self._more():
            pass
        return self._take(size)

    def until(self, end: bytes) -> bytes:
        """Everything up to and including `end`, or what came before the end of the connection."""
        while end not in self._unread and self._more():
            pass
        found = self._unread.find(end)
        return self._take(len(self._unread) if found < 0 else found + len(end))

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def response(self) -> tuple[int, bytes, bytes]:
        """Status, head, and body of a response with a Content-Length."""
        head = self.head()
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return int(head.split(b" ")[1]), head, self.exactly(int(length or b"0"))

    def rest(self) -> bytes:
        """Everything until the other side ends the connection."""
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


def responding(*pieces: bytes) -> Handle:
    """A handler that responds with these bytes to each request without a body."""

    def handle(wire: Wire) -> None:
        while wire.head():
            wire.send(*pieces)

    return handle


class Application:
    """A server that runs `handle` for each connection on its own thread, and then closes the connection."""

    def __init__(self, handle: Handle, listener: socket.socket) -> None:
        self.handle = handle
        self.connections = 0
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @classmethod
    def start(cls, handle: Handle) -> Application:
        """An application that listens on 127.0.0.1."""
        application = cls(handle, narrow(socket.create_server(("127.0.0.1", 0))))
        application._thread.start()
        return application

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
    """A proxy before an application, on its own event loop."""

    def __init__(self, application: Application, listener: socket.socket, **options: Any) -> None:
        self.application = application
        self.not_ready: str | None = None
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        self.errors: list[str] = []  # that asyncio would only log
        self._loop.set_exception_handler(lambda _, context: self.errors.append(repr(context)))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port: int = listener.getsockname()[1]
        options.setdefault("connect", self.connect_to_application)
        options.setdefault("routes", ROUTES)
        self.proxy = Proxy(ready=lambda: self.not_ready, **options)

    @classmethod
    def start(cls, application: Application, **options: Any) -> Proxied:
        """A proxy that listens on 127.0.0.1."""
        listener = narrow(socket.create_server(("127.0.0.1", 0)))
        running = cls(application, listener, **options)
        running._thread.start()
        running.call(running.proxy.start(listener))
        return running

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
        """Run a coroutine on the proxy's loop; its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def handle(self, handle: Handle) -> None:
        """Set the application's handler for new connections."""
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
    """A running proxy before an application with that handler."""
    application = Application.start(handle or responding(OK))
    running = Proxied.start(application, limits=limits, **options)
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
