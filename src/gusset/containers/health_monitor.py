"""Follows the readiness and liveness of one container."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

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
        while not _is_success(result := await self._probe(deployment.readiness)):
            if time.monotonic() - started_at > startup:
                raise ModelFailed(
                    f"the container was not ready after {startup:g} s: GET {deployment.readiness} "
                    f"on its port {deployment.port} gave {result}{self._last_lines()}",
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
            succeeded = {path: _is_success(await self._probe(path)) for path in paths}
            if succeeded[deployment.readiness]:
                last_ready = now
            if succeeded[deployment.liveness] or now - started < health.restart_delay:
                last_alive = now
            is_ready = now - last_ready < health.stop_traffic
            self._set_unready(None if is_ready else "Its readiness probe fails.")
            if now - last_alive >= health.restart:
                raise ModelFailed(f"the container was not alive for {health.restart:g} s")

    async def _probe(self, path: str) -> str:
        """The status of the response, or what went wrong, as part of a message."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return str(await probe(self._connect, path))
        except TimeoutError:
            return "no response"
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__


def _is_success(result: str) -> bool:
    """Whether a probe's result is a status from 200 to 399."""
    return result.isdecimal() and 200 <= int(result) < 400
