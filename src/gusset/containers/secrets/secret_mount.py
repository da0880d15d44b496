"""What one container gets from outside: its secrets as files, and connections to its server."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from gusset.containers.engine.container import Container
from gusset.containers.engine.run_id import run_id
from gusset.containers.network.network import EnteredNetns, HelperNetns, HostNetwork, Network, may_enter
from gusset.containers.secrets.memory_folder import ContainerFolder
from gusset.errors import HostError
from gusset.secrets.value import SecretValue

# What the system has no more of: files, processes, memory.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})


class SecretMount(Protocol):
    """One container's secrets and network, from before creation to after removal. All methods block."""

    @property
    def source(self) -> Path | str:
        """What is mounted as /secrets: a folder of this machine, or the name of a volume."""

    @property
    def network(self) -> str | None:
        """The container's network mode in the engine's API; None leaves it to the engine."""

    def replace(self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue]) -> None:
        """Make these the only values; each file is replaced atomically.

        `previous` are the values before them, during an overlap: the files of the folder `..previous`.

        Raises:
            HostError: they cannot be written (now).
        """

    def connect_network(self, container: Container) -> Network | None:
        """Connections to the server in the container, which has just started; None if it has ended already.

        Raises:
            HostError: they cannot be made.
        """

    def addresses(self, container: Container) -> list[str]:
        """The container's addresses in the engine's networks, of which the engine's machine is a part."""

    def close(self) -> None:
        """Remove the values and release everything, after the container has been removed."""


class LocalMount:
    """A folder in this machine's memory, for an engine that can mount it. Enters the container's network."""

    def __init__(
        self, folder: ContainerFolder, port: int, *, host_network: bool, may_leave_core: bool
    ) -> None:
        """Takes ownership of the folder. `port` is the server's."""
        self._folder = folder
        self._port = port
        self._may_leave_core = may_leave_core
        self._resources = contextlib.ExitStack()
        self._resources.callback(folder.close)
        self.source = folder.path
        self.network = "host" if host_network else None

    @classmethod
    def create(
        cls, user: tuple[int, int] | None, port: int, *, host_network: bool, may_leave_core: bool
    ) -> LocalMount:
        """`user` is the user and group id of the files; None: this process's own.

        Raises:
            HostError: there is no folder in memory that this account may write to.
        """
        folder = ContainerFolder.create(run_id(), user)
        return cls(folder, port, host_network=host_network, may_leave_core=may_leave_core)

    def replace(self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue]) -> None:
        """See `SecretMount.replace`."""
        self._folder.replace(values, previous)

    def connect_network(self, container: Container) -> Network | None:
        """See `SecretMount.connect_network`."""
        if not self._may_leave_core:
            container.leave_no_core()
        network: Network | None = HostNetwork(self._port) if self.network else self._enter(container.pid())
        if network is not None:
            self._resources.callback(network.close)
        return network

    def _enter(self, pid: int) -> Network | None:
        if not pid:
            return None
        try:
            if may_enter():
                return EnteredNetns.open(pid, self._port)
            return HelperNetns.start(pid, self._port)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                text = f"connections into the container cannot be made: {error.strerror}"
                raise HostError(text) from None
            return None  # it has ended

    def addresses(self, container: Container) -> list[str]:
        """See `SecretMount.addresses`."""
        return container.addresses()

    def close(self) -> None:
        """See `SecretMount.close`."""
        self._resources.close()
