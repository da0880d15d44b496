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
    """A container that has been started. Everything here blocks: it is not for the event loop's thread."""

    def __init__(
        self,
        mount: SecretMount,
        create: Callable[[SecretMount], Container],
        fill: Callable[[SecretMount], None],
        masker: Masker,
        outputs: Sequence[int],
    ) -> None:
        """`create` makes a container for the mount, which is ours from now on; `fill` puts the values there.

        What it prints goes to `outputs`, the descriptors of standard output and error, masked.

        Raises:
            ModelFailed: it cannot be made or started. Nothing is left of it then.
            HostError: the engine has gone, or there is no room for its secrets.
        """
        self.mount = mount
        self._last = collections.deque[bytes](maxlen=_LAST_LINES)
        self._pumps: list[OutputPump] = []
        with contextlib.ExitStack() as stack:
            stack.callback(mount.close)
            stack.callback(self._drain_output)  # after the removal, which ends it
            self.container = create(mount)
            stack.callback(self.container.remove)
            fill(mount)
            self._listen(masker, outputs)
            self.container.start()
            self.network: Network | None = mount.started(self.container)
            self._held = stack.pop_all()

    def wait(self) -> str:
        """Its end, as in "exit status 3", when all that it has printed has been carried over."""
        status = self.container.wait()
        self._drain_output()
        if status is None:
            return "its engine does not say how"
        return f"exit status {status}" + ("; was it out of memory?" if status == 137 else "")

    def last_lines(self) -> str:
        """What it printed last, masked, for a message."""
        lines = b"".join(tuple(self._last)).splitlines()[-_LAST_LINES:]
        if not lines:
            return "; it printed nothing"
        return "; its last lines:\n" + "\n".join(f"  {line.decode('utf-8', 'replace')}" for line in lines)

    def close(self) -> None:
        """Remove it, running or not, and all that was held for it."""
        self._held.close()

    def _drain_output(self) -> None:
        for pump in self._pumps:
            pump.join(_LAST_OUTPUT)

    def _listen(self, masker: Masker, outputs: Sequence[int]) -> None:
        ends = []
        for sink in outputs:
            source, end = os.pipe()
            ends.append(end)
            self._pumps.append(OutputPump.start(source, sink, _RecordingStream(masker.stream(), self._last)))
        self.container.attach(*ends)


class _RecordingStream:
    """A masking stream, whose last output is kept for messages."""

    def __init__(self, stream: Stream, last: collections.deque[bytes]) -> None:
        self._stream = stream
        self._last = last

    def feed(self, data: bytes) -> bytes:
        return self._kept(self._stream.feed(data))

    def flush(self) -> bytes:
        return self._kept(self._stream.flush())

    @property
    def holding(self) -> bool:
        return self._stream.holding

    def _kept(self, data: bytes) -> bytes:
        self._last.extend(data[-8192:].splitlines(keepends=True)[-_LAST_LINES:])
        return data
