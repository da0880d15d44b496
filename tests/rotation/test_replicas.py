"""Which replicas hold back a revocation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from gusset.rotation.replicas import Policy, Rollout, held_back_by
from gusset.rotation.state import Step

START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Replica:
    state: str
    used: int | None = None
    deployment: str = "d"
    host: str = "h"


def holds_back(step: Step, *replicas: Replica, policy: Policy = Policy(), after: timedelta = MINUTE) -> bool:  # noqa: B008
    rollout = Rollout(started_at=START, overlap_ends_at=START + 2 * MINUTE, replicas=replicas)
    return bool(held_back_by(step, rollout, 7, policy, START + after))


@pytest.mark.parametrize(
    ("replica", "acknowledged", "used"),
    [
        (Replica("waiting"), False, False),
        (Replica("waiting", used=7), False, False),
        (Replica("unknown", used=7), False, False),
        (Replica("acknowledged"), True, False),
        (Replica("acknowledged", used=6), True, False),
        (Replica("acknowledged", used=7), True, True),
        (Replica("acknowledged", used=8), True, True),
        (Replica("stopped"), True, True),
    ],
)
def test_each_replica_must_acknowledge_and_use_the_version(
    replica: Replica, acknowledged: bool, used: bool
) -> None:
    """One that has stopped in order is not waited for; one that is lost is."""
    good = Replica("acknowledged", used=7)
    assert holds_back(Step.ACKNOWLEDGE, good, replica) is not acknowledged
    assert holds_back(Step.USE, good, replica) is not used


def test_what_is_accepted() -> None:
    """Lost replicas, and unused values after a time; never a replica that has not acknowledged."""
    lost, unused, waiting = Replica("unknown"), Replica("acknowledged"), Replica("waiting")
    accepting = Policy(accept_lost=True, first_use=MINUTE)
    assert not holds_back(Step.USE, lost, unused, policy=accepting)
    assert holds_back(Step.USE, unused, policy=accepting, after=MINUTE / 2)
    assert holds_back(Step.ACKNOWLEDGE, waiting, policy=accepting)
    assert holds_back(Step.USE, waiting, policy=accepting)


def test_without_known_replicas_the_overlap_must_end() -> None:
    """Nobody knows who reads from the embedded vault."""
    policy = Policy(whole_overlap=True)
    assert not holds_back(Step.ACKNOWLEDGE, policy=policy)
    assert holds_back(Step.USE, policy=policy)
    assert not holds_back(Step.USE, policy=policy, after=2 * MINUTE)
