"""What deployments ask: their values in one call, and a stream that says when to ask again.

One thread looks at the database, woken at once by this process's own writes;
it wakes the streams that changed secrets concern, and no others.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gusset.errors import Denied, GussetError, UsageError
from gusset.manager.api import schemas
from gusset.manager.api.operations import DeploymentRequest, Operation, operation
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.callers import DeploymentCaller
from gusset.manager.executors import Executors
from gusset.secrets.name import check_name, fold_name
from gusset.vault.services.change_poller import ChangePoller, Revisions
from gusset.vault.services.deployments import Grant
from gusset.vault.wiring import Vault

log = logging.getLogger("gusset.manager")

POLL = 0.05  # seconds between two looks at what other processes may have written
BEAT = 10.0  # seconds of silence on a stream
REPLICA_ID = 64  # characters at most

Keys = frozenset[tuple[str, str]]


class Watched:
    """One stream: what it waits for, and what it was told last."""

    __slots__ = ("keys", "revision", "wake")

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.revision = ""
        self.wake = asyncio.Event()


class Changes:
    """Tells streams when a secret of theirs has changed."""

    def __init__(self, open_looker: Callable[[], ChangePoller]) -> None:
        self._open_looker = open_looker
        self._streams: set[Watched] = set()
        self._wanted: Counter[tuple[str, str]] = Counter()  # how many streams wait for each
        self._known: Revisions = {}
        self._asked: Keys = frozenset()
        self._kick = threading.Event()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="gusset-changes", daemon=True)

    @property
    def streams(self) -> int:
        """How many there are."""
        return len(self._streams)

    def start(self) -> None:
        """To be called on the event loop that the streams run on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End every stream."""
        self._stopped = True
        self._kick.set()
        for stream in self._streams:
            stream.wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def wrote(self) -> None:
        """This process has written: look now. From any thread."""
        if self._wanted:
            self._kick.set()

    async def follow(
        self, keys: Keys, since: str | None, *, still: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, from `since` on; ends when `still` says no, or when the manager stops."""
        stream = Watched(keys)
        self._streams.add(stream)
        self._wanted.update(keys)
        self._kick.set()
        try:
            stream.revision = await self._current(keys)
            event = "hello" if since in (None, stream.revision) else "changed"
            yield {"event": event, "revision": stream.revision}
            while not self._stopped:
                try:
                    async with asyncio.timeout(BEAT):
                        await stream.wake.wait()
                except TimeoutError:
                    if not await still():
                        return
                    yield {"event": "beat"}
                    continue
                stream.wake.clear()
                now = digest(keys, self._known)
                if now != stream.revision and not self._stopped:
                    stream.revision = now
                    yield {"event": "changed", "revision": now}
        finally:
            self._streams.discard(stream)
            self._wanted -= Counter(keys)

    async def _current(self, keys: Keys) -> str:
        """The revision of `keys`, from a look that is newer than this call."""
        loop = asyncio.get_running_loop()
        looked = await loop.run_in_executor(None, self._look_once, keys)
        return digest(keys, looked)

    def _look_once(self, keys: Keys) -> Revisions:
        looker = self._open_looker()
        try:
            return looker.revisions(keys)
        finally:
            looker.close()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._watch()
            except Exception as error:  # streams must not fall asleep for good
                log.warning("the vault cannot be watched for the moment: %s", type(error).__name__)
                self._kick.wait(1.0)

    def _watch(self) -> None:
        looker, counter = self._open_looker(), -1
        try:
            while not self._stopped:
                if not self._wanted:  # nobody listens: sleep until somebody does
                    self._kick.wait()
                    self._kick.clear()
                    continue
                now = looker.counter()
                wanted: Keys = frozenset(self._wanted)
                if now != counter or not wanted <= self._asked:
                    counter, self._asked = now, wanted
                    self._publish(looker.revisions(wanted))
                self._kick.wait(POLL)
                self._kick.clear()
        finally:
            looker.close()

    def _publish(self, found: Revisions) -> None:
        before, self._known = self._known, found
        changed = {key for key in before.keys() | found.keys() if before.get(key) != found.get(key)}
        if changed and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake, changed)

    def _wake(self, changed: set[tuple[str, str]]) -> None:
        for stream in self._streams:
            if not stream.keys.isdisjoint(changed):
                stream.wake.set()


def digest(keys: Iterable[tuple[str, str]], found: Revisions) -> str:
    """One short text for the state of these secrets. Says nothing of names or values."""
    state = [(*key, *found.get(key, ())) for key in sorted(keys)]
    return hashlib.sha256(orjson.dumps(state)).hexdigest()[:32]


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


class Delivery:
    """Gives values to deployments, and tells them of changes."""

    def __init__(
        self, vault: Vault, authenticator: Authenticator, executors: Executors, changes: Changes
    ) -> None:
        self._vault = vault
        self._authenticator = authenticator
        self._executors = executors
        self._changes = changes

    def read_secrets(self, request: DeploymentRequest[schemas.ReadSecrets]) -> schemas.DeliveredSecrets:
        """Read the values of secrets in one request; the audit record is on disk before they are sent."""
        caller = request.caller
        grant, names = caller.grant, self._wanted(caller, request.body.names)
        secrets = self._vault.secrets_of(grant.team_id, grant.team)
        given = secrets.delivery.deliver(names, actor=caller.actor, deployment=grant.deployment)
        revisions = {(grant.team_id, folded): at for folded, at in given.revisions.items()}
        values = {
            name: schemas.DeliveredSecret(
                value=base64.b64encode(each.value.reveal()).decode(),
                version=each.version or 0,  # the vault numbers every version
            )
            for name, each in given.values.items()
        }
        return schemas.DeliveredSecrets(
            secrets=values,
            missing=[name for name in names if name not in values],
            revision=digest(keys_of(grant), revisions),
        )

    def _wanted(self, caller: DeploymentCaller, names: list[str] | None) -> list[str]:
        if names is None:
            return list(caller.grant.names)
        denied = sorted({check_name(name) for name in names} - set(caller.grant.names))
        if denied:
            error = Denied(
                f"the token of {caller.grant.deployment} does not allow {', '.join(denied)}",
                hint="declare it in config.yaml and register again, or make a token that has it",
            )
            self._vault.access_keys.record_refusal(caller.actor, f"secrets {', '.join(denied)}", error)
            raise error
        return list(dict.fromkeys(names))

    async def stream(self, request: Request) -> Response:
        """One long-lived answer of JSON lines: `hello`, `changed`, and `beat` in silence."""
        request.scope["route_path"] = "/v1/deployment/changes"
        authenticate = self._authenticator.authenticate_deployment
        auth_request = AuthRequest.from_starlette(request)
        caller = await self._executors.run(authenticate, auth_request)
        replica = request.query_params.get("replica")
        replica = replica_id(replica) if replica else None

        async def still() -> bool:
            """Whether the token is still good; and that the replica is still there."""
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
            async for event in self._changes.follow(keys_of(caller.grant), since, still=still):
                yield orjson.dumps(event) + b"\n"

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)

    def operations(self) -> list[Operation]:
        base = "/v1/deployment"
        return [
            operation("GET", base, get_current_deployment, None),
            operation("POST", base + "/secrets", self.read_secrets, None),
            operation("PUT", base + "/replicas/{id}", report_replica, None),
        ]


def replica_id(text: str) -> str:
    """A replica's name for itself. Raises UsageError for one that is no such thing."""
    if not (0 < len(text) <= REPLICA_ID and text.isascii() and text.replace("-", "").isalnum()):
        raise UsageError("a replica's id has 1 to 64 letters, digits and '-'")
    return text
