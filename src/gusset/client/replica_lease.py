"""The lease that a replica has at the manager, and the thread that renews it."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from gusset.backoff import Backoff
from gusset.bugs import log_bug
from gusset.client.manager_client import ManagerClient
from gusset.errors import Conflict, Denied, GussetError, NotFound, NotSignedIn, Unreachable

log = logging.getLogger("gusset.client")

_SHORTEST, _LONGEST = 7.0, 7.8  # seconds between two renewals; a lease lasts 20
_STEP = 0.25  # seconds: when renewals of many replicas meet
_RETRY = 2.0  # seconds after a failure
_LONGEST_RETRY = 30.0
_LAST_RENEWAL = 0.5  # seconds that a renewal under way gets when the replica stops
END_TIMEOUT = 2.0  # seconds for the last report, and for other requests of a replica that stops


def seconds_to_renewal(now: float) -> float:
    """After how many seconds to renew a lease again; `now` is in seconds since the epoch.

    Replicas renew at quarter seconds of their clocks, each at a random one. A manager that wakes up once
    for a hundred renewals needs half the processor time per renewal of one that wakes up for each.
    """
    delay = random.uniform(_SHORTEST + _STEP, _LONGEST)  # noqa: S311
    return delay - (now + delay) % _STEP


class ReplicaLease:
    """Renews the lease that a fetch of secrets began, and reports which versions are in use.

    A fetched version counts only when `acknowledge` is called: until then some part of the replica may
    use an older one. The process itself renews the lease, not its open stream: a proxy keeps streams open
    for a process that has stopped. A fork of the process has no part in it: its next fetch begins another.
    """

    def __init__(self, client: ManagerClient, on_lost: Callable[[], object]) -> None:
        """`on_lost` is called on the thread when the manager does not know the lease: fetch again."""
        self._client = client
        self._on_lost = on_lost
        self._fetched: Mapping[str, int] = {}
        self._versions: Mapping[str, int] | None = None  # None until the first acknowledgement
        self._used: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # held for each change, not while a renewal is sent
        self._replica: str | None = None
        self._session_key: str | None = None
        self._reported: Mapping[str, Any] | None = None  # what the manager knows
        self._changed = threading.Event()  # something is to be reported now
        self._fetched_anew = threading.Event()  # since the last renewal began; or the lease has ended
        self._ended = False
        self._lost = Backoff(_RETRY, _LONGEST_RETRY)
        self._thread = threading.Thread(target=self._run, name="gusset-lease", daemon=True)

    def _begin_in_fork(self) -> None:
        """In a fork: the lease is the parent's."""
        if self._pid != os.getpid():
            self._begin()

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by which the manager knows this replica."""
        self._begin_in_fork()
        return _headers(self._session_key)

    def on_fetched(self, response: Mapping[str, Any]) -> None:
        """Hold the lease that a fetch returned."""
        self._begin_in_fork()
        with self._lock:
            self._replica = response.get("replica")  # a manager of an older version has no leases
            if response.get("session_key"):  # a new lease
                self._session_key, self._reported = response["session_key"], None
            self._fetched = {name: secret["version"] for name, secret in response["secrets"].items()}
        self._fetched_anew.set()
        self._changed.set()

    def report_again(self) -> None:
        """Report everything with the next renewal: the manager may have lost the last report."""
        with self._lock:
            self._reported = None

    @property
    def fetched(self) -> Mapping[str, int]:
        """The versions of the last fetch, whether they are in use or not."""
        return self._fetched

    def acknowledge(self, versions: Mapping[str, int]) -> None:
        """Report that these versions are in use from now on, and no older ones, in all of this replica.

        Where a name has a lower version than before, it has another secret, or a version was destroyed:
        what was used before says nothing of that.
        """
        self._begin_in_fork()
        with self._lock:
            if versions == self._versions:
                return
            lower = {name for name, old in (self._versions or {}).items() if versions.get(name, 0) < old}
            self._versions = dict(versions)
            self._used = {name: used for name, used in self._used.items() if name not in lower}
        self._changed.set()

    def record_used(self, used: Mapping[str, int]) -> None:
        """Report that these versions were used. Only the newest of each secret is reported."""
        self._begin_in_fork()
        with self._lock:
            newer = {name: version for name, version in used.items() if version > self._used.get(name, 0)}
            self._used = {**self._used, **newer}
        if newer:
            self._changed.set()

    def start(self) -> None:
        """Renew the lease from now on."""
        self._begin_in_fork()
        if self._thread.ident is None:
            self._thread.start()

    def end(self) -> bool:
        """Report that the replica has stopped. Returns False when no manager responds: the lease lapses."""
        self._begin_in_fork()
        self._ended = True
        self._fetched_anew.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_RENEWAL)
        try:
            timeout = self._client.share(END_TIMEOUT)
            self._send({"stopped": True}, self._replica, self._session_key, timeout)
        except Unreachable:
            return False
        except GussetError:  # the manager does not know the lease, or not the token
            pass
        return True

    def _run(self) -> None:
        delay = 0.0
        while not self._ended:
            self._changed.wait(delay)
            self._changed.clear()
            if self._ended:
                return
            delay = self._renew()

    def _renew(self) -> float:
        """Renew the lease; returns after how many seconds to do so again."""
        pending: Mapping[str, Any] = {}
        with self._lock:
            self._fetched_anew.clear()
            replica, key = self._replica, self._session_key
            report, known, self._reported = self._report(), self._reported, pending
        if replica is not None and key is None:
            return self._fetch_anew()
        try:
            self._send(None if report == known else report, replica, key)
        except (NotSignedIn, Unreachable):
            return random.uniform(0.5, 1.0) * _RETRY  # noqa: S311  # the source says what is wrong
        except Conflict:  # an older copy of the vault was restored, without these versions
            self._forget_used(report.get("used", {}))
            return self._fetch_anew()
        except (NotFound, Denied):  # the lease has ended
            return self._fetch_anew() if self._forget_key(key) else 0.0
        except GussetError:
            return _LONGEST_RETRY
        except Exception as error:  # later renewals must still be sent
            log_bug(log, error)
            return _LONGEST
        with self._lock:
            if self._reported is pending:  # else all is to be reported again, or to a new lease
                self._reported = report
        self._lost.reset()
        return seconds_to_renewal(time.time())

    def _forget_used(self, wrong: Mapping[str, int]) -> None:
        with self._lock:
            self._used = {name: used for name, used in self._used.items() if wrong.get(name) != used}

    def _forget_key(self, refused: str | None) -> bool:
        """Forget the session key that was refused; False when a fetch has begun another lease meanwhile."""
        with self._lock:
            if self._session_key != refused:
                return False
            self._session_key = None
            return True

    def _fetch_anew(self) -> float:
        """Have the values fetched again, unless that happens by itself; returns as `_renew` does."""
        if not self._fetched_anew.wait(self._lost.next_delay() - _RETRY):
            self._on_lost()
        return _LONGEST

    def _report(self) -> Mapping[str, Any]:
        report: dict[str, Any] = {"host": socket.gethostname()[:253]}
        if self._versions is not None:
            report |= {"versions": self._versions, "used": self._used}
        return report

    def _send(
        self,
        report: Mapping[str, Any] | None,
        replica: str | None,
        key: str | None,
        timeout: float | None = None,
    ) -> None:
        """Renew the lease; None reports nothing new."""
        if replica is not None and key is not None:
            path = f"/v1/deployment/replicas/{replica}"
            self._client.request("PUT", path, report, headers=_headers(key), timeout=timeout)


def _headers(session_key: str | None) -> dict[str, str]:
    return {} if session_key is None else {"gusset-session": session_key}
