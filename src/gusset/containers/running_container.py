"""One container, from its making to its removal: its secrets, its output, the way to its server."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Sequence

from gusset.containers.engine.container import Container
from gusset.containers.network.network import Network
from gusset.containers.secrets.secret_mount import SecretMount
from gusset.runtime.output_pump import OutputPump, Stream
from gusset.secrets.masking import Masker

_LAST_LINES = 20
_LAST_OUTPUT = 10.0  # seconds to carry over what it has printed before its end


class RunningContainer:
    """A container that has been started, with what was made for it. All methods block: use a thread."""

    def __init__(
        self,
        container: Container,
        mount: SecretMount,
        *,
        network: Network | None,
        output: _Output,
        held: contextlib.ExitStack,
    ) -> None:
        self.container = container
        self.mount = mount
        self.network = network
        self._output = output
        self._held = held

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

        The mount belongs to the container from now on. The container's standard output
        and error go, masked, to the descriptors `outputs`.

        Raises:
            ModelFailed: it cannot be created or started. Nothing is left of it then.
            HostError: the engine does not respond, or there is no room for the secrets.
        """
        output = _Output()
        with contextlib.ExitStack() as stack:
            stack.callback(mount.close)
            stack.callback(output.drain)  # after the removal, which ends the output
            container = create(mount)
            stack.callback(container.remove)
            fill(mount)
            output.attach(container, masker, outputs)
            container.start()
            network = mount.started(container)
            return cls(container, mount, network=network, output=output, held=stack.pop_all())

    def wait(self) -> str:
        """Wait until it ends and its output is forwarded; how it ended, as in "exit status 3"."""
        status = self.container.wait()
        self._output.drain()
        if status is None:
            return "an exit status that its engine does not report"
        return f"exit status {status}" + ("; was it out of memory?" if status == 137 else "")

    def last_lines(self) -> str:
        """The end of its output, masked, as part of a message."""
        lines = self._output.last_lines()
        if not lines:
            return "; it printed nothing"
        return "; its last lines:\n" + "\n".join(f"  {line.decode('utf-8', 'replace')}" for line in lines)

    def close(self) -> None:
        """Remove the container, running or not, and what was made for it."""
        self._held.close()


class _Output:
    """Forwards a container's output through the masker, and remembers the end of it."""

    def __init__(self) -> None:
        self._last = collections.deque[bytes](maxlen=_LAST_LINES)
        self._pumps: list[OutputPump] = []

    def attach(self, container: Container, masker: Masker, outputs: Sequence[int]) -> None:
        """Before the container starts, so that nothing is lost."""
        ends = []
        for sink in outputs:
            source, end = os.pipe()
            ends.append(end)
            self._pumps.append(OutputPump.start(source, sink, _RecordingStream(masker.stream(), self._last)))
        container.attach(*ends)

    def drain(self) -> None:
        """Wait until everything is forwarded, for at most `_LAST_OUTPUT` seconds per stream."""
        for pump in self._pumps:
            pump.join(_LAST_OUTPUT)

    def last_lines(self) -> list[bytes]:
        return b"".join(tuple(self._last)).splitlines()[-_LAST_LINES:]


class _RecordingStream:
    """A masking stream that keeps the end of its output in `last`."""

    def __init__(self, stream: Stream, last: collections.deque[bytes]) -> None:
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
