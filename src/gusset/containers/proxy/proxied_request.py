"""One request of a client on its way to the application, and the response on its way back."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gusset.containers.proxy.http_messages import HTTP2_HEAD, InvalidMessage, Request, ResponseHead
from gusset.containers.proxy.tunnel import Tunnel, TunnelClient
from gusset.containers.proxy.upstream import Connect, Upstream, open_upstream
from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.caller_auth import CallerAuth, is_open
from gusset.runtime.connections import OpenConnections
from gusset.runtime.exposition import CONTENT_TYPE
from gusset.runtime.limits import Limits
from gusset.runtime.responses import (
    ERROR_OF_MODEL,
    TOO_MANY_WEBSOCKETS,
    Response,
    busy,
    caller_error,
    error_body,
    not_ready,
)

log = logging.getLogger("gusset")

_JOINABLE = 64 * 1024  # bytes; a larger part of a body is not copied to be sent in one write with the head
# Bytes a second at which a body must arrive after its first minute. Less than `Limits.body_rate`: a body is
# passed on here as it arrives, so that a slow one takes no memory.
_BODY_RATE = 100
METRICS_PATH = b"/gusset/metrics"
"""Where gusset's own metrics are: `/metrics` is the application's."""

_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})


@dataclass(frozen=True, kw_only=True)
class Application:
    """The server behind the proxy, and for how long it may make a client wait.

    `connect` returns a connected non-blocking TCP socket. `paths` maps the
    paths of a Truss model to its own. `ready` returns None when requests may
    pass, else the reason for a 503. `caller_auth` None lets everyone in.
    `read_seconds` is how long it may be silent. `browser_rules` say which web
    pages may send requests. `exposition` returns gusset's metrics. With `is_grpc`
    it speaks HTTP/2, and the proxy itself responds to everything else.
    """

    connect: Connect
    paths: dict[bytes, bytes]
    ready: Callable[[], str | None]
    caller_auth: CallerAuth | None
    read_seconds: float
    limits: Limits
    browser_rules: BrowserRules | None
    exposition: Callable[[], bytes]
    is_grpc: bool


class RequestClient(TunnelClient, Protocol):
    """The client's connection, as a request uses it."""

    writable: bool  # false while too much is buffered for the client
    connections: OpenConnections  # of the proxy; once they are closing, the client's ends after its response

    def advance(self) -> None:
        """Handle the received bytes whose turn has come."""

    def respond(self, response: Response, *, close: bool = False) -> None:
        """Respond in place of the application."""

    def finish_exchange(self, upstream: Upstream | None) -> None:
        """Turn to the next request: this one and its response, over `upstream`, are complete."""

    def upgrade(self) -> bool:
        """Count the connection as a websocket; False if there are too many."""

    def enter_tunnel(self, tunnel: Tunnel) -> None:
        """From now on pass bytes through `tunnel`."""


class Phase(enum.Enum):
    """How far a request is. Its body may still be arriving in every phase."""

    CONNECTING = enum.auto()  # to the application
    FORWARDING = enum.auto()  # the head was sent to the application
    RESPONDING = enum.auto()  # the head of the response was sent to the client
    RESPONSE_COMPLETE = enum.auto()  # the rest of the request's body is read and discarded


