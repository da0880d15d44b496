"""The wait for a rotation, and the lease of a replica in the processes that share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from gusset.client.remote_rotations import RemoteRotations
from gusset.client.replica_lease import ReplicaLease
from gusset.client.rotation import ReplicaStatus, RotationStatus, wait_for_rotation
from gusset.errors import Conflict, NotAcknowledged, SecretNotFound, Unreachable
from gusset.rotation.state import ProviderRotation, Step

FETCHED = {"replica": "r1", "session_key": "key", "secrets": {"x": {"version": 2}}}


def status(*states: str, current: int | None = 2, secret_id: str = "s1") -> RotationStatus:
    replicas = [
        ReplicaStatus(
            id=f"r{number}", deployment="d", host="h", state=state, version=1, used=None, seen_at=""
        )
        for number, state in enumerate(states)
        if state
    ]
    return RotationStatus(
        secret_id=secret_id, name="x", version=2, current_version=current, replicas=replicas
    )


def wait(steps: Sequence[RotationStatus | Exception], timeout: float = 5.0) -> RotationStatus:
    """Wait with these results of reads; the last one is repeated."""
    left = list(steps)

    def read() -> RotationStatus:
        step = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(step, Exception):
            raise step
        return step

    return wait_for_rotation(read, secret_id="s1", version=2, timeout=timeout)


def test_it_ends_when_all_have_acknowledged_or_stopped() -> None:
    done = wait([status("waiting", "waiting"), Unreachable("away"), status("stopped", "acknowledged")])
    assert done.acknowledged == 2
    assert wait([status()]).replicas == []


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([status("waiting"), status("unknown", "acknowledged")], "r0.*unknown"),
        ([status("waiting", "waiting"), status("", "acknowledged")], "r0.*unknown"),  # the manager forgot it
        ([status("waiting"), status("waiting", current=1)], "destroyed"),
        ([status("waiting"), status("waiting", current=None)], "destroyed"),
        ([status("waiting"), SecretNotFound("gone")], "deleted"),
        ([status("waiting"), status(secret_id="s2")], "deleted"),  # the name has another secret now
    ],
)
def test_it_ends_at_once_when_the_rest_is_lost(
    steps: Sequence[RotationStatus | Exception], message: str
) -> None:
    """Or when the version is no longer the one that matters: nobody waits for the time-out in vain."""
    with pytest.raises(NotAcknowledged, match=message):
        wait(steps, timeout=1000)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (status("waiting"), "timed out after 0.2 s"),
        (Unreachable("away"), "state of the replicas is unknown.*away"),
    ],
)
def test_it_never_ends_well_when_its_time_is_over(last: RotationStatus | Exception, message: str) -> None:
    """Also if a manager that does not respond had reported progress before."""
    with pytest.raises(NotAcknowledged, match=message):
        wait([status("waiting"), last], timeout=0.2)


def test_a_host_name_cannot_forge_a_line_of_the_message() -> None:
    """A replica reports its own name, and the message goes to a terminal or a log of CI."""
    [replica] = status("waiting").replicas
    shown = replace(replica, host="h\nreplaced x; all 1 replicas use it\x1b[2K").describe()
    assert len(shown.splitlines()) == 1 and "\x1b" not in shown


class Client:
    """Records the requests of a lease."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def request(self, method: str, path: str, body: object = None, **_: object) -> dict[str, object]:
        self.sent.append((path, body))
        return {}

    def share(self, seconds: float) -> float:
        return seconds


def in_fork(function: Callable[[], bool]) -> bool:
    """What `function` returns in a fork of this process."""
    child = os.fork()
    if child == 0:
        status = 1  # also if `function` raises: this process must not go on with the tests
        try:
            status = 0 if function() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_has_no_part_in_the_lease_of_its_parent() -> None:
    """It neither renews nor ends it, and acknowledges nothing for it; its first fetch begins another lease."""
    client = Client()
    lease = ReplicaLease(client, on_lost=lambda: None)  # type: ignore[arg-type]
    lease.on_fetched(FETCHED)
    assert lease.headers == {"gusset-session": "key"}

    def child() -> bool:
        lease.acknowledge({"x": 2})
        lease.end()
        is_new = client.sent == [] and lease.headers == {}
        lease.on_fetched(FETCHED | {"replica": "r2", "session_key": "other"})
        return is_new and lease.headers == {"gusset-session": "other"}

    assert in_fork(child)
    lease.end()
    assert client.sent == [("/v1/deployment/replicas/r1", {"stopped": True})]


def test_a_fetch_reports_no_version_until_it_is_acknowledged() -> None:
    client = Client()
    lease = ReplicaLease(client, on_lost=lambda: None)  # type: ignore[arg-type]
    lease.on_fetched(FETCHED)
    assert "versions" not in lease._report()
    lease.acknowledge({"x": 2})
    lease.record_used({"x": 2})
    lease.record_used({"x": 1})
    report = lease._report()
    assert (report["versions"], report["used"]) == ({"x": 2}, {"x": 2})


def test_what_was_used_of_another_secret_of_the_name_is_reported_no_more() -> None:
    """The new secret numbers its versions from 1; the use of its first one is reported."""
    lease = ReplicaLease(Client(), on_lost=lambda: None)  # type: ignore[arg-type]
    lease.acknowledge({"x": 3})
    lease.record_used({"x": 3})
    lease.acknowledge({})
    lease.acknowledge({"x": 1})
    assert lease._report()["used"] == {}
    lease.record_used({"x": 1})
    assert lease._report()["used"] == {"x": 1}


class Manager:
    """Responds to reads of a rotation, one response after the other."""

    def __init__(self, *responses: dict[str, object]) -> None:
        self._responses = list(responses)

    def request(self, *_: object, **__: object) -> dict[str, object]:
        return self._responses.pop(0)


def response(*replicas: ReplicaStatus, secret_id: str = "s1") -> dict[str, object]:
    data = {"secret_id": secret_id, "name": "x", "version": 2, "current_version": 2, "overlap": None}
    listed = [replica.data() for replica in replicas]
    return data | {"started_at": "2026-01-01T00:00:00.000Z", "replicas": listed, "lost_before": []}


ROTATION = ProviderRotation(
    id="abc",
    secret_id="s1",
    name="x",
    team="default",
    step=Step.ACKNOWLEDGE,
    version=2,
    handle="new",
    current="new",
    revoke=["old"],
    started_at="2026-01-01T00:00:00.000Z",
    started_by="ada",
)


def test_a_replica_that_the_manager_forgot_still_holds_a_providers_rotation_back() -> None:
    """Such as one of a deployment that was removed meanwhile. One that was done before does not."""
    waiting, done = status("waiting", "acknowledged").replicas
    manager = Manager(response(waiting, done), response())
    rotations = RemoteRotations(manager, holder="holder-1")  # type: ignore[arg-type]
    rotations.rollout(ROTATION)
    rollout = rotations.rollout(ROTATION)
    assert sorted(replica.state for replica in rollout.replicas) == ["acknowledged", "unknown"]


def test_a_providers_rotation_is_not_about_another_secret_that_has_the_name_now() -> None:
    """It has no replica that could hold anything back: the credential would be revoked."""
    rotations = RemoteRotations(Manager(response(secret_id="s2")), holder="holder-1")  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="its name has another secret now"):
        rotations.rollout(ROTATION)
