"""Starts the containers of an image, and delivers new values to the running one."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gusset.containers.engine import leftovers
from gusset.containers.engine.container import Container
from gusset.containers.engine.container_spec import ContainerSpec
from gusset.containers.engine.engine import Engine
from gusset.containers.engine.images import Image
from gusset.containers.engine.run_id import run_id
from gusset.containers.image_deployment import ImageDeployment
from gusset.containers.network.network import is_reachable
from gusset.containers.running_container import RunningContainer
from gusset.containers.secrets.secret_mount import LocalMount, SecretMount
from gusset.containers.secrets.sidecar import SidecarMount
from gusset.runtime.caller_auth import CallerAuth, digests_of
from gusset.runtime.declared_secrets import Values
from gusset.runtime.supervision import SecretIntake
from gusset.secrets.value import SecretValue

log = logging.getLogger("gusset")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """How to run the containers of a deployment.

    `user` is the user and group id that they run as. `folders` of this machine
    are mounted read-only at their paths. `outputs` are the two
    descriptors to which their standard output and error are copied. For the
    other options see `serve_image`.
    """

    user: tuple[int, int]
    outputs: Sequence[int]
    host_network: bool
    gpus: int | None
    debuggable: bool
    folders: Mapping[str, Path] = field(default_factory=dict)


class ContainerStarter:
    """Runs one container at a time, with the current values in it. Thread-safe; all methods block."""

    def __init__(
        self,
        deployment: ImageDeployment,
        engine: Engine,
        image: Image,
        intake: SecretIntake,
        *,
        options: ContainerOptions,
    ) -> None:
        self._deployment = deployment
        self._engine = engine
        self._image = image
        self._intake = intake
        self._options = options
        self._callers = tuple(caller.name for caller in deployment.callers)
        self.caller_auth = CallerAuth(digests_of(self._callers, {})) if self._callers else None
        self._lock = threading.Lock()  # orders deliveries, and the start of a container between them
        self._values: Mapping[str, SecretValue] = {}
        self._previous: Mapping[str, SecretValue] = {}
        self._filled: SecretMount | None = None  # of the container that runs, or is being started
        self.running: RunningContainer | None = None

    def deliver(self, values: Values) -> None:
        """Pass new values to the masker, and then to the running container; callers' keys to `caller_auth`.

        When it returns, no container has older files, and none will get them.

        Raises:
            HostError: there is no room for them.
        """
        self._intake.accept(values)
        held = {name: delivered.value for name, delivered in values.items()}
        if self.caller_auth is not None:
            self.caller_auth.replace(digests_of(self._callers, values))
        kept = {name: delivered.previous.value for name, delivered in values.items() if delivered.previous}
        with self._lock:
            self._values = {name: held[name] for name in self._deployment.declared if name in held}
            self._previous = {name: kept[name] for name in self._deployment.declared if name in kept}
            if self._filled is not None:
                self._filled.replace(self._values, self._previous)

    def start(self) -> RunningContainer:
        """Create and start a container.

        Raises:
            ModelFailed, HostError: see `RunningContainer.start`.
        """
        self._engine.keep_up()
        leftovers.remove_own(self._engine.api)  # the engine may not have responded to an earlier removal
        try:
            self.running = RunningContainer.start(
                self._mount(),
                create=self._create,
                fill=self._fill,
                masker=self._intake.masker,
                outputs=self._options.outputs,
            )
        except BaseException:
            self.release()
            raise
        return self.running

    def warn_if_exposed(self) -> None:
        """Warn if others can reach the server in the running container past gusset, and so without a key."""
        running, port = self.running, self._deployment.port
        if running is None or self.caller_auth is None or not self._engine.is_on_our_network:
            return
        for address in running.mount.addresses(running.container):
            if is_reachable(address, port):
                log.warning(
                    "Other containers and all accounts of this machine can call the server in the container "
                    "without a key, at %s:%d. Let it listen on 127.0.0.1 only, where gusset finds it.",
                    address,
                    port,
                )
                return

    def release(self) -> None:
        """Stop deliveries to the running container, which is about to be removed."""
        with self._lock:  # waits for a delivery in progress
            self.running = self._filled = None

    def _mount(self) -> SecretMount:
        port, options = self._deployment.port, self._options
        if not self._engine.can_mount_our_files:
            return SidecarMount.start(
                self._engine, options.user, port, on_progress=log.info, host_network=options.host_network
            )
        return LocalMount.create(
            options.user if os.geteuid() == 0 else None,
            port,
            host_network=options.host_network,
            may_leave_core=options.debuggable,
        )

    def _create(self, mount: SecretMount) -> Container:
        deployment, is_local = self._deployment, self._engine.can_mount_our_files
        return self._engine.create(
            ContainerSpec(
                image=self._image.id,
                command=deployment.command,
                environment=deployment.environment_variables,
                user=None if deployment.user_id is None else str(deployment.user_id),
                secrets=mount.source,
                network=mount.network,
                run_id=run_id(),
                cpus=deployment.cpus,
                memory=deployment.memory,
                gpus=self._options.gpus,
                user_namespace=self._user_namespace() if is_local and os.geteuid() != 0 else None,
                may_leave_core=is_local or self._options.debuggable,
                labels={"gusset.name": deployment.name},
                folders=self._options.folders,
            )
        )

    def _fill(self, mount: SecretMount) -> None:
        with self._lock:
            mount.replace(self._values, self._previous)
            self._filled = mount

    def _user_namespace(self) -> str:
        """Without root: maps this account to the container's user, which then owns the secret files."""
        uid, gid = self._options.user
        return f"keep-id:uid={uid},gid={gid or uid}" if uid else "host"