class ProxiedRequest:
    """A request in flight; the handler of its response (see `upstream.ResponseHandler`)."""

    def __init__(
        self,
        client: RequestClient,
        application: Application,
        request: Request,
        *,
        response_fields: bytes = b"",
    ) -> None:
        """`response_fields` are added to the head of the response."""
        self._response_fields = response_fields
        self._client = client
        self._application = application
        self.request = request
        self.upstream: Upstream | None = None
        self._phase = Phase.CONNECTING
        self._head = b""  # and the first part of the body; kept as long as it may be sent again
        self._connecting: asyncio.Task[None] | None = None
        # Whether only the end of the connection tells the client that the response is complete.
        self.ends_with_connection = False
        self._body_deadline = client.loop.time() + application.limits.body_seconds

    def start(self, data: bytes, idle: Upstream | None) -> bytes:
        """Send the request to the application, over the `idle` connection if there is one.

        `data` follows the request's head. Returns what of it is not part of the body.

        Raises:
            InvalidMessage: the body is invalid or too large.
        """
        request = self.request
        if (refused := self._check_caller()) is not None:
            if idle is not None:
                idle.close()
            self._client.respond(refused)
            return data
        if (request.length or 0) > self._application.limits.body:
            raise _too_large(self._application.limits.body)
        part, data = self._read_body(data) if data and not request.body.done else (b"", data)
        path, mark, query = request.target.partition(b"?")
        if (response := _own_response(self._application, request, path)) is not None:
            if idle is not None:
                idle.close()
            self._client.respond(response)
            return data
        target = self._application.paths.get(path)
        if target is None:
            target = request.target
        elif mark:
            target += (b"&" if b"?" in target else b"?") + query
        self._head = b"%b %b HTTP/1.1%b%b" % (request.method, target, request.fields, part)
        if idle is not None:
            self._forward(idle)
        else:
            self._connect()
        return data

    def take(self, data: bytes) -> bytes | None:
        """Pass on more of the body. Returns what follows it, None if nothing can be taken now.

        Raises:
            InvalidMessage: the body is invalid or too large.
        """
        body = self.request.body
        is_complete = self._phase is Phase.RESPONSE_COMPLETE
        if body.done or (self.upstream is None and not is_complete):
            return None
        part, rest = self._read_body(data)
        if self.upstream is not None and part:
            self.upstream.write(part)
        if body.done and is_complete:
            self._client.finish_exchange(self.upstream)
        return rest

    @property
    def is_probe(self) -> bool:
        """Whether everyone may send the request, also while all connections are in use."""
        request = self.request
        path = request.target.partition(b"?")[0]
        return is_open(request.method, path) and request.body.done and not request.upgrade

    @property
    def is_held_up(self) -> bool:
        """Whether the application reads the body more slowly than the client sends it."""
        return not self.request.body.done and self.upstream is not None and self.upstream.is_full

    @property
    def has_begun_response(self) -> bool:
        return self._phase in (Phase.RESPONDING, Phase.RESPONSE_COMPLETE)

    def expire(self, now: float, *, is_reading: bool) -> None:
        """End what has waited too long for the application, or for the client.

        Raises:
            InvalidMessage: the client sends the body too slowly.
        """
        upstream = self.upstream
        if upstream is not None and now >= upstream.touched + self._application.read_seconds:
            self.abandon()
            if self.has_begun_response:
                log.warning("The application was silent for more than %g s.", self._application.read_seconds)
                self._client.close(reset=self.ends_with_connection)
            else:
                self._fail(504, "It took too long to respond.")
        elif not is_reading:  # the application is slow, not the client
            self._body_deadline = now + self._application.limits.body_seconds
        elif not self.request.body.done and now >= self._body_deadline:
            raise InvalidMessage("The request took too long to arrive.", 408)

    def abandon(self) -> None:
        """Drop the connection to the application."""
        if self.upstream is not None:
            self.upstream.abort()
            self.upstream = None
        if self._connecting is not None:
            self._connecting.cancel()

    # Called by the upstream connection.

    def interim(self, head: bytes) -> None:
        if not self.request.is_http_1_0:  # such a client does not know of 1xx responses
            self._client.transport.write(head + b"\r\n")

    def begin(self, response: ResponseHead, first: bytes) -> None:
        self._phase = Phase.RESPONDING
        self.ends_with_connection = response.ends_with_connection
        self._head = b""
        if response.status == 101:
            self._switch_protocols(response, first)
            return
        request, transport = self.request, self._client.transport
        if request.upgrade and response.close:
            request.close = True  # the response's own Connection field says so, and is passed on
        elif request.close or self._client.connections.closing or response.ends_with_connection:
            request.close = True
            response.head += b"Connection: close\r\n"
        head = response.head + self._response_fields + b"\r\n"
        if len(first) < _JOINABLE:
            transport.write(head + first)
        else:
            transport.writelines((head, first))

    def write(self, data: bytes) -> None:
        self._client.transport.write(data)

    def complete(self) -> None:
        """Turn to the next request, once the body of this one has arrived."""
        self._phase = Phase.RESPONSE_COMPLETE
        if self.request.body.done:
            self._client.finish_exchange(self.upstream)
            self._client.advance()

    def lost(self, fault: str | None) -> None:
        upstream, self.upstream = self.upstream, None
        if self._phase is Phase.RESPONSE_COMPLETE:
            self._client.advance()  # the rest of the body is read and discarded
        elif self._phase is Phase.RESPONDING:
            self._client.close(reset=self.ends_with_connection)
        elif self._may_repeat(upstream):
            self._connect()
        else:
            self._fail(502, fault or "It closed the connection without a response.")

    def flow(self) -> None:
        self._client.update_reading()

    def _check_caller(self) -> Response | None:
        """None if the request may pass. The application gets no key of a caller."""
        request, auth = self.request, self._application.caller_auth
        if auth is None:
            return None
        authorization = request.take_authorization()
        return None if self.is_probe else auth.check(authorization)

    def _connect(self) -> None:
        self._phase = Phase.CONNECTING
        self._connecting = asyncio.get_running_loop().create_task(self._connect_and_forward())

    async def _connect_and_forward(self) -> None:
        try:
            upstream = await open_upstream(self._application.connect)
        except TimeoutError:
            self._fail(504, "It does not accept connections.")
        except Exception as error:  # whatever `connect` raises, the client gets a response
            errno = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(errno) if errno else type(error).__name__
            self._fail(502, f"It cannot be reached: {reason}.")
        else:
            self._forward(upstream)
            self._client.advance()
        finally:
            self._connecting = None

    def _forward(self, upstream: Upstream) -> None:
        """Send the head, and what has arrived of the body, over `upstream`."""
        if self._application.is_grpc:
            upstream.write(HTTP2_HEAD)
            _enter_tunnel(self._client, self._application, upstream)
            return
        self._phase = Phase.FORWARDING
        self.upstream = upstream
        data = self._head
        if not self.request.body.done or self.request.method not in _IDEMPOTENT:
            self._head = b""  # must not be sent a second time
        if not self._client.writable:
            upstream.read(False)
        upstream.send_request(self, data)

    def _may_repeat(self, upstream: Upstream | None) -> bool:
        """Whether the request met a connection that was just being closed, and may be sent over another."""
        if not self._head or upstream is None:
            return False
        return upstream.is_reused and not upstream.has_response

    def _read_body(self, data: bytes) -> tuple[bytes, bytes]:
        """The next part of the body to pass on, and what follows the body.

        Raises:
            InvalidMessage: the body is invalid or too large.
        """
        request, limits = self.request, self._application.limits
        part, rest = request.body.feed(data)
        # Each byte extends the deadline a little, so that a body which trickles in does not last for ever.
        latest = self._client.loop.time() + limits.body_seconds
        self._body_deadline = min(self._body_deadline + len(part) / _BODY_RATE, latest)
        if request.body.size > limits.body:
            raise _too_large(limits.body)
        return part, rest

    def _switch_protocols(self, response: ResponseHead, first: bytes) -> None:
        upstream, self.upstream = self.upstream, None
        assert upstream is not None  # noqa: S101  # it has just passed the response on
        _enter_tunnel(self._client, self._application, upstream, response.head + b"\r\n" + first)

    def _fail(self, status: int, reason: str) -> None:
        """Respond in place of an application that is at fault."""
        log.warning("The application did not respond to a request. %s", reason)
        body = error_body(f"The application did not respond. {reason}")
        self._client.respond(Response(status, body, headers=ERROR_OF_MODEL))


