"""One client's connection to the proxy: its requests in order, its deadlines, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from gusset.containers.proxy.http_messages import (
    HTTP2_HEAD,
    InvalidMessage,
    end_of_head,
    find_field,
    http2_request,
    read_request,
)
from gusset.containers.proxy.proxied_request import Application, ProxiedRequest
from gusset.containers.proxy.tunnel import Tunnel
from gusset.containers.proxy.upstream import Upstream
from gusset.runtime.connections import Admission, OpenConnections
from gusset.runtime.responses import ALL_IN_USE, Response, busy, caller_error, status_line
from gusset.runtime.transports import LINGER_SECONDS, StallDetector, descriptor_of, peer_of, send_eof

_READ_AHEAD = 64 * 1024  # bytes that a client may send before their turn


class ClientConnection(asyncio.Protocol):
    """Passes a client's requests on, one after the other.

    Larger than other classes: eleven of its methods are those that asyncio and `OpenConnections` call.
    """

    transport: asyncio.Transport
    peer: tuple[str, int] | None = None

    def __init__(self, application: Application, connections: OpenConnections) -> None:
        self._application = application
        self._limits = application.limits
        self.connections = connections
        self.loop = asyncio.get_running_loop()
        self._input = b""  # received and not passed on yet
        self._searched = 0  # bytes of it in which no end of a head was found
        self._current: ProxiedRequest | None = None
        self._tunnel: Tunnel | None = None
        self._idle: Upstream | None = None  # the connection of the last request, for the next one
        self._admission = Admission.EVERYTHING
        self._ended = False  # whatever arrives is ignored
        self._advancing = False
        self._reading = True
        self.writable = True
        self._stall = StallDetector(self._limits.stall_seconds)
        self._deadline = self.loop.time() + self._limits.head_seconds

    # Called by asyncio.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.peer = peer_of(transport)
        self._admission = self.connections.add(self)
        if self._admission is Admission.NOTHING:
            self._ended = True
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.connections.discard(self)
        self._ended = True
        self._abandon()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if self._tunnel is not None:
            self._tunnel.send(data)
            return
        self._input = self._input + data if self._input else data
        self.advance()

    def eof_received(self) -> bool:
        if self._tunnel is not None and not self._ended:
            # TLS has no half-closed connections: its end ends both directions.
            return self._tunnel.end_of_client() and self.transport.can_write_eof()
        self._ended = True  # a client that half-closes counts as disconnected
        self._abandon()
        return False

    def pause_writing(self) -> None:
        self.writable = False
        if (upstream := self._upstream) is not None:
            upstream.read(False)

    def resume_writing(self) -> None:
        self.writable = True
        if (upstream := self._upstream) is not None:
            upstream.read(True)
        self.advance()

    # Called by the proxy's `OpenConnections`.

    def fileno(self) -> int:
        return descriptor_of(self.transport)

    def finish(self) -> None:
        if self._current is None and self._tunnel is None and not self._input and not self._ended:
            self.close()

    @property
    def eviction_rank(self) -> int | None:
        if self._tunnel is not None:
            return None
        if self._current is not None:
            return None if self._current.request.body.done else 2
        if self.transport.get_write_buffer_size():
            return 2
        return 1 if self._input and not self._ended else 0

    def abort(self) -> None:
        self._ended = True
        self._abandon()
        self.transport.abort()

    def expire(self, now: float) -> None:
        if self._idle is not None and not self._idle.is_usable(now):
            self._idle.close()
            self._idle = None
        if self._stall.check(self.transport, now):
            self.abort()
        if self._stall.unsent:  # the client has not taken its response yet: other deadlines can wait
            return
        try:
            if self._tunnel is not None and not self._ended:
                self._tunnel.expire(now)
            elif self._current is not None and not self._ended:
                self._current.expire(now, is_reading=self._reading)
            elif now >= self._deadline:
                if not self._ended and self._input:
                    raise InvalidMessage("The request took too long to arrive.", 408)  # noqa: TRY301
                self.abort()
        except InvalidMessage as error:
            self._refuse(error)

    # Called by the request in flight and by the tunnel.

    def advance(self) -> None:
        """Handle the received bytes whose turn has come."""
        if self._advancing:
            return  # the loop below continues
        self._advancing = True
        try:
            while self._input and not self._ended and self._tunnel is None:
                if self._current is not None:
                    rest = self._current.take(self._input)
                    if rest is None:
                        break
                    self._input = rest
                elif not self.writable or not self._begin_request():
                    break
        except InvalidMessage as error:
            self._refuse(error)
        finally:
            self._advancing = False
        if not self._ended:
            self.update_reading()

    def update_reading(self) -> None:
        """Read from the client only as fast as the application takes what it sends."""
        if self._tunnel is not None:
            wanted = not self._tunnel.upstream.is_full
        else:
            is_held_up = self._current is not None and self._current.is_held_up
            wanted = len(self._input) <= _READ_AHEAD and not is_held_up
        if wanted is self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def respond(self, response: Response, *, close: bool = False) -> None:
        """Respond in place of the application; close if asked to, or if the request has not arrived whole."""
        current, self._current = self._current, None
        request = current.request if current is not None else None  # None: its own head was at fault
        has_arrived = request is not None and request.body.done
        close = close or request is None or not has_arrived or request.close or self.connections.closing
        method = request.method if request is not None else self._input.lstrip(b"\r\n").partition(b" ")[0]
        body = b"" if method == b"HEAD" else response.body
        lines = [status_line(response.status), b"content-type: %b\r\n" % response.content_type]
        lines.append(b"content-length: %d\r\n" % len(response.body))
        lines += [b"%b: %b\r\n" % header for header in response.headers]
        lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        self.transport.write(b"".join(lines) + body)
        if not close:
            self._deadline = self.loop.time() + self._limits.idle_seconds
            self.advance()
        elif has_arrived:
            self.close()
        else:
            self._linger()

    def finish_exchange(self, upstream: Upstream | None) -> None:
        """Turn to the next request: this one and its response, over `upstream`, are complete."""
        current, self._current = self._current, None
        if upstream is not None and upstream.release():
            self._idle = upstream
        if self.connections.closing or (current is not None and current.request.close):
            self.close()
        else:
            self._deadline = self.loop.time() + self._limits.idle_seconds

    def upgrade(self) -> bool:
        """Count the connection as a websocket; False if there are too many."""
        return self.connections.upgrade(self, self)

    def enter_tunnel(self, tunnel: Tunnel) -> None:
        """From now on pass bytes through `tunnel`, first those that have arrived already."""
        self._current, self._tunnel = None, tunnel
        early, self._input = self._input, b""
        if early:
            tunnel.send(early)
        self.update_reading()

    def close(self, *, reset: bool = False) -> None:
        """Close once what was written has been sent; or at once with a reset.

        A client that counts on the end of the connection must see by a reset that a response is incomplete.
        """
        if reset:
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the client has just gone
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.abort()
            return
        self._ended = True
        self._abandon()
        self.transport.close()

    @property
    def _upstream(self) -> Upstream | None:
        """The connection to the application that is in use."""
        in_use = self._current or self._tunnel
        return in_use.upstream if in_use is not None else None

    def _begin_request(self) -> bool:
        """Start the next request, if its head is complete.

        Raises:
            InvalidMessage: the head or the body is invalid or too large.
        """
        data, end = _find_head(self._input, self._searched, self._limits.head)
        if end < 0:
            if data and not self._searched:
                self._deadline = self.loop.time() + self._limits.head_seconds
            self._input, self._searched = data, len(data)
            return False
        self._searched = 0
        self._current, refusal = _open_request(self, self._application, data[:end])
        current = self._current
        if refusal is None and self._admission is Admission.PROBES and not current.is_probe:
            refusal = busy(ALL_IN_USE)
        if refusal is not None:
            self.respond(refusal, close=True)
            return False
        idle, self._idle = self._idle, None
        if idle is not None and not idle.is_usable(self.loop.time()):
            idle.close()
            idle = None
        rest = current.start(data[end:], idle)
        self._input = b"" if self._ended else rest
        return True

    def _refuse(self, error: InvalidMessage) -> None:
        """Refuse the request: the client is at fault, and what it sends next cannot be told apart from it."""
        current = self._current
        self._abandon()
        if current is not None and current.has_begun_response:
            self.close(reset=current.ends_with_connection)
        else:
            self.respond(caller_error(error.status, error.text), close=True)

    def _linger(self) -> None:
        """Send no more, but read on for a while, so that the client can read the response before a reset."""
        self._ended = True
        self._input = b""
        self._deadline = self.loop.time() + LINGER_SECONDS
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()
        send_eof(self.transport)

    def _abandon(self) -> None:
        """Drop all connections to the application."""
        if self._current is not None:
            self._current.abandon()
        if self._tunnel is not None:
            self._tunnel.abandon()
        if self._idle is not None:
            self._idle.abort()
            self._idle = None


def _find_head(data: bytes, searched: int, limit: int) -> tuple[bytes, int]:
    """`data` without the empty lines before a request's head, and the offset after the head, or -1.

    Raises:
        InvalidMessage: it cannot become a head, or is larger than `limit` bytes.
    """
    if searched == 0:
        while data.startswith(b"\r\n"):  # some clients end a body with one line too many
            data = data[2:]
    end = end_of_head(data, searched)
    if end > limit or (end < 0 and len(data) > limit):
        raise InvalidMessage(f"The request's head is larger than {limit} bytes.", 431)
    if (
        end < 0 and data and not data[:1].isalpha()
    ):  # another protocol, whose client would wait for its server
        raise InvalidMessage("Invalid HTTP request received.")
    return data, end


def _open_request(
    client: ClientConnection, application: Application, head: bytes
) -> tuple[ProxiedRequest, Response | None]:
    """The request with that head, and the response that refuses it, if it is refused.

    Raises:
        InvalidMessage: the head is invalid.
    """
    # No web page can send gRPC: its content type needs a preflight, and HTTP/2 needs TLS with our name.
    if application.is_grpc and head == HTTP2_HEAD:
        return ProxiedRequest(client, application, http2_request()), None
    request, rules = read_request(head), application.browser_rules
    if rules is None:
        return ProxiedRequest(client, application, request), None

    def header(name: bytes) -> bytes | None:
        return request.host if name == b"host" else find_field(head, name)

    fields = b"".join(b"%b: %b\r\n" % field for field in rules.response_headers(header))
    opened = ProxiedRequest(client, application, request, response_fields=fields)
    return opened, rules.check(request.method, header)
