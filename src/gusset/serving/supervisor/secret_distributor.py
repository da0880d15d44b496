"""Reads the declared secrets and keeps every replica's values up to date."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from functools import partial

from gusset.runtime.caller_auth import CallerAuth, digests_of
from gusset.runtime.declared_secrets import Values, names_to_read, read_secrets
from gusset.runtime.secret_watcher import SecretWatcher, acknowledge
from gusset.runtime.supervision import SecretIntake
from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import FollowsReplicas, SecretSource
from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import Holds, SetLagging, SetMaskedHits, SetSecrets, SetSourceError, Used
from gusset.serving.supervisor.replica import Replica
from gusset.serving.supervisor.swaps import Swaps

log = logging.getLogger("gusset")


class SecretDistributor:
    """The current values, and the replicas that have them. Thread-safe.

    Each replica gets what its own deployment declares, nothing else, and of its
    callers' keys only digests. `caller_auth` has those, too: None without callers.
    The source gets to know which versions are in use by all replicas.
    """

    def __init__(
        self,
        deployment: ModelDeployment,
        source: SecretSource,
        intake: SecretIntake,
        *,
        values: Values,
        allow_missing: Collection[str],
    ) -> None:
        self._names = names_to_read(deployment)
        self._callers = _names_of_callers(deployment)
        self.caller_auth = CallerAuth(digests_of(self._callers, values)) if self._callers else None
        self._source = source
        self._intake = intake
        self._allow_missing = allow_missing
        self._lock = threading.Lock()  # orders reach a replica in the order in which the values were read
        self._values = values
        self._pending: Values = {}  # of secrets that only the deployment being loaded declares
        self._source_error: str | None = None
        self._lagging: str | None = None
        self._hits: Mapping[Hit, int] = {}
        self._swaps = Swaps[Replica](values)
        self._watcher = SecretWatcher(source, self._deliver)

    @classmethod
    def start(
        cls,
        deployment: ModelDeployment,
        source: SecretSource,
        intake: SecretIntake,
        *,
        allow_missing: Collection[str],
    ) -> SecretDistributor:
        """Read what the deployment declares, and follow it until `stop`.

        Raises:
            SecretsMissing, Denied, Unreachable: see `read_secrets`.
        """
        values = read_secrets(deployment, source, allow_missing)
        intake.accept(values)
        distributor = cls(deployment, source, intake, values=values, allow_missing=allow_missing)
        acknowledge(source, values)  # there is no replica yet that could use others
        distributor._watcher.start(names_to_read(deployment), values)
        return distributor

    def stop(self) -> None:
        """Stop following the source."""
        self._watcher.stop()

    def add(self, replica: Replica) -> None:
        """Send the replica its plan with the current values, and every later value."""
        with self._lock:
            self._swaps.add(replica)
            replica.begin(
                self._select(replica.deployment),
                on_secrets=partial(self._on_report, replica),
                on_end=partial(self.remove, replica),
            )
            if self._source_error is not None:
                replica.process.send(SetSourceError(self._source_error))
            if self._lagging is not None:
                replica.process.send(SetLagging(self._lagging))
            if self._hits:
                replica.process.send(SetMaskedHits(self._hits))

    def remove(self, replica: Replica) -> None:
        """Stop sending values to the replica."""
        with self._lock:
            self._swaps.remove(replica)
            self._acknowledge()

    def check_source(self) -> None:
        """Let the replicas know when the source's last error has changed, and how many of them lag.

        Their readiness shows it.
        """
        error = self._source.last_error
        with self._lock:
            lagging = self._swaps.lagging()
            if error != self._source_error:
                self._source_error = error
                self._send_to_all(SetSourceError(error))
            if lagging != self._lagging:
                self._lagging = lagging
                self._send_to_all(SetLagging(lagging))
                if lagging:
                    log.warning("%s", lagging)

    def _send_to_all(self, order: SetSourceError | SetLagging | SetMaskedHits) -> None:
        for replica in self._swaps.replicas:
            replica.process.send(order)

    def share_hits(self) -> None:
        """Let the replicas know how often values were masked, when that has changed, for their metrics."""
        total = self._intake.masker.hits.total
        if total != self._hits:
            with self._lock:
                self._hits = total
                self._send_to_all(SetMaskedHits(total))

    def read(self, deployment: ModelDeployment) -> Values:
        """What the deployment declares; blocks. See `read_secrets` for the errors."""
        return read_secrets(deployment, self._source, self._allow_missing)

    def values_of(self, names: Collection[str]) -> dict[str, bytes]:
        """The current values of those of `names` that have one, also while they are being loaded."""
        values = {**self._pending, **self._values}
        return {name: values[name].value.reveal() for name in names if name in values}

    def begin_reload(self, values: Values) -> None:
        """Also hold these values, for the replicas of a deployment that declares other secrets."""
        with self._lock:
            number = self._swaps.number
        self._intake.accept(values, number=number, in_use=0)
        with self._lock:
            self._pending = {name: held for name, held in values.items() if name not in self._names}

    def adopt(self, deployment: ModelDeployment) -> None:
        """From now on follow what this deployment declares, the one being loaded."""
        names, callers = names_to_read(deployment), _names_of_callers(deployment)
        if (names, callers) == (self._names, self._callers):
            return
        self._names = names
        self._watcher.follow(names, {**self._pending, **self._values})
        with self._lock:
            self._callers = callers
            self._values, self._pending = {**self._pending, **self._values}, {}
            self._swaps.extend(self._values)
            self._update_caller_auth()
            self._acknowledge()

    def end_reload(self) -> None:
        """Drop what `begin_reload` holds and was not adopted."""
        with self._lock:
            self._pending = {}

    def _deliver(self, values: Values) -> None:
        """New values: first the masker learns them, then the replicas. Called on the watcher's thread."""
        with self._lock:
            held, number, in_use = {**self._pending, **values}, self._swaps.number + 1, self._swaps.oldest
        # Without the lock, for which the event loop waits: large values take long to learn.
        self._intake.accept(held, number=number, in_use=in_use)
        with self._lock:
            self._values = values
            self._update_caller_auth()
            self._swaps.begin(values)
            for replica in self._swaps.replicas:
                replica.process.send(self._select(replica.deployment))
            self._acknowledge()

    def _on_report(self, replica: Replica, report: Holds | Used) -> None:
        """A worker has swapped its values, or the model has used one. Called on threads of the workers."""
        with self._lock:
            if isinstance(report, Holds):
                self._swaps.confirm(replica, report.number)
                self._acknowledge()
            elif isinstance(self._source, FollowsReplicas):
                self._source.record_used(self._swaps.versions_at(report.number, report.names))

    def _acknowledge(self) -> None:
        """Let the source know the versions that all replicas have in use."""
        if isinstance(self._source, FollowsReplicas):
            self._source.acknowledge(self._swaps.in_use())

    def _select(self, deployment: ModelDeployment) -> SetSecrets:
        values = {**self._pending, **self._values}
        held = {name: values[name] for name in deployment.declared if name in values}
        return SetSecrets(
            values={name: each.value.reveal() for name, each in held.items()},
            versions={name: each.version for name, each in held.items()},
            previous={name: each.previous.value.reveal() for name, each in held.items() if each.previous},
            callers=digests_of(_names_of_callers(deployment), values),
            number=self._swaps.number,
        )

    def _update_caller_auth(self) -> None:
        digests = digests_of(self._callers, self._values)
        if not digests:
            self.caller_auth = None
        elif self.caller_auth is None:
            self.caller_auth = CallerAuth(digests)
        else:
            self.caller_auth.replace(digests)


def _names_of_callers(deployment: ModelDeployment) -> tuple[str, ...]:
    return tuple(caller.name for caller in deployment.callers)