def _enter_tunnel(
    client: RequestClient, application: Application, upstream: Upstream, first: bytes = b""
) -> None:
    """From now on pass bytes both ways, `first` to the client."""
    if not client.upgrade():
        upstream.abort()
        client.respond(busy(TOO_MANY_WEBSOCKETS), close=True)
        return
    client.transport.write(first)
    tunnel = Tunnel(
        client,
        upstream,
        silent_seconds=application.read_seconds,
        half_closed_seconds=application.limits.stall_seconds,
    )
    upstream.enter_tunnel(tunnel)
    client.enter_tunnel(tunnel)


def _too_large(limit: int) -> InvalidMessage:
    return InvalidMessage(f"The request's body is larger than {limit} bytes.", 413)


def _own_response(application: Application, request: Request, path: bytes) -> Response | None:
    """The response to a request that is for gusset, or cannot reach the application now; else None."""
    is_read = request.method in (b"GET", b"HEAD")
    if path == METRICS_PATH and is_read:
        return Response(200, application.exposition(), CONTENT_TYPE)
    if (reason := application.ready()) is None:
        return _own_grpc_response(application, request, path) if application.is_grpc else None
    if path == b"/" and is_read:  # alive, since this process is, but not ready
        return Response(200, b"true")
    return not_ready(reason)


def _own_grpc_response(application: Application, request: Request, path: bytes) -> Response | None:
    """The response to a request that is not HTTP/2, from the proxy of an application that speaks gRPC."""
    if request.method == b"PRI":
        return None
    if is_open(request.method, path):
        return Response(200, b"true")
    return caller_error(404, "This deployment serves gRPC. Connect to this address with a gRPC client.")
