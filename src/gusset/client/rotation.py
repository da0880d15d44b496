"""Waits until a new version has replaced the ones before it in all replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gusset.errors import NotAcknowledged, NotFound, Unreachable
from gusset.printable import printable

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5  # seconds between two reads
_NAMED = 10  # replicas in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """A replica that held a lease when the version was stored; see `schemas.RotatingReplica`."""

    id: str
    deployment: str
    host: str
    state: str
    version: int | None
    used: int | None
    seen_at: str

    @property
    def has_acknowledged(self) -> bool:
        """Whether it uses no older version any more."""
        return self.state in ("acknowledged", "stopped")

    def describe(self) -> str:
        """`ranker on host-3 (replica 4k2j), unknown`, for people."""
        host = f" on {printable(self.host)}" if self.host else ""
        return f"{self.deployment}{host} (replica {self.id}), {self.state}"

    def data(self) -> dict[str, object]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationStatus:
    """How far a version has replaced earlier ones. `current_version` is less or None if it was destroyed.

    `lost_before` were lost when the version was stored: nobody waits for them, but they may still use an
    older one. `secret_id` tells the secret from others of its name; "" from a manager of an older version.
    """

    secret_id: str
    name: str
    version: int
    current_version: int | None
    replicas: Sequence[ReplicaStatus]
    lost_before: Sequence[ReplicaStatus] = ()

    @classmethod
    def from_response(cls, data: Mapping[str, Any]) -> RotationStatus:
        """From the response of `GET /v1/secrets/{name}/rotation`."""
        return cls(
            secret_id=data.get("secret_id", ""),
            name=data["name"],
            version=data["version"],
            current_version=data["current_version"],
            replicas=_replicas(data["replicas"]),
            lost_before=_replicas(data.get("lost_before", ())),
        )

    @property
    def acknowledged(self) -> int:
        """How many replicas use no older version any more."""
        return sum(replica.has_acknowledged for replica in self.replicas)

    def is_of(self, secret_id: str) -> bool:
        """Whether it is about that secret, and not about another one that has its name now."""
        return "" in (self.secret_id, secret_id) or self.secret_id == secret_id

    def with_lost(self, known: dict[str, ReplicaStatus]) -> RotationStatus:
        """This status with the replicas of earlier ones: `known` has them by id, and is updated.

        One that the manager no longer lists counts as lost, unless it was done.
        """
        listed = {replica.id: replica for replica in self.replicas}
        for replica_id, replica in known.items():
            if replica_id not in listed:
                gone = replica if replica.has_acknowledged else replace(replica, state="unknown")
                listed[replica_id] = gone
        known.update(listed)
        return replace(self, replicas=list(listed.values()))


def _replicas(data: Sequence[Mapping[str, Any]]) -> Sequence[ReplicaStatus]:
    fields = ReplicaStatus.__slots__
    return [ReplicaStatus(**{name: each[name] for name in fields}) for each in data]


def wait_for_rotation(
    read: Callable[[], RotationStatus],
    *,
    secret_id: str,
    version: int,
    timeout: float,
    on_progress: Callable[[RotationStatus], object] = lambda _: None,
    is_done: Callable[[ReplicaStatus], bool] = lambda replica: replica.has_acknowledged,
) -> RotationStatus:
    """Return when all replicas of a rotation are done: by default, when none uses an older version any more.

    `read` reads the state of the rotation to `version` of that secret, which has just been stored.
    `on_progress` gets each state. A replica that the manager stops listing before it was done counts as lost.

    Raises:
        NotAcknowledged: not all were done after `timeout` seconds; or only lost ones are left; or the
            version is no longer current; or the secret was deleted, also if its name has a new one.
        Denied, NotSignedIn: as raised by `read`.
    """
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE
    known: dict[str, ReplicaStatus] = {}
    status: RotationStatus | None = None
    failure: str | None = None
    while True:
        try:
            status = read().with_lost(known)
        except Unreachable as error:
            failure = error.message
        except NotFound:
            raise _deleted(version) from None
        else:
            failure = None
            if not status.is_of(secret_id):
                raise _deleted(version)
            on_progress(status)
            left = [replica for replica in status.replicas if not is_done(replica)]
            if not left:
                return status
            if (status.current_version or 0) < version:
                raise _not_acknowledged(status, left, "it was destroyed in the meantime")
            if all(replica.state == "unknown" for replica in left):
                raise _not_acknowledged(status, left, "the others are lost")
        if time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    if status is None or failure is not None:
        raise NotAcknowledged(
            f"version {version} is stored, but the state of the replicas is unknown: {failure}",
            hint="they get it as soon as they reach a manager",
        )
    left = [replica for replica in status.replicas if not is_done(replica)]
    raise _not_acknowledged(status, left, f"timed out after {timeout:g} s")


def _deleted(version: int) -> NotAcknowledged:
    return NotAcknowledged(
        f"version {version} was stored, but the manager does not know it any more: "
        "the secret was deleted in the meantime"
    )


def _not_acknowledged(status: RotationStatus, left: Sequence[ReplicaStatus], reason: str) -> NotAcknowledged:
    names = "; ".join(replica.describe() for replica in left[:_NAMED])
    more = f"; and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return NotAcknowledged(
        f"version {status.version} of {status.name} is stored, but {len(left)} of "
        f"{len(status.replicas)} replicas have not acknowledged it ({reason}): {names}{more}",
        replicas=[replica.data() for replica in left],
        hint="the previous version may still be in use there: do not revoke it yet. A lost replica that "
        "returns takes the new version",
    )
