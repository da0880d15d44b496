"""The long responses of `GET /v1/deployment/changes`: JSON Lines, written without a task for each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

import orjson
from starlette.datastructures import QueryParams

from gusset.errors import Conflict, GussetError, Unreachable
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.callers import DeploymentCaller
from gusset.manager.bugs import exception_response, log_bug
from gusset.manager.live.change_feed import ChangeFeed
from gusset.manager.live.delivery import secret_names_of
from gusset.runtime.exchange import LAST_CHUNK, Exchange, Headers, chunk
from gusset.runtime.responses import Response
from gusset.vault.greenlets import GreenletPool
from gusset.vault.services.leases import MAX_REPLICAS

CHANGES = "/v1/deployment/changes"
HEARTBEAT_SECONDS = 16.0  # between two heartbeats of a stream; clients wait for 25 s
CHECK_SECONDS = 8.0  # between two checks of a stream's token
_SWEEP_SECONDS = 0.5
# Seconds from a request to its first event, else it is refused: every request ends within five. A request
# that has waited for that long to be authenticated has `_LEAST_SECONDS` left.
_FIRST_SECONDS, _LEAST_SECONDS = 4.0, 0.25
_CLIENT_DISCONNECTED = 499
_HEAD = (
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
_BEAT = orjson.dumps({"event": "beat"}) + b"\n"
_BEAT_CHUNK = chunk(_BEAT)


class Stream:
    """One response: `hello` or `changed` first, then `changed` after each change, and heartbeats."""

    __slots__ = (
        "_headers",
        "_since",
        "authorization",
        "beat_due",
        "check_due",
        "closed",
        "deployment_id",
        "exchange",
        "revision",
    )

    def __init__(self, exchange: Exchange, headers: Headers, *, deployment_id: str) -> None:
        self.exchange = exchange
        self._headers = headers
        self._since = QueryParams(exchange.query).get("since") if exchange.query else None
        self.authorization = _authorization_of(exchange)
        self.deployment_id = deployment_id
        self.check_due = self.beat_due = 0.0  # by the event loop's clock
        self.revision = ""  # the last that was sent
        self.closed = False  # the response is complete
        # There may be thousands of streams, and the parser of the connection holds these, too.
        exchange.headers.clear()
        exchange.fields.clear()

    @property
    def over(self) -> bool:
        """Whether the response is complete, or the client has disconnected."""
        return self.closed or self.exchange.disconnected

    def on_revision(self, revision: str) -> None:
        """Send the revision, unless it is the last one that was sent."""
        if revision == self.revision or self.exchange.disconnected:
            return
        if not self.revision:
            event = "hello" if self._since in (None, "", revision) else "changed"
            self.exchange.start(200, self._headers, self._line(event, revision))
        elif self.exchange.writable:
            self.exchange.write(self._line("changed", revision))
        else:  # sent when the client has taken what is buffered
            self.exchange.on_writable = partial(self.on_revision, revision)
            return
        self.revision = revision

    def beat(self) -> None:
        """Send a heartbeat, for clients and proxies that end silent connections."""
        if self.revision and self.exchange.writable:
            self.exchange.write(_BEAT if self.exchange.is_http_1_0 else _BEAT_CHUNK)

    def end(self) -> None:
        """Complete the response."""
        if not self.revision:
            self.exchange.start(200, self._headers, b"")
        self.exchange.end(b"" if self.exchange.is_http_1_0 else LAST_CHUNK)

    def _line(self, event: str, revision: str) -> bytes:
        line = orjson.dumps({"event": event, "revision": revision}) + b"\n"
        return line if self.exchange.is_http_1_0 else chunk(line)


class ChangeStreams:
    """Opens streams, sends their heartbeats, and ends those whose token is no longer valid."""

    def __init__(
        self,
        authenticator: Authenticator,
        change_feed: ChangeFeed,
        *,
        greenlets: GreenletPool,
        headers: Headers,
        count: Callable[[Exchange, int], object],
    ) -> None:
        """`headers` are for each response; `count` is called with each request and status when it is over."""
        self._authenticator = authenticator
        self._change_feed = change_feed
        self._greenlets = greenlets
        self._stream_headers = (*_HEAD, *headers)  # one tuple for all streams
        self._error_headers = tuple(headers)
        self._count = count
        self._of_deployment: Counter[str] = Counter()  # open streams
        self._streams: deque[Stream] = deque()  # in the order in which their checks are due
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def open(self, exchange: Exchange, address: str | None) -> None:
        """Handle a request for the stream of a deployment's changes."""
        self._greenlets.start(self._authenticate, exchange, address, on_done=partial(self._begin, exchange))

    def _authenticate(self, exchange: Exchange, address: str | None) -> DeploymentCaller | Response:
        request = AuthRequest(
            method="GET", route=CHANGES, address=address, authorization=_authorization_of(exchange)
        )
        try:
            return self._admit(request)
        except Exception as error:
            return exception_response(error)

    def _admit(self, request: AuthRequest) -> DeploymentCaller:
        """The deployment that asks for a stream. Raises GussetError if it may not have one."""
        caller = self._authenticator.authenticate_deployment(request)
        if self._of_deployment[caller.grant.deployment_id] >= MAX_REPLICAS:
            raise Conflict(f"{caller.grant.deployment} has {MAX_REPLICAS} open streams, which is the limit")
        return caller

    def _begin(self, exchange: Exchange, caller: DeploymentCaller | Response) -> None:
        if isinstance(caller, Response):
            self._respond(exchange, caller)
            self._count(exchange, caller.status)
            return
        if exchange.disconnected:
            return
        loop, grant = asyncio.get_running_loop(), caller.grant
        stream = Stream(exchange, self._stream_headers, deployment_id=grant.deployment_id)
        if self._stopped:
            stream.end()
            return
        self._of_deployment[grant.deployment_id] += 1
        self._change_feed.subscribe(secret_names_of(grant), stream)
        exchange.on_disconnect = partial(self._close, stream, _CLIENT_DISCONNECTED)
        stream.check_due = loop.time() + CHECK_SECONDS
        stream.beat_due = loop.time() + HEARTBEAT_SECONDS
        self._streams.append(stream)
        left = _FIRST_SECONDS - (time.perf_counter() - exchange.received_at)
        loop.call_later(max(left, _LEAST_SECONDS), self._refuse_unstarted, stream)
        if self._timer is None:
            self._timer = loop.call_later(_SWEEP_SECONDS, self._start_sweep)

    def _respond(self, exchange: Exchange, response: Response) -> None:
        headers = (*response.headers, *self._error_headers)
        exchange.respond(response.status, response.body, response.content_type, headers)

    def _refuse_unstarted(self, stream: Stream) -> None:
        """Refuse a stream for which nothing could be read in time: its client can try another manager."""
        if stream.over or stream.revision:
            return
        error = Unreachable("the secrets' revisions cannot be read at the moment", hint="try again")
        response = exception_response(error)
        self._respond(stream.exchange, response)
        self._close(stream, response.status)

    def _start_sweep(self) -> None:
        self._greenlets.start(self._try_to_sweep, on_done=self._schedule_sweep)

    def _schedule_sweep(self, _: None) -> None:
        loop = asyncio.get_running_loop()
        wanted = self._streams and not self._stopped
        self._timer = loop.call_later(_SWEEP_SECONDS, self._start_sweep) if wanted else None

    def _try_to_sweep(self) -> None:
        try:
            self._sweep()
        except Exception as error:  # without the next sweep no stream would be checked any more
            log_bug(error)

    def _sweep(self) -> None:
        """Check the tokens that are due, by elapsed time, however busy a stream is; send heartbeats."""
        now = asyncio.get_running_loop().time()
        valid: dict[str, bool] = {}  # the replicas of a deployment may share a token
        while self._streams and self._streams[0].check_due <= now and not self._stopped:
            stream = self._streams[0]
            if not stream.over and stream.authorization not in valid:
                valid[stream.authorization] = self._is_valid(stream.authorization)  # may wait
            if self._stopped:
                return
            self._streams.popleft()
            if stream.over:
                continue
            if not valid[stream.authorization]:
                self._end(stream)
                continue
            if stream.beat_due <= now:
                stream.beat()
                stream.beat_due = now + HEARTBEAT_SECONDS
            stream.check_due = now + CHECK_SECONDS
            self._streams.append(stream)

    def _is_valid(self, authorization: str) -> bool:
        try:
            return self._authenticator.knows_key(authorization)
        except GussetError:  # such as an altered row: the next stream is refused, too
            return False

    def _end(self, stream: Stream) -> None:
        stream.end()
        self._close(stream, 200)

    def _close(self, stream: Stream, status: int) -> None:
        """Forget a stream that has ended, or whose client has gone."""
        stream.closed = True
        self._change_feed.unsubscribe(stream)
        self._of_deployment[stream.deployment_id] -= 1
        if not self._of_deployment[stream.deployment_id]:
            del self._of_deployment[stream.deployment_id]
        self._count(stream.exchange, status)

    def stop(self) -> None:
        """End every stream; further ones end at once."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for stream in self._streams:
            if not stream.over:
                self._end(stream)
        self._streams.clear()


def _authorization_of(exchange: Exchange) -> str:
    return (exchange.header(b"authorization") or b"").decode("latin-1")
