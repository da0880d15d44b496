"""One container, from its making to its removal: its folder of secrets, its output, the way to its server."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gusset.containers.engine import Container, our_name
from gusset.containers.mount import ContainerFolder
from gusset.containers.network import Beside, Inside, Network, Outside, may_enter
from gusset.containers.reaper import Reaper
from gusset.secrets.masking import Masker
from gusset.serving.pump import Pump, Stream

_LAST_LINES = 20
_LAST_OUTPUT = 10.0  # seconds to carry over what it has printed before its end


class Life:
    """A container that has been started. Everything here blocks: it is not for the event loop's thread."""

    container: Container
    folder: ContainerFolder
    network: Network | None

    def __init__(
        self,
        create: Callable[[Path], Container],
        fill: Callable[[ContainerFolder], None],
        *,
        port: int,
        host_network: bool,
        may_leave_core: bool,
        masker: Masker,
        outputs: Sequence[int],
        reaper: Reaper,
    ) -> None:
        """`create` makes a container that gets the folder at that path, `fill` puts the values into it.

        What it prints goes to `outputs`, the descriptors of standard output and error, masked.

        Raises:
            ModelFailed: it cannot be made or started. Nothing is left of it then.
            HostError: the engine has gone, or there is no room for its secrets.
        """
        self._reaper = reaper
        self._last = collections.deque[bytes](maxlen=_LAST_LINES)
        self._pumps: list[Pump] = []
        self.is_removed = False  # after `close`: the engine may not have answered
        with contextlib.ExitStack() as stack:
            self.folder = ContainerFolder(our_name())
            stack.callback(self.folder.close)
            reaper.tell("folder", str(self.folder.home))
            stack.callback(self._hear_out)  # after the removal, which ends it
            self.container = create(self.folder.path)
            stack.callback(self._remove)
            reaper.tell("container", self.container.id)
            fill(self.folder)
            self._listen(masker, outputs)
            self.container.start()
            if not may_leave_core:
                self.container.leave_no_core()
            self.network = self._reach(port, host_network=host_network)
            if self.network is not None:
                stack.callback(self.network.close)
            self._held = stack.pop_all()

    def wait(self) -> str:
        """Its end, as in "exit status 3", when all that it has printed has been carried over."""
        status = self.container.wait()
        self._hear_out()
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

    def _hear_out(self) -> None:
        for pump in self._pumps:
            pump.join(_LAST_OUTPUT)

    def _remove(self) -> None:
        self.is_removed = self.container.remove()
        if self.is_removed:
            self._reaper.tell("gone", self.container.id)

    def _listen(self, masker: Masker, outputs: Sequence[int]) -> None:
        ends = []
        for sink in outputs:
            source, end = os.pipe()
            ends.append(end)
            self._pumps.append(Pump(source, sink, _Remembering(masker.stream(), self._last)))
        self.container.attach(*ends)

    def _reach(self, port: int, *, host_network: bool) -> Network | None:
        """The way to its server; None when it has ended already: `wait` says how."""
        if host_network:
            return Outside(port)
        if pid := self.container.pid():
            with contextlib.suppress(OSError):
                return Inside(pid, port) if may_enter() else Beside(pid, port)
        return None


class _Remembering:
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
