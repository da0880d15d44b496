"""When a replica renews its lease, and what it does when the manager does not know the lease."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import pytest

from gusset.client.manager_client import ManagerClient
from gusset.client.replica_lease import ReplicaLease, seconds_to_renewal
from gusset.errors import NotFound
from gusset.secrets.value import SecretValue
from tests.serving.conftest import eventually

Report = Mapping[str, Any] | None


@pytest.mark.parametrize("now", [0.0, 1_790_000_000.0, 1_790_000_000.1, 1_790_000_000.2499, -0.3])
def test_renewals_of_all_replicas_meet_at_quarters_of_a_second(now: float) -> None:
    """Less than 8 s after the last one, whatever the clock says; and not all replicas at the same one."""
    delays = [seconds_to_renewal(now) for _ in range(500)]
    assert all(7.0 <= delay <= 7.8 for delay in delays)
    quarters = {round((now + delay) * 4, 3) for delay in delays}
    assert all(quarter == round(quarter) for quarter in quarters)
    assert len(quarters) >= 3


class ScriptedClient(ManagerClient):
    """Has the path, the session key and the report of each renewal; `respond` may raise instead of renewing."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9", SecretValue(b"unused"))
        self.renewals: list[tuple[str, str, Report]] = []
        self.respond: Callable[[int], object] = lambda _: None

    def request(
        self, method: str, path: str, body: Report = None, *, headers: Mapping[str, str] = {}, **_: Any
    ) -> dict[str, Any]:
        self.renewals.append((path.rpartition("/")[2], headers["gusset-session"], body))
        self.respond(len(self.renewals))
        return {}


def fetched(number: int) -> dict[str, Any]:
    return {
        "replica": f"r{number}",
        "session_key": f"key{number}",
        "secrets": {"x": {"version": number}},
    }


@contextmanager
def renewing(client: ScriptedClient, on_lost: Callable[[], object]) -> Iterator[ReplicaLease]:
    """A lease that is renewed at once, as r1 with key1."""
    lease = ReplicaLease(client, on_lost)
    lease.on_fetched(fetched(1))
    with closing(client):
        try:
            yield lease
        finally:
            client.respond = lambda _: None
            lease.end()


def refuse() -> None:
    raise NotFound("there is no such replica")


def test_a_late_refusal_of_an_older_lease_leaves_the_new_one() -> None:
    """The values were fetched again while the renewal was on its way."""
    client, lost = ScriptedClient(), threading.Event()

    def respond(number: int) -> None:
        if number == 1:
            lease.on_fetched(fetched(2))
            refuse()

    with renewing(client, lost.set) as lease:
        client.respond = respond
        lease.start()
        eventually(lambda: len(client.renewals) > 1)
    assert client.renewals[1][:2] == ("r2", "key2") and client.renewals[1][2]
    assert not lost.is_set()


@pytest.mark.parametrize(
    "report",
    [lambda lease: lease.record_used({"x": 1}), lambda lease: lease.acknowledge({"x": 1})],
    ids=["record_used", "acknowledge"],
)
def test_a_lost_lease_is_noticed_whatever_was_to_be_reported(
    report: Callable[[ReplicaLease], object],
) -> None:
    """A look-up or an acknowledgement during the refused renewal does not stand for a new fetch."""
    client, lost = ScriptedClient(), threading.Event()

    def respond(number: int) -> None:
        report(lease)
        refuse()

    with renewing(client, lost.set) as lease:
        client.respond = respond
        lease.start()
        assert lost.wait(10)


def test_a_lost_lease_is_not_given_up_when_the_first_attempt_has_no_effect() -> None:
    """As long as the replica has no lease, it has the values fetched again, after growing pauses."""
    client, attempts = ScriptedClient(), []

    def on_lost() -> None:
        attempts.append(None)
        if len(attempts) == 1:
            lease.record_used({"x": 1})
        else:
            lease.on_fetched(fetched(2))

    with renewing(client, on_lost) as lease:
        client.respond = lambda number: refuse() if number == 1 else None
        lease.start()
        eventually(lambda: len(client.renewals) > 1)
    assert client.renewals[1][:2] == ("r2", "key2")
    assert len(attempts) == 2


@pytest.mark.parametrize("event", ["new lease", "stream opened"])
def test_everything_is_reported_again_if_that_becomes_necessary_during_a_renewal(event: str) -> None:
    """The manager has not this report: it belongs to the older lease, or was lost with the manager."""
    client = ScriptedClient()

    def respond(number: int) -> None:
        if number == 1:
            if event == "new lease":
                lease.on_fetched(fetched(2))
            else:
                lease.report_again()
                lease.on_fetched({**fetched(1), "session_key": None})

    with renewing(client, lambda: None) as lease:
        lease.acknowledge({"x": 1})
        client.respond = respond
        lease.start()
        eventually(lambda: len(client.renewals) > 1)
    assert all(report is not None and report["versions"] == {"x": 1} for _, _, report in client.renewals[:2])


def test_a_lease_is_renewed_after_an_unexpected_error(caplog: pytest.LogCaptureFixture) -> None:
    """The log says where it was raised, without its message, which may hold a value."""
    client = ScriptedClient()

    def respond(number: int) -> None:
        if number == 1:
            lease.acknowledge({"x": 1})  # so that the next renewal is now
            raise KeyError("s3cret-in-a-message")

    with renewing(client, lambda: None) as lease:
        client.respond = respond
        lease.start()
        eventually(lambda: len(client.renewals) > 1)
    assert client.renewals[1][:2] == ("r1", "key1") and client.renewals[1][2]
    assert "A bug in gusset: KeyError at test_replica_lease.py" in caplog.text
    assert "s3cret" not in caplog.text
