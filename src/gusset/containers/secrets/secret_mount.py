"""What one container is given from outside: a place for its secrets, and a way to its server."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from gusset.containers.engine.container import Container
from gusset.containers.engine.run_id import run_id
from gusset.containers.network.network import EnteredNetns, HelperNetns, HostNetwork, Network, may_enter
from gusset.containers.secrets.memory_folder import ContainerFolder
from gusset.secrets.value import SecretValue


class SecretMount(Protocol):
    """For one container, from before it is made until it is removed. Everything here blocks."""

    @property
    def source(self) -> Path | str:
        """What the container gets as /secrets: a folder of this machine's, or a volume by its name."""

    @property
    def network(self) -> str | None:
        """The container's network, as the engine's API has it; None is the engine's own choice."""

    def replace(self, values: Mapping[str, SecretValue]) -> None:
        """Have exactly these values there, each file replaced at once.

        Raises:
            HostError: that cannot be done (now).
        """

    def started(self, container: Container) -> Network | None:
        """The way to the server in the container, which has just started; None when it has ended already.

        Raises:
            HostError: there is none.
        """

    def close(self) -> None:
        """Let go of all of it, after the container was removed."""


class LocalMount:
    """For an engine which takes our files: a folder in this machine's memory; its network is entered."""

    def __init__(
        self, user: tuple[int, int] | None, port: int, *, host_network: bool, may_leave_core: bool
    ) -> None:
        """`user` owns the files; None when that is who we are. `port` is the server's.

        Raises:
            HostError: this machine has no memory-backed place that we may write to.
        """
        self._folder = ContainerFolder(run_id(), user)
        self._port = port
        self._may_leave_core = may_leave_core
        self._held = contextlib.ExitStack()
        self._held.callback(self._folder.close)
        self.source = self._folder.path
        self.network = "host" if host_network else None

    def replace(self, values: Mapping[str, SecretValue]) -> None:
        """See `SecretMount.replace`."""
        self._folder.replace(values)

    def started(self, container: Container) -> Network | None:
        """See `SecretMount.started`."""
        if not self._may_leave_core:
            container.leave_no_core()
        network: Network | None = HostNetwork(self._port) if self.network else self._entered(container.pid())
        if network is not None:
            self._held.callback(network.close)
        return network

    def _entered(self, pid: int) -> Network | None:
        if pid:
            with contextlib.suppress(OSError):  # it has ended
                return EnteredNetns(pid, self._port) if may_enter() else HelperNetns(pid, self._port)
        return None

    def close(self) -> None:
        """See `SecretMount.close`."""
        self._held.close()
