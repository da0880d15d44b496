"""One container from its creation to its removal, with its secrets, its output and its network."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Sequence

from gusset.containers.engine.container import Container
from gusset.containers.network.network import Network
from gusset.containers.secrets.secret_mount import SecretMount
from gusset.runtime.output_pump import OutputPump, OutputStream
from gusset.secrets.masking import Masker

_LAST_LINES = 20
_DRAIN_SECONDS = 10.0  # until the output of an ended container is forwarded


class RunningContainer:
    """A container that has been started, and its resources. All methods block: use a thread."""

    def __init__(
        self,
        container: Container,
        mount: SecretMount,
        *,
        network: Network | None,
        output: _Output,
        resources: contextlib.ExitStack,
    ) -> None:
        self.container = container
        self.mount = mount
        self.network = network
        self._output = output
        self._resources = resources

    @classmethod
    def start(
        cls,
        mount: SecretMount,
        *,
        create: Callable[[SecretMount], Container],
        fill: Callable[[SecretMount], None],
        masker: Masker,
        outputs: Sequence[int],
    ) -> RunningContainer:
        """Create a container for `mount`, fill the mount with values, and start the container.

        Takes ownership of the mount, also if this fails. `create` and `fill` are called with
        it. The container's standard output and error are copied, masked, to the descriptors
        `outputs`.

        Raises:
            ModelFailed: it cannot be created or started; it has been removed then.
            HostError: the engine does not respond, or there is no room for the secrets.
        """
        output = _Output()
        with contextlib.ExitStack() as stack:
            stack.callback(mount.close)
            stack.callback(output.drain)  # runs after `container.remove`, which ends the output
            container = create(mount)
            stack.callback(container.remove)
            fill(mount)
            output.attach(container, masker, outputs)
            container.start()
            network = mount.connect_network(container)
            return cls(container, mount, network=network, output=output, resources=stack.pop_all())

    def wait(self) -> str:
        """Wait until it has ended and its output is forwarded; how it ended, as in "exit status 3"."""
        status = self.container.wait()
        self._output.drain()
        if status is None:
            return "an unknown exit status"
        return f"exit status {status}" + ("; was it out of memory?" if status == 137 else "")

    def last_lines(self) -> str:
        """Its last lines of output, masked, as part of a message."""
        lines = self._output.last_lines()
        if not lines:
            return "; it printed nothing"
        return "; its last lines:\n" + "\n".join(f"  {line.decode('utf-8', 'replace')}" for line in lines)

    def close(self) -> None:
        """Remove the container, running or not, and its resources."""
        self._resources.close()


class _Output:
    """Forwards a container's output through the masker, and keeps its last lines."""

    def __init__(self) -> None:
        self._last = collections.deque[bytes](maxlen=_LAST_LINES)
        self._pumps: list[OutputPump] = []

    def attach(self, container: Container, masker: Masker, outputs: Sequence[int]) -> None:
        """Forward all output from now on. Call it before the container starts."""
        with contextlib.ExitStack() as stack:
            ends = []
            for sink, channel in zip(outputs, ("stdout", "stderr"), strict=True):
                source, end = os.pipe()
                stack.callback(os.close, end)  # which also ends the pump
                ends.append(end)
                self._pumps.append(
                    OutputPump.start(source, sink, _RecordingStream(masker.stream(channel), self._last))
                )
            stack.pop_all()  # `attach` closes them
        container.attach(*ends)

    def drain(self) -> None:
        """Wait until everything is forwarded, at most `_DRAIN_SECONDS` per stream."""
        for pump in self._pumps:
            pump.join(_DRAIN_SECONDS)

    def last_lines(self) -> list[bytes]:
        return b"".join(tuple(self._last)).splitlines()[-_LAST_LINES:]


class _RecordingStream:
    """A masking stream that also appends its output to `last`."""

    def __init__(self, stream: OutputStream, last: collections.deque[bytes]) -> None:
        self._stream = stream
        self._last = last

    def feed(self, data: bytes) -> bytes:
        return self._record(self._stream.feed(data))

    def flush(self) -> bytes:
        return self._record(self._stream.flush())

    @property
    def holding(self) -> bool:
        return self._stream.holding

    def _record(self, data: bytes) -> bytes:
        self._last.extend(data[-8192:].splitlines(keepends=True)[-_LAST_LINES:])
        return data
