"""A client with the addresses of several managers: it turns to another when one fails, and obeys refusals."""

from __future__ import annotations

import base64
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gusset.client import manager_client, manager_source
from gusset.client.manager_client import ManagerClient, checked_urls
from gusset.client.manager_source import CLOSE_TIMEOUT, STREAM_TIMEOUT, ManagerSource
from gusset.client.registration import register
from gusset.client.remote_audit import RemoteAudit
from gusset.errors import NotSignedIn, ResponseLost, TooManyAttempts, Unreachable, UsageError
from gusset.secrets.value import SecretValue
from tests.conftest import seconds_since
from tests.serving.conftest import eventually

NOBODY = "http://127.0.0.1:9"
KEY = SecretValue(b"gusset_tok_aaaaaaaa_" + b"A" * 43)
Response = tuple[
    int, dict[str, Any] | bytes, dict[str, str]
]  # status, body as JSON or encoded already, headers


class FakeManager:
    """Responds as `respond` says, given method and path; keeps each request's path and headers."""

    def __init__(self, respond: Callable[[str, str], Response]) -> None:
        outer = self
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.respond = respond

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.command, self.path, headers))
                status, body, more = outer.respond(self.command, self.path)
                data = (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n"
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = handle_request

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def count(self, method: str, path: str) -> int:
        return sum(each[:2] == (method, path) for each in self.requests)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


FakeManagers = Callable[[Callable[[str, str], Response]], FakeManager]


@pytest.fixture
def fake() -> Iterator[FakeManagers]:
    made: list[FakeManager] = []

    def make(respond: Callable[[str, str], Response]) -> FakeManager:
        made.append(FakeManager(respond))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def good(method: str, path: str) -> Response:
    return 200, {"name": "x"}, {}


def busy(method: str, path: str) -> Response:
    return 503, {"code": "unreachable", "message": "the database is away"}, {"retry-after": "7"}


def test_a_list_of_addresses_is_checked_as_one_is() -> None:
    assert checked_urls("https://a/, https://b,https://a") == ("https://a", "https://b")
    for wrong in ("https://a,", "https://a,ftp://b", "https://a,http://b"):
        with pytest.raises(UsageError):
            checked_urls(wrong)


def test_the_next_manager_is_tried_and_used_from_then_on(fake: FakeManagers) -> None:
    """When one cannot be reached, or responds with 503."""
    first, second = fake(busy), fake(good)
    for _ in range(4):
        with closing(ManagerClient(f"{NOBODY},{first.url},{second.url}", KEY)) as client:
            for _ in range(3):
                assert client.request("GET", "/v1/secrets") == {"name": "x"}
            assert client.url == second.url
    assert len(second.requests) == 12 and len(first.requests) <= 4


@pytest.mark.parametrize(
    "path", ["/v1/secrets", "/v1/deployments", "/v1/deployments/d", "/v1/deployment/masked"]
)
def test_a_write_has_the_same_idempotency_key_at_each_manager(fake: FakeManagers, path: str) -> None:
    """The second manager does not do again what the first may have done, nor counts it again."""
    first, second = fake(busy), fake(busy)
    with closing(ManagerClient(f"{first.url},{second.url}", KEY)) as client:
        for _ in range(2):
            with pytest.raises(Unreachable) as failed:
                client.request("POST", path, {"name": "x"})
    assert failed.value.retry_after == 7
    keys = [each[2]["idempotency-key"] for each in (*first.requests, *second.requests)]
    assert len(keys) == 4 and len(set(keys)) == 2


LOST: Response = (
    409,
    {
        "code": "response_lost",
        "message": "it made the token abc, which is shown only once",
        "hint": "send a key",
    },
    {},
)


def test_a_process_gets_another_token_when_that_of_a_failed_manager_is_lost(
    fake: FakeManagers, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts, and the log names the token that nobody got."""
    keys: list[str] = []

    def respond(method: str, path: str) -> Response:
        keys.append(manager.requests[-1][2]["idempotency-key"])
        return LOST if len(keys) == 1 else (200, {"token": "gusset_tok_new"}, {})

    manager = fake(respond)
    with closing(ManagerClient(f"{manager.url},{NOBODY}", KEY)) as client:
        assert register(client, "d", ["x"]).reveal() == b"gusset_tok_new"
    assert len(set(keys)) == 2
    assert "the token abc" in caplog.text


def test_the_error_for_a_lost_response_says_what_is_left_to_do(fake: FakeManagers) -> None:
    """Not to send a header again that the caller has never seen."""
    with (
        closing(ManagerClient(f"{fake(lambda *_: LOST).url},{NOBODY}", KEY)) as client,
        pytest.raises(ResponseLost, match="the token abc") as lost,
    ):
        client.request("POST", "/v1/deployments", {"name": "d"})
    assert lost.value.hint is not None and "revoked" in lost.value.hint


def test_a_refusal_is_final_and_no_other_manager_is_tried(fake: FakeManagers) -> None:
    revoked = fake(lambda *_: (401, {"code": "not_signed_in", "message": "the key was revoked"}, {}))
    limited = fake(lambda *_: (429, {"code": "too_many_attempts", "message": "wait"}, {"retry-after": "9"}))
    with closing(ManagerClient(f"{revoked.url},{NOBODY}", KEY)) as client, pytest.raises(NotSignedIn):
        client.request("GET", "/v1/secrets")
    with closing(ManagerClient(limited.url, KEY)) as client, pytest.raises(TooManyAttempts) as failed:
        client.request("GET", "/v1/secrets")
    assert failed.value.retry_after == 9
    assert len(revoked.requests) == len(limited.requests) == 1


def test_a_verification_of_the_audit_log_may_take_longer_than_other_requests(
    fake: FakeManagers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager sends nothing until it is done. It is not begun anew at the next one."""
    monkeypatch.setattr(manager_client, "TIMEOUT", 0.2)
    verified = {"records": 7, "checkpoints": 1, "head": "00", "problems": []}

    def respond(method: str, path: str) -> Response:
        time.sleep(0.6)  # three times what the client waits for other requests
        return 200, verified, {}

    managers = [fake(respond), fake(respond)]
    with closing(ManagerClient(",".join(manager.url for manager in managers), KEY)) as client:
        assert RemoteAudit(client).verify() == verified
        assert sum(manager.count("POST", "/v1/audit/verify") for manager in managers) == 1
        with pytest.raises(Unreachable, match="ReadTimeout"):
            RemoteAudit(client).show(limit=1)


def test_the_audit_log_is_exported_by_the_first_manager_that_responds(fake: FakeManagers) -> None:
    """A log whose end does not come is not begun anew at the next one."""
    away, good, cut = (
        fake(respond)
        for respond in (
            busy,
            lambda *_: (200, {"seq": 1}, {}),
            lambda *_: (200, {"seq": 1}, {"content-length": "1000", "connection": "close"}),
        )
    )
    for _ in range(4):  # in random order
        with closing(ManagerClient(f"{NOBODY},{away.url},{good.url}", KEY)) as client:
            assert list(RemoteAudit(client).export()) == [{"seq": 1}]
            assert client.url == good.url
    with closing(ManagerClient(f"{NOBODY},{away.url}", KEY)) as client, pytest.raises(Unreachable):
        list(RemoteAudit(client).export())
    with closing(ManagerClient(f"{NOBODY},{cut.url}", KEY)) as client:
        records = RemoteAudit(client).export()
        assert next(records) == {"seq": 1}
        with pytest.raises(Unreachable, match="RemoteProtocolError"):
            next(records)
    assert len(cut.requests) == 1


def test_a_record_with_a_line_separator_in_a_text_is_exported(fake: FakeManagers) -> None:
    """Only a line feed ends a line: an altered record may have any other."""
    record = {"seq": 1, "actor": "a\u2028b\u0085c\u2029d"}
    exported = json.dumps(record, ensure_ascii=False).encode()
    manager = fake(lambda *_: (200, exported, {}))
    with closing(ManagerClient(manager.url, KEY)) as client:
        assert list(RemoteAudit(client).export()) == [record]


class HurriedStop(threading.Event):
    """Ends no wait later than at once, on the thread that made it; has the `pauses` that were asked for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._count = count
        self._thread = threading.current_thread()

    def wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is not self._thread:
            return super().wait(timeout)
        self.pauses.append(timeout or 0.0)
        if len(self.pauses) == self._count:
            self.set()
        return self.is_set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code", "retry_after", "least", "longest"),
    [
        (503, "unreachable", "1", 1.0, 4.0),
        (503, "unreachable", "300", 2.0, 4.0),
        (502, "", "30", 2.0, 4.0),
        (429, "too_many_attempts", "9", 9.0, 13.0),
        (401, "not_signed_in", "", 60.0, 64.0),
    ],
)
def test_a_replica_pauses_before_it_follows_changes_again(
    fake: FakeManagers, status: int, code: str, retry_after: str, least: float, longest: float
) -> None:
    """For four seconds at most; longer only when its own requests are limited, or its token is refused.

    Each at another time: replicas do not return all at once.
    """
    body = {"code": code, "message": "no"} if code else {}
    manager = fake(lambda *_: (status, body, {"retry-after": retry_after}))
    source, stop = ManagerSource(ManagerClient(manager.url, KEY)), HurriedStop(40)
    assert list(source.watch(["x"], stop)) == []
    source.close()
    assert least <= min(stop.pauses) and max(stop.pauses) <= longest
    assert max(stop.pauses) - min(stop.pauses) > 1.0


def fetched(replica: str, session_key: str | None) -> Response:
    value = {"value": base64.b64encode(b"v").decode(), "version": 1}
    body = {"secrets": {"x": value}, "revision": "1-a", "replica": replica, "session_key": session_key}
    return 200, body, {}


def test_a_replica_that_the_manager_does_not_know_fetches_again(fake: FakeManagers) -> None:
    """Such as after an older copy of the vault was restored. It stops its lease at the end."""
    released = threading.Event()

    def respond(method: str, path: str) -> Response:
        if method == "POST":
            number = manager.count("POST", path)
            return fetched(f"r{number}", f"key{number}")
        if method == "PUT" and path.endswith("/r1"):
            return 404, {"code": "not_found", "message": "there is no such replica"}, {}
        if method == "GET":
            released.wait(10)
        return 200, {"event": "hello"}, {}

    manager = fake(respond)
    source, stop, reads = ManagerSource(ManagerClient(manager.url, KEY)), threading.Event(), []

    def follow() -> None:
        reads.append(source.read(["x"]))
        for _ in source.watch(["x"], stop):
            reads.append(source.read(["x"]))

    thread = threading.Thread(target=follow)
    thread.start()
    released.set()
    eventually(lambda: manager.count("PUT", "/v1/deployment/replicas/r2") > 0)
    stop.set()
    thread.join(10)
    source.close()
    assert len(reads) >= 2 and not thread.is_alive()
    renewal = next(each for each in manager.requests if each[:2] == ("PUT", "/v1/deployment/replicas/r2"))
    assert renewal[2]["gusset-session"] == "key2"
    assert manager.requests[-1][0] == "PUT"


OPEN = {"content-length": "100000"}  # of a response whose end never comes: a stream


def test_a_replica_that_is_not_known_when_its_stream_begins_fetches_again(fake: FakeManagers) -> None:
    """The renewal was refused while the stream was being opened, and the stream then stays open."""
    opening = threading.Event()

    def respond(method: str, path: str) -> Response:
        if method == "POST":
            number = manager.count("POST", path)
            return fetched(f"r{number}", f"key{number}")
        if method == "PUT" and path.endswith("/r1"):
            opening.wait(10)
            return 404, {"code": "not_found", "message": "there is no such replica"}, {}
        if method == "GET" and not opening.is_set():
            opening.set()
            eventually(lambda: source._outdated)
        return 200, {"event": "hello"}, OPEN if method == "GET" else {}

    manager = fake(respond)
    source, stop = ManagerSource(ManagerClient(manager.url, KEY)), threading.Event()

    def follow() -> None:
        source.read(["x"])
        for _ in source.watch(["x"], stop):
            source.read(["x"])

    thread = threading.Thread(target=follow)
    thread.start()
    try:  # for less than STREAM_TIMEOUT: after that a stream without events is closed
        eventually(
            lambda: manager.count("PUT", "/v1/deployment/replicas/r2") > 0, patience=STREAM_TIMEOUT - 5
        )
    finally:
        stop.set()
        thread.join(10)
        source.close()
    assert not thread.is_alive()


# What something in front of the manager may respond while that is being maintained.
FOREIGN: list[dict[str, Any]] = [
    {"status": "maintenance"},
    {"event": {"kind": "changed"}},
    {"secrets": [], "revision": "1-a"},
    {"secrets": {"x": {"value": "abc", "version": 1}}, "revision": "1-a"},
]


def test_an_export_that_is_not_a_managers_is_refused(fake: FakeManagers) -> None:
    manager = fake(lambda *_: (200, ["not", "a record"], {}))
    refused = pytest.raises(Unreachable, match="does not respond as a gusset manager does")
    with closing(ManagerClient(manager.url, KEY)) as client, refused:
        list(RemoteAudit(client).export())


@pytest.mark.parametrize("body", FOREIGN)
def test_values_that_are_not_from_a_manager_are_refused(fake: FakeManagers, body: dict[str, Any]) -> None:
    """As those of a manager that does not respond; what was read before stays valid."""
    manager = fake(lambda *_: (200, body, {}))
    with closing(ManagerSource(ManagerClient(manager.url, KEY))) as source:
        with pytest.raises(Unreachable, match="does not respond as a gusset manager does"):
            source.read(["x"])
        manager.respond = lambda *_: fetched("r1", "key1")
        assert source.read(["x"])["x"].value.reveal() == b"v"


@pytest.mark.parametrize("body", FOREIGN[:2])
def test_changes_are_followed_again_after_another_server_has_responded(
    fake: FakeManagers, body: dict[str, Any]
) -> None:
    """Meanwhile the source says that it cannot follow them."""
    maintained = threading.Event()

    def respond(method: str, path: str) -> Response:
        if method == "GET" and maintained.is_set():
            return 200, {"event": "changed"}, OPEN
        return 200, body, {}

    manager = fake(respond)
    source, stop, woken = ManagerSource(ManagerClient(manager.url, KEY)), threading.Event(), threading.Event()

    def follow() -> None:
        for _ in source.watch(["x"], stop):
            woken.set()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        eventually(lambda: source.last_error is not None)
        assert "does not respond as a gusset manager does" in str(source.last_error)
        maintained.set()
        assert woken.wait(10)
        assert source.last_error is None
    finally:
        stop.set()
        thread.join(10)
        source.close()


@pytest.fixture
def silenced() -> Iterator[threading.Event]:
    """While it is set, managers of `silent_while` accept requests and do not respond."""
    event = threading.Event()
    yield event
    event.clear()


def silent_while(silenced: threading.Event) -> Callable[[str, str], Response]:
    def respond(method: str, path: str) -> Response:
        while silenced.is_set():
            time.sleep(0.02)
        return fetched("r1", "key1")

    return respond


def test_a_replica_stops_soon_though_no_manager_responds(
    fake: FakeManagers, silenced: threading.Event
) -> None:
    """It does not wait at each address for the report that it has stopped, then for that of its token."""
    urls = ",".join(fake(silent_while(silenced)).url for _ in range(2))
    source = ManagerSource(ManagerClient(urls, KEY), registered=["x"])
    source.read(["x"])
    silenced.set()
    began = time.monotonic()
    source.close()
    assert seconds_since(began) < CLOSE_TIMEOUT + 1


def test_what_goes_on_after_a_stop_takes_no_signals(
    fake: FakeManagers, silenced: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gusset exec` has read its values then, and waits for the signal that its command has ended."""
    monkeypatch.setattr(manager_source, "CLOSE_TIMEOUT", 0.2)
    source = ManagerSource(ManagerClient(fake(silent_while(silenced)).url, KEY), registered=["x"])
    source.read(["x"])
    silenced.set()
    source.close()
    [closer] = [each for each in threading.enumerate() if each.name == "gusset-source-closer"]
    status = Path(f"/proc/self/task/{closer.native_id}/status").read_text()
    [blocked] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:")]
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGCHLD, signal.SIGTERM))
    silenced.clear()
    closer.join(10)
    assert not closer.is_alive()


def test_a_replica_that_stops_reports_it_to_the_manager_that_responds(
    fake: FakeManagers, silenced: threading.Event
) -> None:
    """And revokes its token there."""
    silent, other = fake(silent_while(silenced)), fake(lambda *_: fetched("r1", "key1"))
    client = ManagerClient(f"{silent.url},{other.url}", KEY)
    client.use_another_than(other.url)
    source = ManagerSource(client, registered=["x"])
    source.read(["x"])
    silenced.set()
    source.close()
    assert [each[:2] for each in other.requests] == [
        ("PUT", "/v1/deployment/replicas/r1"),
        ("DELETE", "/v1/deployment/token"),
    ]
