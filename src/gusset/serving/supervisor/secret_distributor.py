"""Reads the declared secrets and keeps every replica's values up to date."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

from gusset.runtime.caller_auth import CallerAuth, CallerDigests, digests_of
from gusset.runtime.declared_secrets import Values, names_to_read, read_secrets
from gusset.runtime.secret_watcher import SecretWatcher
from gusset.runtime.supervision import SecretIntake
from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import SecretSource
from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import SetMaskedHits, SetSecrets, SetSourceError
from gusset.serving.supervisor.replica import Replica


class SecretDistributor:
    """The current values, and the replicas that have them. Thread-safe.

    Each replica gets what its own deployment declares, nothing else, and of its
    callers' keys only digests. `caller_auth` has those, too: None without callers.
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
        self.caller_auth = CallerAuth(_digests(self._callers, values)) if self._callers else None
        self._source = source
        self._intake = intake
        self._allow_missing = allow_missing
        self._lock = threading.Lock()  # orders reach a replica in the order in which the values were read
        self._values = values
        self._pending: Values = {}  # of secrets that only the deployment being loaded declares
        self._source_error: str | None = None
        self._hits: Mapping[Hit, int] = {}
        self._replicas: set[Replica] = set()
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
        distributor._watcher.start(names_to_read(deployment), values)
        return distributor

    def stop(self) -> None:
        """Stop following the source."""
        self._watcher.stop()

    def add(self, replica: Replica) -> None:
        """Send the replica its plan with the current values, and every later value."""
        with self._lock:
            replica.begin(self._select(replica.deployment))
            self._replicas.add(replica)
            if self._source_error is not None:
                replica.process.send(SetSourceError(self._source_error))
            if self._hits:
                replica.process.send(SetMaskedHits(self._hits))

    def remove(self, replica: Replica) -> None:
        """Stop sending values to the replica."""
        with self._lock:
            self._replicas.discard(replica)

    def check_source(self) -> None:
        """Let the replicas know when the source's last error has changed: their readiness shows it."""
        error = self._source.last_error
        if error != self._source_error:
            with self._lock:
                self._source_error = error
                for replica in self._replicas:
                    replica.process.send(SetSourceError(error))

    def share_hits(self) -> None:
        """Let the replicas know how often values were masked, when that has changed, for their metrics."""
        total = self._intake.masker.hits.total
        if total != self._hits:
            with self._lock:
                self._hits = total
                for replica in self._replicas:
                    replica.process.send(SetMaskedHits(total))

    def read(self, deployment: ModelDeployment) -> Values:
        """What the deployment declares; blocks. See `read_secrets` for the errors."""
        return read_secrets(deployment, self._source, self._allow_missing)

    def values_of(self, names: Collection[str]) -> dict[str, bytes]:
        """The current values of those of `names` that have one, also while they are being loaded."""
        values = {**self._pending, **self._values}
        return {name: values[name].value.reveal() for name in names if name in values}

    def begin_reload(self, values: Values) -> None:
        """Also hold these values, for the replicas of a deployment that declares other secrets."""
        self._intake.accept(values)
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
            self._update_caller_auth()

    def end_reload(self) -> None:
        """Drop what `begin_reload` holds and was not adopted."""
        with self._lock:
            self._pending = {}

    def _deliver(self, values: Values) -> None:
        """New values: first the masker learns them, then the replicas. Called on the watcher's thread."""
        with self._lock:
            self._intake.accept(values)
            self._values = values
            self._update_caller_auth()
            for replica in self._replicas:
                replica.process.send(self._select(replica.deployment))

    def _select(self, deployment: ModelDeployment) -> SetSecrets:
        values = {**self._pending, **self._values}
        held = {name: values[name] for name in deployment.declared if name in values}
        return SetSecrets(
            values={name: each.value.reveal() for name, each in held.items()},
            versions={name: each.version for name, each in held.items()},
            callers=_digests(_names_of_callers(deployment), values),
        )

    def _update_caller_auth(self) -> None:
        digests = _digests(self._callers, self._values)
        if not digests:
            self.caller_auth = None
        elif self.caller_auth is None:
            self.caller_auth = CallerAuth(digests)
        else:
            self.caller_auth.replace(digests)


def _names_of_callers(deployment: ModelDeployment) -> tuple[str, ...]:
    return tuple(caller.name for caller in deployment.callers)


def _digests(callers: Collection[str], values: Values) -> CallerDigests:
    return digests_of(callers, {name: each.value for name, each in values.items()})
