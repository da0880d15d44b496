"""The routes for deployments: their values in one request, and a stream that says when to fetch again."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import AsyncIterator

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gusset.errors import Conflict, Denied, GussetError, TooManyAttempts, UsageError
from gusset.manager.api import schemas
from gusset.manager.api.operations import DeploymentRequest, Operation, operation
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.callers import DeploymentCaller
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.manager.executors import Executors
from gusset.manager.live.change_feed import ChangeFeed, Keys, digest
from gusset.secrets.hits import Hit
from gusset.secrets.name import check_name, fold_name
from gusset.vault.services.deployments import MAX_REPLICAS, Grant
from gusset.vault.wiring import Vault

MASKED_REPORTS = 120  # a minute, of one token: each is an audit record
MAX_REPLICA_ID = 64  # characters


def keys_of(grant: Grant) -> Keys:
    return frozenset((grant.team_id, fold_name(name)) for name in grant.names)


def get_current_deployment(request: DeploymentRequest[None]) -> schemas.CurrentDeployment:
    """Get the deployment that the token belongs to, and the secrets it may read."""
    grant = request.caller.grant
    return schemas.CurrentDeployment(name=grant.deployment, team_name=grant.team, secrets=grant.names)


def report_replica(request: DeploymentRequest[schemas.ReplicaReport]) -> schemas.Empty:
    """Report which versions a replica holds, or that it has stopped."""
    body, grant = request.body, request.caller.grant
    replica = replica_id(request.path["id"])
    allowed = {fold_name(name) for name in grant.names}
    versions = {name: number for name, number in body.versions.items() if fold_name(name) in allowed}
    request.vault.deployments.report_replica(
        grant, replica, host=body.host, versions=versions, stopped=body.stopped
    )
    return schemas.Empty()


def revoke_own_token(request: DeploymentRequest[None]) -> schemas.Revoked:
    """Revoke the token that makes the request."""
    caller = request.caller
    request.vault.access_keys.revoke(caller.prefix, actor=caller.actor, allowed=lambda _: True)
    return schemas.Revoked(prefix=caller.prefix)


def record_masked(request: DeploymentRequest[schemas.MaskedReport]) -> None:
    """Record how often secrets were masked in the deployment's output."""
    grant = request.caller.grant
    allowed = {fold_name(name) for name in grant.names}
    hits: Counter[Hit] = Counter()
    for each in request.body.hits:
        if fold_name(each.secret) in allowed:
            hits[Hit(each.secret, each.form, each.channel)] += each.times
    request.vault.masked_values.record(
        grant.team_id, hits, actor=request.caller.actor, deployment=grant.deployment
    )


class Delivery:
    """Delivers values to deployments, and streams the changes of their secrets."""

    def __init__(
        self, vault: Vault, authenticator: Authenticator, executors: Executors, change_feed: ChangeFeed
    ) -> None:
        self._vault = vault
        self._authenticator = authenticator
        self._executors = executors
        self._change_feed = change_feed
        self._masked_reports = RateLimiter(MASKED_REPORTS, 60.0)
        self._streams: Counter[str] = Counter()  # open ones, by the deployment's id

    def read_secrets(self, request: DeploymentRequest[schemas.ReadSecrets]) -> schemas.DeliveredSecrets:
        """Read the values of secrets in one request; the audit record is on disk before they are sent."""
        caller = request.caller
        grant, names = caller.grant, self._allowed_names(caller, request.body.names)
        secrets = self._vault.secrets_of(grant.team_id, grant.team)
        delivered = secrets.delivery.deliver(names, actor=caller.actor, deployment=grant.deployment)
        revisions = {(grant.team_id, folded): at for folded, at in delivered.revisions.items()}
        values = {
            name: schemas.DeliveredSecret(
                value=base64.b64encode(each.value.reveal()).decode(),
                version=each.version or 0,  # the vault numbers every version
            )
            for name, each in delivered.values.items()
        }
        return schemas.DeliveredSecrets(
            secrets=values,
            missing=[name for name in names if name not in values],
            revision=digest(keys_of(grant), revisions),
        )

    def _allowed_names(self, caller: DeploymentCaller, names: list[str] | None) -> list[str]:
        if names is None:
            return list(caller.grant.names)
        denied = sorted({check_name(name) for name in names} - set(caller.grant.names))
        if denied:
            error = Denied(
                f"the token of {caller.grant.deployment} does not allow {', '.join(denied)}",
                hint="declare it in config.yaml and register again, or create a token that has it",
            )
            self._authenticator.record_denied_secrets(caller, denied, error)
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
        record_masked(request)
        return schemas.Empty()

    async def stream(self, request: Request) -> Response:
        """One long response of JSON Lines: `hello`, `changed`, and `beat` when nothing happens."""
        request.scope["route_path"] = "/v1/deployment/changes"
        authenticate = self._authenticator.authenticate_deployment
        auth_request = AuthRequest.from_starlette(request)
        caller = await self._executors.run(authenticate, auth_request)
        deployment_id = caller.grant.deployment_id
        if self._streams[deployment_id] >= MAX_REPLICAS:
            raise Conflict(f"{caller.grant.deployment} has {MAX_REPLICAS} open streams, and can have no more")
        replica = request.query_params.get("replica")
        replica = replica_id(replica) if replica else None

        async def is_valid() -> bool:
            """Whether the token is still valid. Also records that the replica is alive."""
            try:
                await self._executors.run(authenticate, auth_request)
                if replica:
                    await self._executors.run(
                        self._vault.deployments.record_replica_seen, caller.grant, replica
                    )
            except GussetError:
                return False
            return True

        async def lines() -> AsyncIterator[bytes]:
            since = request.query_params.get("since") or None
            self._streams[deployment_id] += 1
            try:
                async for event in self._change_feed.follow(keys_of(caller.grant), since, is_valid=is_valid):
                    yield orjson.dumps(event) + b"\n"
            finally:
                self._streams[deployment_id] -= 1
                self._streams += Counter()  # drops those without any

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)

    def operations(self) -> list[Operation]:
        base = "/v1/deployment"
        return [
            operation("GET", base, get_current_deployment, None),
            operation("POST", base + "/secrets", self.read_secrets, None),
            operation("PUT", base + "/replicas/{id}", report_replica, None),
            operation("POST", base + "/masked", self.report_masked, None),
            operation("DELETE", base + "/token", revoke_own_token, None),
        ]


def replica_id(text: str) -> str:
    """The id that a replica has chosen. Raises UsageError if it is malformed."""
    if not (0 < len(text) <= MAX_REPLICA_ID and text.isascii() and text.replace("-", "").isalnum()):
        raise UsageError("a replica's id has 1 to 64 letters, digits and '-'")
    return text
