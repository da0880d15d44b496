"""Which replicas hold back the next step of a rotation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from gusset.printable import printable
from gusset.rotation.state import Step


class Replica(Protocol):
    """A replica that may have held an older version; see `vault/services/rotations.py`."""

    @property
    def deployment(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def state(self) -> str:
        """acknowledged, waiting, stopped or unknown."""

    @property
    def used(self) -> int | None:
        """The newest version that it has used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How far a version has replaced those before it.

    `overlap_ends_at` is the end of the overlap, None when it has ended. `lost_before` were lost when the
    version was stored: they hold nothing back, but may still use an older version.
    """

    started_at: datetime
    overlap_ends_at: datetime | None
    replicas: Sequence[Replica]
    lost_before: Sequence[Replica] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a rotation waits for.

    `first_use`: after this time, a replica that has acknowledged the version but not used it holds nothing
    back; None: it always does. `accept_lost`: lost replicas do not. `whole_overlap`: the overlap must
    end first, since not all replicas are known.
    """

    first_use: timedelta | None = None
    accept_lost: bool = False
    whole_overlap: bool = False


def held_back_by(step: Step, rollout: Rollout, version: int, policy: Policy, now: datetime) -> list[str]:
    """What the rotation waits for in `step`, as texts for people; none when the step is done."""
    if step is Step.ACKNOWLEDGE:
        return list(_not_acknowledged(rollout.replicas, policy))
    if step is Step.USE:
        return list(_not_used(rollout, version, policy, now))
    return []


def lost_before(rollout: Rollout) -> list[str]:
    """The replicas that may still use an older version though nothing waits for them, as texts for people."""
    return [f"{_name(replica)} was lost before the version was set" for replica in rollout.lost_before]


def _not_acknowledged(replicas: Iterable[Replica], policy: Policy) -> Iterable[str]:
    for replica in replicas:
        if replica.state == "waiting":
            yield f"{_name(replica)} has not acknowledged it"
        elif replica.state == "unknown" and not policy.accept_lost:
            yield f"{_name(replica)} is lost"


def _not_used(rollout: Rollout, version: int, policy: Policy, now: datetime) -> Iterable[str]:
    yield from _not_acknowledged(rollout.replicas, policy)
    if policy.first_use is None or now - rollout.started_at < policy.first_use:
        for replica in rollout.replicas:
            if replica.state == "acknowledged" and (replica.used is None or replica.used < version):
                yield f"{_name(replica)} has not used it"
    if policy.whole_overlap and rollout.overlap_ends_at is not None and now < rollout.overlap_ends_at:
        yield f"the overlap ends at {rollout.overlap_ends_at.isoformat(timespec='seconds')}"


def _name(replica: Replica) -> str:
    return f"{replica.deployment} on {printable(replica.host)}" if replica.host else replica.deployment
