"""Starts the containers of an image, and keeps the values in the running one up to date."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gusset.containers.engine.container import Container
from gusset.containers.engine.container_spec import ContainerSpec
from gusset.containers.engine.engine import Engine
from gusset.containers.engine.images import Image
from gusset.containers.engine.run_id import run_id
from gusset.containers.image_deployment import ImageDeployment
from gusset.containers.running_container import RunningContainer
from gusset.containers.secrets.secret_mount import LocalMount, SecretMount
from gusset.containers.secrets.sidecar import SidecarMount
from gusset.runtime.declared_secrets import Values
from gusset.runtime.supervision import SecretIntake
from gusset.secrets.value import SecretValue

log = logging.getLogger("gusset")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """How to run the containers of a deployment.

    `user` is the user and group id that they run as. Their output goes to
    `outputs`, the descriptors for standard output and standard error. For the
    rest see `serve_image`.
    """

    user: tuple[int, int]
    outputs: Sequence[int]
    host_network: bool
    gpus: int | None
    debuggable: bool


class ContainerStarter:
    """One container at a time, with the current values in it. Thread-safe; everything here blocks."""

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
        self._lock = threading.Lock()  # one set of values is written before the next, and before a start
        self._values: Mapping[str, SecretValue] = {}
        self.running: RunningContainer | None = None

    def deliver(self, values: Values) -> None:
        """New values: first the masker learns them, then the running container gets them.

        Raises:
            HostError: there is no room for them.
        """
        self._intake.accept(values)
        with self._lock:
            self._values = {name: held.value for name, held in values.items()}
            if self.running is not None:
                self.running.mount.replace(self._values)

    def start(self) -> RunningContainer:
        """Make and start a container.

        Raises:
            ModelFailed, HostError: see `RunningContainer.start`.
        """
        self._engine.keep_up()
        self._engine.remove_ours()  # what is left because the engine did not respond earlier
        running = RunningContainer.start(
            self._mount(),
            create=self._create,
            fill=self._fill,
            masker=self._intake.masker,
            outputs=self._options.outputs,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(running.close)
            with self._lock:
                running.mount.replace(self._values)  # they may have changed since `_fill`
                self.running = running
            stack.pop_all()
        return running

    def release(self) -> None:
        """Deliver no more values to the running container: it is about to be removed."""
        with self._lock:  # a delivery that is under way may take long
            self.running = None

    def _mount(self) -> SecretMount:
        port, options = self._deployment.port, self._options
        if not self._engine.takes_our_files:
            return SidecarMount(self._engine, options.user, port, log.info, host_network=options.host_network)
        return LocalMount(
            options.user if os.geteuid() == 0 else None,
            port,
            host_network=options.host_network,
            may_leave_core=options.debuggable,
        )

    def _create(self, mount: SecretMount) -> Container:
        deployment, is_local = self._deployment, self._engine.takes_our_files
        return self._engine.create(
            ContainerSpec(
                image=self._image.id,
                command=deployment.command,
                environment=deployment.environment_variables,
                user=None if deployment.user_id is None else str(deployment.user_id),
                secrets=mount.source,
                network=mount.network,
                owner=run_id(),
                cpus=deployment.cpus,
                memory=deployment.memory,
                gpus=self._options.gpus,
                user_namespace=self._user_namespace() if is_local and os.geteuid() != 0 else None,
                may_leave_core=is_local or self._options.debuggable,
                labels={"gusset.name": deployment.name},
            )
        )

    def _fill(self, mount: SecretMount) -> None:
        with self._lock:
            mount.replace(self._values)

    def _user_namespace(self) -> str:
        """Without root: map this account to the container's user, so that the secret files belong to it."""
        uid, gid = self._options.user
        return f"keep-id:uid={uid},gid={gid or uid}" if uid else "host"
