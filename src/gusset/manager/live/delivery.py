"""The routes for deployments: their values in one request, and the leases of their replicas."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial

from gusset.errors import Denied, TooManyAttempts
from gusset.manager.api import schemas
from gusset.manager.api.operations import DeploymentRequest, Operation, operation
from gusset.manager.auth.authenticator import Authenticator
from gusset.manager.auth.callers import DeploymentCaller
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.manager.live.change_feed import SecretNames, revision_of
from gusset.secrets.hits import Hit
from gusset.secrets.name import check_name, fold_name
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import SecretValue
from gusset.vault.services.deployments import Grant
from gusset.vault.services.leases import LeaseReport
from gusset.vault.storage.connection import Transaction

MASKED_REPORTS = 120  # a minute, of one token: each is an audit record
SESSION_HEADER = b"gusset-session"
REPLICAS = "/v1/deployment/replicas/{id}"


def secret_names_of(grant: Grant) -> SecretNames:
    return frozenset((grant.team_id, fold_name(name)) for name in grant.names)


def get_current_deployment(request: DeploymentRequest[None]) -> schemas.CurrentDeployment:
    """Get the deployment that the token belongs to, and the secrets it may read."""
    grant = request.caller.grant
    return schemas.CurrentDeployment(name=grant.deployment, team_name=grant.team, secrets=grant.names)


def revoke_own_token(request: DeploymentRequest[None]) -> schemas.Revoked:
    """Revoke the token that makes the request."""
    caller = request.caller
    request.vault.access_keys.revoke(caller.prefix, actor=caller.actor, allowed=lambda _: True)
    return schemas.Revoked(prefix=caller.prefix)


def record_masked(request: DeploymentRequest[schemas.MaskedReport]) -> schemas.Empty:
    """Record how often secrets were masked in the deployment's output."""
    grant = request.caller.grant
    allowed = {fold_name(name) for name in grant.names}
    hits: Counter[Hit] = Counter()
    for each in request.body.hits:
        if fold_name(each.secret) in allowed:
            hits[Hit(each.secret, each.form, each.channel)] += each.times
    write = partial(
        request.vault.masked_values.record,
        grant.team_id,
        hits,
        actor=request.caller.actor,
        deployment=grant.deployment,
    )
    return request.write(write, lambda _: schemas.Empty())


class Delivery:
    """Delivers values to deployments, and keeps the leases of their replicas."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._masked_reports = RateLimiter(MASKED_REPORTS, 60.0)

    def read_secrets(self, request: DeploymentRequest[schemas.ReadSecrets]) -> schemas.DeliveredSecrets:
        """Read the values of secrets in one request; the audit record is on disk before they are sent."""
        caller, vault = request.caller, request.vault
        grant, names = caller.grant, self.allowed_names(caller, request.body.names)
        session = request.headers.get(SESSION_HEADER, b"").decode("latin-1")
        lease = vault.leases.resume(grant, session) if session else None
        new_replica = ""

        def put_in_lease(transaction: Transaction, versions: Mapping[str, int]) -> None:
            nonlocal new_replica
            if lease is None:
                new_replica = vault.leases.begin(transaction, grant, versions)
            else:
                vault.leases.extend(transaction, grant, lease, versions)

        secrets = vault.secrets_of(grant.team_id, grant.team)
        delivered = secrets.delivery.deliver(
            names, actor=caller.actor, deployment=grant.deployment, on_read=put_in_lease
        )
        revisions = {(grant.team_id, folded): at for folded, at in delivered.revisions.items()}
        values = {name: _delivered_model(each) for name, each in delivered.values.items()}
        return schemas.DeliveredSecrets(
            secrets=values,
            missing=[name for name in names if name not in values],
            revision=revision_of(secret_names_of(grant), revisions, vault.epoch),
            replica=lease.id if lease else new_replica,
            session_key=None if lease else vault.leases.session_key_of(grant, new_replica),
        )

    def allowed_names(self, caller: DeploymentCaller, names: list[str] | None) -> list[str]:
        """The names, each once; all that the token allows for None. Raises Denied, which is recorded."""
        if names is None:
            return list(caller.grant.names)
        denied = sorted({check_name(name) for name in names} - set(caller.grant.names))
        if denied:
            error = Denied(
                f"the token of {caller.grant.deployment} does not allow {', '.join(denied)}",
                hint="declare it in config.yaml and register again, or create a token that has it",
            )
            self._authenticator.record_denied(caller, f"secrets {', '.join(denied)}", error)
            raise error
        return list(dict.fromkeys(names))

    def report_masked(self, request: DeploymentRequest[schemas.MaskedReport]) -> schemas.Empty:
        """Report how often secrets were masked in the deployment's output."""
        if wait := self._masked_reports.take(request.caller.prefix):
            raise TooManyAttempts(
                f"more than {MASKED_REPORTS} reports a minute came with the token {request.caller.prefix}",
                hint="send sums, once a minute",
                retry_after=wait,
            )
        return record_masked(request)

    def renew_lease(self, request: DeploymentRequest[schemas.ReplicaReport]) -> schemas.Empty:
        """Renew a replica's lease; report which versions it holds and has used, or that it has stopped."""
        body, grant = request.body, request.caller.grant
        report = LeaseReport(
            host=body.host,
            versions=_of_names(body.versions, grant),
            used=_of_names(body.used, grant),
            stopped=body.stopped,
        )
        replica, session = request.path["id"], request.headers.get(SESSION_HEADER, b"").decode("latin-1")
        try:
            request.vault.leases.renew(grant, replica, session, report)
        except Denied as error:
            self._authenticator.record_denied(request.caller, "a replica's lease", error)
            raise
        return schemas.Empty()

    def operations(self) -> list[Operation]:
        base = "/v1/deployment"
        return [
            operation("GET", base, get_current_deployment, None),
            operation("POST", base + "/secrets", self.read_secrets, None),
            operation("PUT", REPLICAS, self.renew_lease, None),
            operation("POST", base + "/masked", self.report_masked, None, repeatable=True),
            operation("DELETE", base + "/token", revoke_own_token, None),
        ]


def _delivered_model(delivered: Delivered) -> schemas.DeliveredSecret:
    previous, model = delivered.previous, None
    if previous is not None:
        model = schemas.PreviousSecret(
            value=_base64(previous.value),
            version=previous.version or 0,
            ends_in=max(0.0, (previous.until or 0.0) - time.monotonic()),
        )
    # The vault numbers every version.
    return schemas.DeliveredSecret(
        value=_base64(delivered.value), version=delivered.version or 0, previous=model
    )


def _base64(value: SecretValue) -> str:
    return base64.b64encode(value.reveal()).decode()


def _of_names(versions: Mapping[str, int] | None, grant: Grant) -> Mapping[str, int] | None:
    """Those of `versions` that are of the deployment's own secrets; None stays None."""
    if not versions or versions.keys() <= set(grant.names):
        return versions
    allowed = {fold_name(name) for name in grant.names}
    return {name: number for name, number in versions.items() if fold_name(name) in allowed}
