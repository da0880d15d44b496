"""One worker process with its shim, as the supervisor sees it: started, sent orders, ended."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gusset.errors import HostError
from gusset.portable import signal_name
from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.child_process import detach, translated_limits
from gusset.runtime.output_pump import OutputPump
from gusset.runtime.tls import TlsFiles
from gusset.secrets.masking import Masker
from gusset.serving.channel import Channel, Closed, Malformed
from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import (
    MAX_REPORT_BYTES,
    Masked,
    Order,
    SetSecrets,
    WorkerPlan,
    WorkerReport,
    decode_report,
    encode_order,
)

log = logging.getLogger("gusset")

UNUSABLE_PYTHON_HINT = "remove the model's environment with `gusset env remove`; the next start makes another"

_BOOTSTRAP = str(Path(__file__).parents[1] / "worker" / "bootstrap.py")
_WORKER = "a process for the model"
_LAST_OUTPUT = 2.0  # seconds to forward what a dead worker has printed and reported


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What all workers of a deployment have in common.

    They accept connections on `listener`; `shares_port` says whether several
    do. Their output is masked on the way to `output` and `errors` (file descriptors),
    their results if `masks_responses`. They speak TLS with the files `tls`, plain HTTP without.
    """

    listener: socket.socket
    masker: Masker
    environment: Mapping[str, str]
    output: int
    errors: int
    debuggable: bool
    readable_logs: bool
    shares_port: bool
    masks_responses: bool
    browser_rules: BrowserRules | None
    tls: TlsFiles | None


