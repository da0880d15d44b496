"""One worker process, with its warden, as the supervisor sees it: started, told things, ended."""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO

from gusset.runtime.output_pump import OutputPump
from gusset.secrets.masking import Masker
from gusset.serving.channel import Channel, Closed, Malformed
from gusset.serving.protocol import MAX_REPORT_BYTES, Order, Report, WorkerPlan, decode_report, encode_order

log = logging.getLogger("gusset.serving")

_LAST_OUTPUT = 2.0  # seconds to carry over what a dead worker has printed and reported


class ReplicaState(enum.Enum):
    """Where a replica is in its life; only a ready one is given requests."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"
    STOPPED = "stopped"


class Replica:
    """A worker, with its output masked on the way to `output` and `errors` (file descriptors).

    `on_report` gets each message of the worker, `on_end` its exit status (negative:
    the signal that ended it), both on threads of the replica's own.
    """

    def __init__(
        self,
        listener: socket.socket,
        masker: Masker,
        *,
        debuggable: bool,
        environment: Mapping[str, str],
        output: int,
        errors: int,
    ) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        lifeline, self._lifeline = os.pipe()
        descriptors = (theirs.fileno(), listener.fileno(), lifeline)
        command = [sys.executable, "-P", "-m", "gusset.serving.worker.shim"]
        command += [str(number) for number in (*descriptors, int(debuggable))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            pass_fds=descriptors,
            process_group=0,  # no Ctrl-C reaches it: when to end is ours to say
        )
        theirs.close()
        os.close(lifeline)
        self._pid = self._process.pid
        self._threads: list[threading.Thread] = []
        self._reaping = threading.Lock()
        self._killed = False  # its lifeline is closed
        self._reaped = False  # from then on its id may name another process
        self._pumps = [
            OutputPump(_taken(self._process.stdout), output, masker.stream()),
            OutputPump(_taken(self._process.stderr), errors, masker.stream()),
        ]

    def start(
        self,
        plan: WorkerPlan,
        on_report: Callable[[Report], object],
        on_end: Callable[[int], object],
    ) -> None:
        """Give the worker its plan, and begin to listen to it."""
        self.order(plan)
        self._threads = [
            threading.Thread(target=self._listen, args=(on_report,), name="gusset-reports", daemon=True),
            threading.Thread(target=self._await_end, args=(on_end,), name="gusset-wait", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def order(self, order: Order) -> None:
        """Send an order; one that has no receiver any more is dropped."""
        with contextlib.suppress(Closed):
            self._channel.send(encode_order(order))

    def terminate(self) -> None:
        """Ask the worker and its process group to end, by SIGTERM."""
        with self._reaping:
            if not self._reaped:
                os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """Have the worker killed, and everything that it has started; `join` waits for it."""
        with self._reaping:
            if not self._killed:
                with contextlib.suppress(BrokenPipeError):  # it has ended by itself
                    os.write(self._lifeline, b".")  # not closed alone: some fork of ours may hold a copy
                os.close(self._lifeline)
            self._killed = True

    def join(self) -> None:
        """Return when a worker that was started has ended, and nothing of it is left."""
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        """End a worker that was never started, and wait for its end."""
        self.kill()
        self._reap()

    def _listen(self, on_report: Callable[[Report], object]) -> None:
        warned = False  # once is enough: whoever sends one may send many
        with contextlib.suppress(Closed):
            while True:
                try:
                    on_report(decode_report(self._channel.receive(MAX_REPORT_BYTES)))
                except Malformed as error:
                    if not warned:
                        log.warning("A report of the model's process is ignored, as all such are: %s", error)
                    warned = True

    def _await_end(self, on_end: Callable[[int], object]) -> None:
        on_end(self._reap())

    def _reap(self) -> int:
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            self._reaped = True
            status = self._process.wait()
        self._release()
        return status

    def _release(self) -> None:
        for pump in self._pumps:
            pump.join(_LAST_OUTPUT)
        if self._threads:
            self._threads[0].join(_LAST_OUTPUT)  # its last reports, too, come before its end
        self.kill()
        self._channel.close()


def _taken(pipe: IO[bytes] | None) -> int:
    """The descriptor of a pipe, for a pump that will close it."""
    assert pipe  # noqa: S101  # PIPE was asked for
    descriptor = os.dup(pipe.fileno())
    pipe.close()
    return descriptor


def describe_end(status: int) -> str:
    """`exit status 3` or `signal SIGKILL (killed)`, for people."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    hint = "; was it out of memory?" if -status == signal.SIGKILL else ""
    return f"signal {name}{hint}"
