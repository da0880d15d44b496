"""A deployment's source of secrets over HTTP: reads them from a manager and follows their changes."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gusset.backoff import Backoff
from gusset.bugs import log_bug
from gusset.client.manager_client import TIMEOUT, ManagerClient
from gusset.client.replica_lease import END_TIMEOUT, ReplicaLease
from gusset.errors import Denied, GussetError, NotSignedIn, TooManyAttempts, Unreachable
from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import Delivered, Previous
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("gusset.client")

STREAM_TIMEOUT = (
    25.0  # seconds without an event, after which a stream is opened again; heartbeats are more frequent
)
CLOSE_TIMEOUT = 3.0  # seconds
MAX_HITS = 200  # in one report to the manager
MAX_TIMES = 2**40  # of one hit in one report
FIRST_RETRY, LONGEST_RETRY = 0.5, 4.0  # seconds
REFUSED_RETRY = 60.0  # seconds until a refused token is tried again: it hardly ever becomes valid


class ManagerSource:
    """A deployment's secrets, read from a manager with the deployment's token: a `SecretSource`.

    A refused token is never replaced, unless it was exchanged for one of the platform's, which is then
    exchanged again. While that is refused, the values read before stay in use, and `last_error` says so.
    """

    def __init__(self, client: ManagerClient, *, registered: Collection[str] | None = None) -> None:
        """`client` sends the token. `registered` are the names for which this process got it.

        Such a token is revoked by `close`. It is None for a token that the user has given.
        """
        self._client = client
        self._registered = registered
        self._lease = ReplicaLease(client, on_lost=self._fetch_again)
        self._revision: str | None = None
        self._outdated = False  # the values must be fetched again
        self._closer: _StreamCloser | None = None  # of the open stream
        self._last_error: str | None = None

    @property
    def last_error(self) -> str | None:
        """Why changes are not being followed at the moment, and since when; None while they are."""
        return self._last_error

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that the manager has.

        Raises:
            Denied: the token does not allow all of them.
            NotSignedIn: the token is not valid.
            Unreachable: the manager does not respond.
        """
        try:
            response = self._fetch(names)
        except NotSignedIn as error:
            if self._revision is not None:  # it was valid before
                self._record_error(f"{error.message}; {self._remedy()}")
            raise
        origin = f"the manager at {self._client.host}"
        try:
            values = {
                name: Delivered(_value(secret), secret["version"], origin, _previous(secret))
                for name, secret in response["secrets"].items()
            }
            revision = response["revision"]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._client.not_a_manager() from None
        self._revision = revision
        self._lease.on_fetched(response)
        return values

    def _fetch(self, names: Collection[str]) -> dict[str, Any]:
        wanted = sorted(names)
        if self._registered is not None and (added := sorted(set(wanted).difference(self._registered))):
            raise Denied(
                f"{', '.join(added)} was not declared when this process registered at the manager; "
                "restart `gusset serve` to read it"
            )
        return self._client.request(
            "POST", "/v1/deployment/secrets", {"names": wanted}, headers=self._lease.headers
        )

    @contextlib.contextmanager
    def reading_once(self) -> Iterator[ManagerSource]:
        """A source with a lease of its own, which ends with the context."""
        source = ManagerSource(self._client, registered=self._registered)
        source._lease.start()
        try:
            yield source
        finally:
            source._lease.end()

    def record_hits(self, hits: Mapping[Hit, int]) -> None:
        """Report to the manager what was masked.

        Raises:
            NotSignedIn, Denied, Unreachable: see `ManagerClient`.
        """
        rows = [
            {"secret": hit.secret, "form": hit.form, "channel": hit.channel, "times": min(times, MAX_TIMES)}
            for hit, times in hits.items()
            if hit.secret in self._lease.fetched
        ]
        for start in range(0, len(rows), MAX_HITS):
            body = {"hits": rows[start : start + MAX_HITS]}
            self._client.request("POST", "/v1/deployment/masked", body)

    def acknowledge(self, versions: Mapping[str, int]) -> None:
        """Report that these versions are in use from now on, and no older ones."""
        self._lease.acknowledge(versions)

    def record_used(self, used: Mapping[str, int]) -> None:
        """Report that these versions were used."""
        self._lease.record_used(used)

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when one of `names` may have changed. Holds one request open, and retries when it breaks.

        It does so within `LONGEST_RETRY` seconds, unless the manager has refused the token, or limits
        requests. Meanwhile it renews the lease.
        """
        backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
        self._lease.start()
        with _StreamCloser(stop) as self._closer:
            while not stop.is_set():
                failure: GussetError | None = None
                used = self._client.url
                try:
                    for event in () if self._outdated else self._events(self._closer):
                        self._clear_error()
                        backoff.reset()
                        if event["event"] != "beat":
                            self._lease.report_again()
                        if event["event"] == "changed":
                            yield
                except GussetError as error:
                    failure = error
                    self._on_failure(error, used)
                if self._outdated and not stop.is_set():  # else the next watch has to yield
                    self._outdated = False
                    yield
                    continue
                if stop.wait(_pause_after(failure, backoff.next_delay())):
                    return

    def _on_failure(self, error: GussetError, url: str) -> None:
        """Record why changes are not followed. Turn to another manager when the one at `url` fails."""
        if isinstance(error, NotSignedIn):
            self._record_error(f"{error.message}; {self._remedy()}")
            return
        self._record_error(error.message)
        if isinstance(error, Unreachable) and not isinstance(error, TooManyAttempts):
            self._client.use_another_than(url)

    def _fetch_again(self) -> None:
        """Have `watch` yield: the manager does not know this replica, or not the values that it holds."""
        self._outdated = True
        if self._closer is not None:
            self._closer.close()

    def _remedy(self) -> str:
        """What a person can do about a refused token: this process does not get another one by itself."""
        if self._client.exchanges_tokens:
            return "access was revoked, or was never given: compare the token with `gusset identity list`"
        if self._registered is None:
            return "put a valid token into the token file, then restart this process"
        return "restart this process, which registers the deployment again"

    def _events(self, closer: _StreamCloser) -> Iterator[dict[str, Any]]:
        """The events of one stream, until it ends."""
        import httpx  # slow to import

        client, sent = self._client, self._client.auth_headers()
        query = {"since": self._revision} if self._revision else {}
        timeout = httpx.Timeout(TIMEOUT, read=STREAM_TIMEOUT)
        try:
            with client.http.stream(
                "GET", "/v1/deployment/changes", params=query, headers=sent, timeout=timeout
            ) as response:
                if response.status_code == 401 and client.drop_token(sent):
                    return  # a new one is exchanged for the next stream
                if response.status_code != 200:
                    response.read()
                    client.parse_response(response)
                closer.follow(response)
                if self._outdated:  # since before there was a stream that could be closed
                    return
                for line in response.iter_lines():
                    event = json.loads(line)
                    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                        raise client.not_a_manager()
                    yield event
        except (httpx.HTTPError, httpx.StreamError, ValueError, KeyError) as error:
            if not closer.stopped and not self._outdated:
                raise client.unreachable(error) from None
        finally:
            closer.follow(None)

    def _record_error(self, message: str) -> None:
        if self._last_error is None:
            self._last_error = f"{message}; since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            log.warning(
                "Changes to secrets cannot be followed; the values read before stay in use: %s", message
            )

    def _clear_error(self) -> None:
        if self._last_error is not None:
            self._last_error = None
            log.info("The manager at %s responds again.", self._client.host)

    def close(self) -> None:
        """Report that the replica has stopped, revoke a registered token, and close the connections.

        It takes at most `CLOSE_TIMEOUT` seconds: what stops may be killed soon.
        """
        # On a thread, since looking up a name or exchanging a token can take longer than any time-out.
        closing = threading.Thread(target=self._close, name="gusset-source-closer", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT)

    def _close(self) -> None:
        # This may go on after `close`, while `gusset exec` waits for signals on the main thread.
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            if self._lease.end() and self._registered is not None:
                with contextlib.suppress(GussetError):
                    timeout = self._client.share(END_TIMEOUT)
                    self._client.request("DELETE", "/v1/deployment/token", timeout=timeout)
            self._client.close()
        except Exception as error:
            log_bug(log, error)


def _pause_after(failure: GussetError | None, backoff: float) -> float:
    """For how long to wait before the next stream. The jitter keeps replicas from returning all at once."""
    least, longest = 0.0, LONGEST_RETRY
    if isinstance(failure, NotSignedIn):
        least, longest = REFUSED_RETRY, REFUSED_RETRY + LONGEST_RETRY
    elif isinstance(failure, Unreachable) and failure.retry_after:
        if isinstance(failure, TooManyAttempts):  # it was meant for this client, unlike the one of an outage
            least, longest = failure.retry_after, failure.retry_after + LONGEST_RETRY
        else:
            least = min(failure.retry_after, LONGEST_RETRY / 2)
    return random.uniform(least, min(least + backoff, longest))  # noqa: S311  # nothing depends on its secrecy


def _value(secret: Mapping[str, Any]) -> SecretValue:
    return SecretValue(base64.b64decode(secret["value"]))


def _previous(secret: Mapping[str, Any]) -> Previous | None:
    previous = secret.get("previous")  # a manager of an older version has none
    if previous is None:
        return None
    return Previous(_value(previous), previous["version"], time.monotonic() + previous["ends_in"])


class _StreamCloser:
    """Closes a stream that is waiting for its next line, once `stop` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._socket: Any = None
        self._exited = False
        self._thread = threading.Thread(target=self._run, name="gusset-watch-closer", daemon=True)

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def follow(self, response: httpx.Response | None) -> None:
        """Set the stream to close; None for none."""
        with self._lock:
            self._socket = (
                response.extensions["network_stream"].get_extra_info("socket") if response else None
            )
        if self._stop.is_set():
            self.close()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            if self._exited:
                return
        self.close()

    def close(self) -> None:
        """Close the stream that is open, if one is."""
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # wakes the thread that is receiving

    def __enter__(self) -> _StreamCloser:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exited = True
