"""Both ends of a proxy under test: raw client connections, and an application that runs a given handler."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import uvloop

from gusset.containers.proxy.proxy import Proxy, Routes
from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.caller_auth import CallerAuth
from gusset.runtime.limits import Limits
from gusset.runtime.tls import ServerTls
from tests.serving.conftest import PATIENCE

ROUTES = Routes(predict="/infer", readiness="/is/ready", liveness="/is/alive")
HOST = "Host: a"
CHUNKED = "Transfer-Encoding: chunked"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-a: b\r\n\r\n"


def get(path: str = "/x", *fields: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", HOST, *fields, "", ""]).encode("latin-1")


def post(body: bytes, *fields: str, path: str = "/x") -> bytes:
    """A POST with a body of known length."""
    return get(path, f"Content-Length: {len(body)}", *fields, method="POST") + body


WEBSOCKET_REQUEST = get(
    "/v1/websocket?token=1", "Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Key: k"
)


def cut(data: bytes, offsets: Sequence[int]) -> list[bytes]:
    """`data` in pieces, cut at those of the offsets that lie within it."""
    bounds = sorted({0, len(data), *(offset for offset in offsets if offset < len(data))})
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def limit_receive_buffer(sock: socket.socket) -> socket.socket:
    """Limit how much the kernel receives ahead, on this socket and those accepted from it.

    By default it may be 64 MB, and tests of back-pressure would have to send more than that.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
    return sock


class Wire:
    """One end of a connection. Reads fail after `PATIENCE` seconds."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self._unread = bytearray()

    def send(self, *pieces: bytes) -> None:
        """Send each piece with a call of its own."""
        for piece in pieces:
            self.sock.sendall(piece)

    def exactly(self, size: int) -> bytes:
        """Read `size` bytes; fewer if the other side ends before."""
        while len(self._unread) < size and self._receive():
            pass
        return self._take(size)

    def head(self) -> bytes:
        """Read up to and including the next empty line; what there is if the other side ends before."""
        while (end := self._unread.find(b"\r\n\r\n")) < 0 and self._receive():
            pass
        return self._take(len(self._unread) if end < 0 else end + 4)

    def response(self) -> tuple[int, bytes, bytes]:
        """Read a response with a content length: its status, head and body."""
        head = self.head()
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return int(head.split(b" ")[1]), head, self.exactly(int(length or b"0"))

    def rest(self) -> bytes:
        """Read until the other side ends."""
        while self._receive():
            pass
        return self._take(len(self._unread))

    def end(self) -> None:
        """Send no more, but stay able to read."""
        self.sock.shutdown(socket.SHUT_WR)

    def _take(self, size: int) -> bytes:
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _receive(self) -> bytes:
        data = self.sock.recv(65_536)
        self._unread += data
        return data

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


ConnectionHandler = Callable[[Wire], None]  # the connection is closed when it returns


def respond_with(*pieces: bytes) -> ConnectionHandler:
    """Send these pieces in response to each request, which has no body."""

    def handle(wire: Wire) -> None:
        while wire.head():
            wire.send(*pieces)

    return handle


def respond_once_with(response: bytes) -> ConnectionHandler:
    """Send this after the head of the first request, and close."""

    def handle(wire: Wire) -> None:
        wire.head()
        wire.send(response)

    return handle


def never_respond(wire: Wire) -> None:
    """Read until the proxy ends the connection."""
    wire.rest()


class Application:
    """A server that runs `handler` for each connection, on a thread of its own."""

    def __init__(self, handler: ConnectionHandler, listener: socket.socket) -> None:
        """Use `start`."""
        self.handler = handler
        self.connections = 0  # accepted so far
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @classmethod
    def start(cls, handler: ConnectionHandler) -> Application:
        application = cls(handler, limit_receive_buffer(socket.create_server(("127.0.0.1", 0))))
        application._thread.start()
        return application

    def close(self) -> None:
        """Accept no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

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
            self.handler(wire)


class RunningProxy:
    """A proxy with its own event loop on a thread, and the application behind it."""

    def __init__(
        self, application: Application, routes: Routes, *, tls: ServerTls | None, **options: Any
    ) -> None:
        """Use `running_proxy`."""
        self._tls = tls
        self.application = application
        self.not_ready: str | None = None  # the reason why requests may not pass
        self.errors: list[str] = []  # what asyncio would only log
        self.proxy = Proxy(
            self.connect_to_application,
            routes,
            ready=lambda: self.not_ready,
            **options,
        )
        self.port = 0  # of the proxy; known once it has started
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def start(self) -> None:
        self._loop = self._runner.get_loop()
        self._loop.set_exception_handler(lambda _, context: self.errors.append(repr(context)))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listener = limit_receive_buffer(socket.create_server(("127.0.0.1", 0)))
        self.port = listener.getsockname()[1]
        self.call(self.proxy.start(listener, tls=self._tls))

    def close(self) -> None:
        """Stop proxy and application; fail if asyncio has reported an error."""
        self.call(self.proxy.drain(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()
        self.application.close()
        assert self.errors == []

    async def connect_to_application(self) -> socket.socket:
        sock = limit_receive_buffer(socket.socket())
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.application.port))
        except OSError:
            sock.close()
            raise
        return sock

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start a coroutine on the proxy's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the proxy's event loop, and return its result."""
        return self.submit(work).result(PATIENCE)

    def handle_with(self, handler: ConnectionHandler) -> None:
        """Let the application run `handler` for new connections."""
        self.application.handler = handler

    def record_heads(self, *response: bytes) -> list[bytes]:
        """Let the application send `response` to each request, and add each request's head to the list."""
        heads: list[bytes] = []

        def handle(wire: Wire) -> None:
            while head := wire.head():
                heads.append(head)
                wire.send(*(response or [OK]))

        self.handle_with(handle)
        return heads

    def connect(self) -> Wire:
        """Connect to the proxy as a client."""
        return Wire(limit_receive_buffer(socket.create_connection(("127.0.0.1", self.port))))

    def exchange(self, *pieces: bytes) -> bytes:
        """Connect, send, and read until the proxy closes the connection."""
        with self.connect() as wire:
            wire.send(*pieces)
            return wire.rest()

    def buffered(self) -> int:
        """How many bytes the proxy holds for clients and application."""

        async def count() -> int:
            return sum(
                len(client._input)
                + client.transport.get_write_buffer_size()
                + (client._upstream.transport.get_write_buffer_size() if client._upstream else 0)
                for client in self.proxy.connections
            )

        return int(self.call(count()))


@contextmanager
def running_proxy(
    handler: ConnectionHandler | None = None,
    limits: Limits | None = None,
    *,
    routes: Routes = ROUTES,
    read_seconds: float = 300.0,
    browser_rules: BrowserRules | None = None,
    caller_auth: CallerAuth | None = None,
    tls: ServerTls | None = None,
    is_grpc: bool = False,
) -> Iterator[RunningProxy]:
    """A proxy in front of an application that runs `handler`; without one it responds with `OK`."""
    application = Application.start(handler or respond_with(OK))
    proxy = RunningProxy(
        application,
        routes,
        limits=limits,
        read_seconds=read_seconds,
        browser_rules=browser_rules,
        caller_auth=caller_auth,
        tls=tls,
        is_grpc=is_grpc,
    )
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
