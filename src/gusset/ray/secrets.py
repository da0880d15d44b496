"""The secrets of one replica: read once, then kept up to date in its own process."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

from gusset.backoff import Backoff
from gusset.errors import Unreachable
from gusset.runtime.caller_auth import CallerAuth, digests_of
from gusset.runtime.declared_secrets import Values, names_to_read, read_secrets
from gusset.runtime.hit_reporter import HitReporter
from gusset.runtime.secret_watcher import SecretWatcher, acknowledge, versions_of
from gusset.runtime.supervision import SecretIntake
from gusset.secrets.mapping import Secrets
from gusset.secrets.sources.source import FollowsReplicas, SecretSource
from gusset.secrets.value import SecretValue
from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import Used
from gusset.serving.worker.use_reporter import UseReporter

log = logging.getLogger("gusset")

_START_TIMEOUT = 30.0  # seconds that a start waits for a manager that does not respond
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 5.0  # seconds


class ReplicaSecrets:
    """What `gusset serve` does in its supervisor and its worker, for one process that is both.

    `mapping` is the model's `secrets`, `caller_auth` knows the keys of callers: None without callers.
    """

    def __init__(
        self, deployment: ModelDeployment, source: SecretSource, intake: SecretIntake, values: Values
    ) -> None:
        """`intake` has accepted `values`."""
        self._deployment = deployment
        self._source = source
        self._intake = intake
        self._values = values
        self._number = 0  # of the set of values
        self._versions: dict[int, Mapping[str, int]] = {0: versions_of(values)}
        self._callers = tuple(each.name for each in deployment.callers)
        self.caller_auth = CallerAuth(digests_of(self._callers, values)) if self._callers else None
        self._uses = UseReporter(self._record_used)
        self._watcher = SecretWatcher(source, self._replace)
        self._hit_reporter: HitReporter | None = None
        self.mapping = Secrets(
            deployment.declared,
            _current(values),
            previous=_previous(values),
            config_file=deployment.config_file,
            masker=intake.masker,
            on_first_use=partial(self._uses.add, 0),
        )

    @classmethod
    def start(
        cls,
        deployment: ModelDeployment,
        source: SecretSource,
        intake: SecretIntake,
        allow_missing: tuple[str, ...],
    ) -> ReplicaSecrets:
        """Read what the deployment declares, and follow it until `stop`.

        Waits half a minute for a manager that does not respond: Ray gives up a deployment whose replicas
        fail several times.

        Raises:
            SecretsMissing, Denied, Unreachable: see `read_secrets`.
        """
        values = _read_patiently(deployment, source, allow_missing)
        intake.accept(values)
        secrets = cls(deployment, source, intake, values)
        acknowledge(source, values)
        secrets._uses.start()
        secrets._watcher.start(names_to_read(deployment), values)
        secrets._hit_reporter = HitReporter.start(intake.masker.hits, source)
        return secrets

    def stop(self) -> None:
        """Follow the source no more."""
        self._watcher.stop()
        if self._hit_reporter is not None:
            self._hit_reporter.stop()

    @property
    def versions(self) -> Mapping[str, int | None]:
        """The versions of the model's secrets that have a value."""
        declared = self._deployment.declared
        return {name: each.version for name, each in self._values.items() if name in declared}

    @property
    def last_error(self) -> str | None:
        """Why changes are not followed at the moment; None while they are."""
        return self._source.last_error

    def values_of(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """The current values of those of `names` that have one."""
        return {name: self._values[name].value.reveal() for name in names if name in self._values}

    def _replace(self, values: Values) -> None:
        """New values: first the masker learns them, then the model gets them. On the watcher's thread."""
        self._intake.accept(values)
        last, self._number = self._number, self._number + 1
        self._versions = {last: self._versions[last], self._number: versions_of(values)}
        self._values = values
        self.mapping.replace(
            _current(values),
            previous=_previous(values),
            on_first_use=partial(self._uses.add, self._number),
        )
        if self.caller_auth is not None:
            self.caller_auth.replace(digests_of(self._callers, values))
        acknowledge(self._source, values)

    def _record_used(self, used: Used) -> None:
        """Report first look-ups to the source. On the thread of the reporter."""
        versions = self._versions.get(used.number, {})
        if isinstance(self._source, FollowsReplicas):
            self._source.record_used({name: versions[name] for name in used.names if name in versions})


def _read_patiently(
    deployment: ModelDeployment, source: SecretSource, allow_missing: tuple[str, ...]
) -> Values:
    backoff, ends_at = Backoff(_FIRST_RETRY, _LONGEST_RETRY), time.monotonic() + _START_TIMEOUT
    while True:
        try:
            return read_secrets(deployment, source, allow_missing)
        except Unreachable as error:
            delay = error.retry_after or backoff.next_delay()
            if time.monotonic() + delay > ends_at:
                raise
            log.warning("The secrets cannot be read yet: %s", error.message)
            time.sleep(delay)


def _current(values: Values) -> dict[str, SecretValue]:
    return {name: each.value for name, each in values.items()}


def _previous(values: Values) -> dict[str, SecretValue]:
    return {name: each.previous.value for name, each in values.items() if each.previous}