class WorkerProcess:
    """A started worker; it imports its libraries while it waits for its plan."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: Channel,
        lifeline: int,
        options: WorkerOptions,
    ) -> None:
        self._process = process
        self._channel = channel
        self._lifeline = lifeline
        self._options = options
        self._pumps: list[OutputPump] = []
        self._pid = process.pid
        self._threads: list[threading.Thread] = []
        self._has_begun = False  # a thread waits for its end
        self._orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None is the end
        self._lock = threading.Lock()  # guards the next two
        self._killed = False  # the lifeline is closed
        self._reaped = False  # from then on the process id may belong to another process

    @classmethod
    def start(cls, options: WorkerOptions, python: str) -> WorkerProcess:
        """Start a worker on this Python. It ends when this process does, however it ends.

        Raises:
            HostError: the Python cannot be started, or the system gives no more processes, threads or files.
        """
        with contextlib.ExitStack() as stack, translated_limits(_WORKER):
            own_end, worker_end = socket.socketpair()
            stack.enter_context(own_end)
            with worker_end:
                lifeline_r, lifeline_w = os.pipe()
                stack.callback(os.close, lifeline_w)
                try:
                    process = _start_python(options, python, worker_end.fileno(), lifeline_r)
                finally:
                    os.close(lifeline_r)
            worker = cls(process, Channel(own_end), lifeline_w, options)
            stack.pop_all()  # the worker closes them
            try:
                worker._start_pumps()
            except BaseException:
                worker.abandon()
                raise
        return worker

    def _start_pumps(self) -> None:
        masker, options = self._options.masker, self._options
        for pipe, sink, channel in (
            (self._process.stdout, options.output, "stdout"),
            (self._process.stderr, options.errors, "stderr"),
        ):
            self._pumps.append(OutputPump.start(detach(pipe), sink, masker.stream(channel)))

    def begin(
        self,
        deployment: ModelDeployment,
        secrets: SetSecrets,
        *,
        on_report: Callable[[WorkerReport], object],
        on_end: Callable[[int], object],
    ) -> None:
        """Send the worker its plan.

        `on_report` gets each of its reports, `on_end` its exit status (negative:
        the signal that ended it), both on threads of their own.

        Raises:
            HostError: the system gives no more threads; `abandon` the worker.
        """
        self.send(
            WorkerPlan(
                deployment=deployment,
                secrets=secrets,
                readable_logs=self._options.readable_logs,
                shares_port=self._options.shares_port,
                masks_responses=self._options.masks_responses,
                browser_rules=self._options.browser_rules,
                tls=self._options.tls,
            )
        )
        threads = [
            threading.Thread(target=self._receive, args=(on_report,), name="gusset-reports", daemon=True),
            threading.Thread(target=self._send_orders, name="gusset-orders", daemon=True),
            # The last: as long as it does not run, `abandon` waits for the worker's end.
            threading.Thread(target=self._await_end, args=(on_end,), name="gusset-wait", daemon=True),
        ]
        with translated_limits(_WORKER):
            for thread in threads:
                thread.start()
                self._threads.append(thread)
        self._has_begun = True

    def send(self, order: Order) -> None:
        """Send an order after those before it. Never waits: the worker may have been stopped.

        The order is dropped if the worker has ended.
        """
        self._orders.put(encode_order(order))

    def _send_orders(self) -> None:
        with contextlib.suppress(Closed):
            while (order := self._orders.get()) is not None:
                self._channel.send(order)

    def terminate(self) -> None:
        """Ask the worker and its process group to end, by SIGTERM."""
        with self._lock:
            if not self._reaped:
                os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """Have the shim kill the worker and everything that it has started; `join` waits for that."""
        with self._lock:
            if not self._killed:
                with contextlib.suppress(BrokenPipeError):  # it has ended by itself
                    # Closing is not enough: a fork of this process may hold a copy of the descriptor.
                    os.write(self._lifeline, b".")
                os.close(self._lifeline)
            self._killed = True

    def join(self) -> None:
        """Return when the worker has ended and nothing is left of it."""
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        """End a worker that nobody follows, as it has no plan or `begin` failed, and wait for its end."""
        self.kill()
        if self._has_begun:
            self.join()
        else:
            self._reap()

    def _receive(self, on_report: Callable[[WorkerReport], object]) -> None:
        warned = False  # once: a worker that sends one malformed report may send many
        with contextlib.suppress(Closed):
            while True:
                try:
                    report = decode_report(self._channel.receive(MAX_REPORT_BYTES))
                    if isinstance(report, Masked):
                        self._options.masker.count(report.hits)
                    else:
                        on_report(report)
                except Malformed as error:
                    if not warned:
                        log.warning(
                            "A malformed report of the model's process is ignored, and so are later ones: %s",
                            error,
                        )
                    warned = True

    def _await_end(self, on_end: Callable[[int], object]) -> None:
        on_end(self._reap())

    def _reap(self) -> int:
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._reaped = True
            status = self._process.wait()
        self._release()
        return status

    def _release(self) -> None:
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()  # one that has no pump
        for pump in self._pumps:
            pump.join(_LAST_OUTPUT)
        if self._threads:
            self._threads[0].join(_LAST_OUTPUT)  # so that its last reports come before its end
        self.kill()
        self._channel.close()
        self._orders.put(None)


def _start_python(
    options: WorkerOptions, python: str, control: int, lifeline: int
) -> subprocess.Popen[bytes]:
    """Start the worker's shim with its ends of the socket and the pipe.

    Raises:
        HostError: the Python cannot be started.
        OSError: the system gives no more processes or files.
    """
    descriptors = (control, options.listener.fileno(), lifeline)
    numbers = [str(number) for number in (*descriptors, int(options.debuggable))]
    try:
        return subprocess.Popen(
            [python, "-P", _BOOTSTRAP, *numbers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(options.environment, python),
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C must not reach it: the supervisor decides when it ends
        )
    except OSError as error:
        if error.filename != python:  # not the program is at fault
            raise
        raise HostError(
            f"the model's Python, {python}, cannot be started: {(error.strerror or 'an error').lower()}",
            hint=UNUSABLE_PYTHON_HINT,
        ) from None


def _environment(variables: Mapping[str, str], python: str) -> Mapping[str, str]:
    """The variables for a worker on this Python: programs of the model's environment are found first."""
    if python == sys.executable:
        return variables
    programs = Path(python).parent
    path = variables.get("PATH", os.defpath)
    own = {"PATH": f"{programs}{os.pathsep}{path}"}
    if is_environment(python):
        own["VIRTUAL_ENV"] = str(programs.parent)
    return {name: text for name, text in variables.items() if name != "PYTHONHOME"} | own


def is_environment(python: str) -> bool:
    """Whether a Python is that of a virtual environment, which in images it need not be."""
    return (Path(python).parents[1] / "pyvenv.cfg").is_file()


def describe_exit(status: int) -> str:
    """`exit status 3` or `SIGKILL; was it out of memory?`, for people."""
    if status >= 0:
        return f"exit status {status}"
    hint = "; was it out of memory?" if -status == signal.SIGKILL else ""
    return f"{signal_name(-status)}{hint}"
