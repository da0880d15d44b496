"""The lease that a replica has at the manager, and the thread that renews it."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from gusset.backoff import Backoff
from gusset.client.manager_client import ManagerClient
from gusset.errors import Conflict, Denied, GussetError, NotFound, NotSignedIn, Unreachable

_SHORTEST, _LONGEST = 7.0, 7.8  # seconds between two renewals; a lease lasts 20
_RETRY = 2.0  # seconds after a failure
_LONGEST_RETRY = 30.0


class ReplicaLease:
    """Renews the lease that a fetch of secrets began, and reports the versions that this process holds.

    The process itself renews it, not its open stream: a proxy keeps streams open for a process that
    has stopped.
    """

    def __init__(self, client: ManagerClient, on_lost: Callable[[], object]) -> None:
        """`on_lost` is called on the thread when the manager does not know the lease: fetch again."""
        self._client = client
        self._on_lost = on_lost
        self._replica: str | None = None
        self._session_key: str | None = None
        self._versions: Mapping[str, int] = {}
        self._reported: Mapping[str, Any] | None = None  # what the manager knows
        self._changed = threading.Event()  # something is to be reported now
        self._ended = False
        self._lost = Backoff(_RETRY, _LONGEST_RETRY)
        self._thread = threading.Thread(target=self._run, name="gusset-lease", daemon=True)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by which the manager knows this replica."""
        return {} if self._session_key is None else {"gusset-session": self._session_key}

    def on_fetched(self, response: Mapping[str, Any]) -> None:
        """Hold the lease that a fetch returned, and the versions of its values."""
        self._replica = response.get("replica")  # a manager of an older gusset has no leases
        if response.get("session_key"):  # a new lease
            self._session_key, self._reported = response["session_key"], None
        self._versions = {name: secret["version"] for name, secret in response["secrets"].items()}
        self._changed.set()

    def report_again(self) -> None:
        """Report everything with the next renewal: the manager may have lost the last report."""
        self._reported = None

    @property
    def versions(self) -> Mapping[str, int]:
        """The versions of the last fetch."""
        return self._versions

    def start(self) -> None:
        """Renew the lease from now on."""
        if self._thread.ident is None:
            self._thread.start()

    def end(self) -> None:
        """Report that the replica has stopped."""
        self._ended = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        with contextlib.suppress(GussetError):  # the lease lapses
            self._report({"stopped": True})

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
        try:
            report = {"host": socket.gethostname()[:253], "versions": self._versions}
            known, self._reported = self._reported, None
            self._report(None if report == known else report)
            self._reported = report
        except (NotSignedIn, Unreachable):
            return random.uniform(0.5, 1.0) * _RETRY  # noqa: S311  # the source says what is wrong
        except (NotFound, Conflict, Denied) as error:
            # The lease has ended, or an older copy of the vault was put back, without these versions.
            if not isinstance(error, Conflict):
                self._session_key = None
            if not self._changed.wait(self._lost.next_delay() - _RETRY):
                self._on_lost()
            return _LONGEST
        except GussetError:
            return _LONGEST_RETRY
        self._lost.reset()
        return random.uniform(_SHORTEST, _LONGEST)  # noqa: S311

    def _report(self, report: Mapping[str, Any] | None) -> None:
        """Renew the lease; None reports nothing new."""
        if self._replica is not None and self._session_key is not None:
            path = f"/v1/deployment/replicas/{self._replica}"
            self._client.request("PUT", path, report, headers=self.headers)
