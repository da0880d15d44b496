"""A deployment's source of secrets over HTTP: reads them from a manager and follows their changes."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from gusset.backoff import Backoff
from gusset.client.manager_client import TIMEOUT, ManagerClient
from gusset.errors import Denied, GussetError, NotSignedIn
from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("gusset.client")

STREAM_TIMEOUT = (
    25.0  # seconds without an event, after which a stream is opened again; heartbeats are more frequent
)
MAX_HITS = 200  # in one report to the manager
MAX_TIMES = 2**40  # of one hit in one report
FIRST_RETRY = 0.5  # seconds
REFUSED_RETRY = 60.0  # seconds until a refused token is tried again: it hardly ever becomes valid


class ManagerSource:
    """A deployment's secrets, read from a manager with the deployment's token: a `SecretSource`.

    A refused token is never replaced: the values read before stay in use, and `last_error` says so.
    """

    def __init__(self, client: ManagerClient, *, registered: Collection[str] | None = None) -> None:
        """`client` sends the token. `registered` are the names for which this process got it.

        Such a token is revoked by `close`. It is None for a token that the user has given.
        """
        self._client = client
        self._registered = registered
        self._replica = token_hex(8)
        self._revision: str | None = None
        self._versions: dict[str, int] = {}
        self._watching = False
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
        response = self._fetch(names)
        secrets, origin = response["secrets"], f"the manager at {self._client.host}"
        self._revision = response["revision"]
        self._versions = {name: secret["version"] for name, secret in secrets.items()}
        if self._watching:  # on a thread: the caller need not wait for it
            threading.Thread(target=self._acknowledge, name="gusset-acknowledge", daemon=True).start()
        return {
            name: Delivered(SecretValue(base64.b64decode(secret["value"])), secret["version"], origin)
            for name, secret in secrets.items()
        }

    def _fetch(self, names: Collection[str]) -> dict[str, Any]:
        wanted = sorted(names)
        if self._registered is not None and (added := sorted(set(wanted).difference(self._registered))):
            raise Denied(
                f"{', '.join(added)} was not declared when this process registered at the manager; "
                "restart `gusset serve` to read it"
            )
        return self._client.request("POST", "/v1/deployment/secrets", {"names": wanted})

    def record_hits(self, hits: Mapping[Hit, int]) -> None:
        """Report to the manager what was masked.

        Raises:
            NotSignedIn, Denied, Unreachable: see `ManagerClient`.
        """
        rows = [
            {"secret": hit.secret, "form": hit.form, "channel": hit.channel, "times": min(times, MAX_TIMES)}
            for hit, times in hits.items()
            if hit.secret in self._versions
        ]
        for start in range(0, len(rows), MAX_HITS):
            body = {"hits": rows[start : start + MAX_HITS]}
            self._client.request("POST", "/v1/deployment/masked", body)

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when one of `names` may have changed. Holds one request open, and retries when it breaks."""
        backoff = Backoff(FIRST_RETRY)
        with _StreamCloser(stop) as closer:
            while not stop.is_set():
                delay = 0.0
                try:
                    for event in self._events(closer):
                        self._clear_error()
                        backoff.reset()
                        if event["event"] == "changed":
                            yield
                except NotSignedIn as error:
                    self._record_error(f"{error.message}; {self._remedy()}")
                    delay = REFUSED_RETRY
                except GussetError as error:
                    self._record_error(error.message)
                # The jitter keeps replicas from returning all at once.
                delay += random.uniform(0, backoff.next_delay())  # noqa: S311  # nothing depends on its secrecy
                if stop.wait(delay):
                    return

    def _remedy(self) -> str:
        """What a person can do about a refused token: this process does not get another one by itself."""
        if self._registered is None:
            return "put a valid token into the token file, then restart this process"
        return "restart this process, which registers the deployment again"

    def _events(self, closer: _StreamCloser) -> Iterator[dict[str, Any]]:
        """The events of one stream, until it ends."""
        import httpx  # slow to import

        client = self._client
        query = {"replica": self._replica} | ({"since": self._revision} if self._revision else {})
        timeout = httpx.Timeout(TIMEOUT, read=STREAM_TIMEOUT)
        try:
            with client.http.stream(
                "GET", "/v1/deployment/changes", params=query, headers=client.auth_headers(), timeout=timeout
            ) as response:
                if response.status_code != 200:
                    client.parse_response(response.status_code, response.read())
                closer.follow(response)
                self._acknowledge()
                self._watching = True
                for line in response.iter_lines():
                    yield json.loads(line)
        except (httpx.HTTPError, httpx.StreamError, ValueError, KeyError) as error:
            if not closer.stopped:
                raise client.unreachable(error) from None
        finally:
            closer.follow(None)

    def _acknowledge(self, *, stopped: bool = False) -> None:
        """Report the versions that this replica holds. Only people read them, so a failure is ignored."""
        body = {"host": socket.gethostname()[:253], "versions": self._versions, "stopped": stopped}
        with contextlib.suppress(GussetError):
            self._client.request("PUT", f"/v1/deployment/replicas/{self._replica}", body)

    def _record_error(self, message: str) -> None:
        if self._last_error is None:
            self._last_error = f"{message}; since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            log.warning(
                "Changes of secrets are not followed, the values read before stay in use: %s", message
            )

    def _clear_error(self) -> None:
        if self._last_error is not None:
            self._last_error = None
            log.info("The manager at %s responds again.", self._client.host)

    def close(self) -> None:
        """Report that the replica has stopped, revoke a registered token, and close the connections."""
        self._watching = False
        self._acknowledge(stopped=True)
        if self._registered is not None:
            with contextlib.suppress(GussetError):
                self._client.request("DELETE", "/v1/deployment/token")
        self._client.close()


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
            self._close()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            if self._exited:
                return
        self._close()

    def _close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # wakes the thread that is receiving

    def __enter__(self) -> _StreamCloser:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exited = True
