"""Follows the readiness and liveness of one container."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gusset.containers import grpc_health
from gusset.containers.image_deployment import ImageDeployment
from gusset.containers.proxy.upstream import probe
from gusset.errors import ModelFailed

PROBE_SECONDS = 10.0

# Seconds between probes.
_STARTING_INTERVAL = 0.1
_MAX_RUNNING_INTERVAL = 5.0  # a deployment's thresholds may make it shorter


class HealthMonitor:
    """Probes a container with the paths and thresholds of its deployment. For one event loop."""

    def __init__(
        self,
        deployment: ImageDeployment,
        connect: Callable[[], Awaitable[socket.socket]],
        *,
        set_unready: Callable[[str | None], object],
        last_lines: Callable[[], str],
    ) -> None:
        """`set_unready` is called with the reason why the container is not ready, or None once it is.

        `connect` opens a connection to its server. `last_lines` returns its last output,
        for messages.
        """
        self._deployment = deployment
        self._connect = connect
        self._set_unready = set_unready
        self._last_lines = last_lines

    async def watch(self, on_ready: Callable[[], object]) -> None:
        """Wait until the container is ready, call `on_ready`, then follow its health.

        Raises:
            ModelFailed: it did not become ready in time, or its liveness probe failed for too long.
        """
        await self._wait_ready()
        self._set_unready(None)
        on_ready()
        await self._follow()

    async def _wait_ready(self) -> None:
        deployment, startup = self._deployment, self._deployment.health.startup
        started_at = time.monotonic()
        while not (result := await self._probe(deployment.readiness)).is_ready:
            if time.monotonic() - started_at > startup:
                raise ModelFailed(
                    f"the container was not ready after {startup:g} s: {self._name_of(deployment.readiness)} "
                    f"on its port {deployment.port} gave {result.reason}{self._last_lines()}",
                    hint="see docker_server.server_port and readiness_endpoint, and "
                    "runtime.health_checks.startup_threshold_seconds",
                )
            await asyncio.sleep(_STARTING_INTERVAL)

    async def _follow(self) -> None:
        deployment, health = self._deployment, self._deployment.health
        interval = max(_STARTING_INTERVAL, min(_MAX_RUNNING_INTERVAL, health.restart, health.stop_traffic))
        started = last_ready = last_alive = time.monotonic()
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            paths = {deployment.readiness, deployment.liveness}
            results = {path: await self._probe(path) for path in paths}
            if results[deployment.readiness].is_ready:
                last_ready = now
            if results[deployment.liveness].is_alive or now - started < health.restart_delay:
                last_alive = now
            is_ready = now - last_ready < health.stop_traffic
            self._set_unready(None if is_ready else "Its readiness probe fails.")
            if now - last_alive >= health.restart:
                raise ModelFailed(f"the container was not alive for {health.restart:g} s")

    def _name_of(self, path: str) -> str:
        return grpc_health.METHOD if self._deployment.is_grpc else f"GET {path}"

    async def _probe(self, path: str) -> _Result:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                if self._deployment.is_grpc:
                    health = await grpc_health.check_health(self._connect)
                    return _Result(health.name, is_ready=health.is_ready, is_alive=True)
                status = await probe(self._connect, path)
                is_success = 200 <= status < 400
                return _Result(str(status), is_ready=is_success, is_alive=is_success)
        except TimeoutError:
            return _Result("no response")
        except OSError as error:
            return _Result(error.strerror or str(error) or type(error).__name__)


@dataclass(frozen=True, slots=True)
class _Result:
    """What a probe gave: `reason` is the status, or what went wrong, as part of a message."""

    reason: str
    is_ready: bool = False
    is_alive: bool = False
