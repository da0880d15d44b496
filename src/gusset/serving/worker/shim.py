"""The process between supervisor and worker, started by `bootstrap.py`. Nothing outlives it.

It runs no code of the model and never holds a value. The worker is its child.
Every orphaned descendant of the worker becomes its child as well, also one in a
session of its own. When the worker or the supervisor has ended, for whatever
reason, the shim kills all that is left, and then ends as the worker did.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import sys
import time

from gusset.runtime.process import adopt_orphans, children, harden

EXIT_UNUSABLE_PYTHON = 10  # something that the worker imports is not installed
_KILL_SECONDS = 5.0  # for killed processes to end; one that hangs in a driver may never end
_KILL_INTERVAL = 0.002  # seconds


def main(arguments: list[str]) -> int:
    """Run the shim.

    `arguments` are the file descriptors of the control socket, the listener and
    the pipe to the supervisor, then 1 if debuggers may attach, else 0.
    """
    control, listening, lifeline, debuggable = map(int, arguments)
    if not debuggable:
        harden()
    adopt_orphans()
    worker_r, worker_w = os.pipe()  # when the shim's end closes, the kernel kills the worker
    worker = os.fork()
    if worker == 0:
        os.close(lifeline)
        os.close(worker_w)
        os.setpgid(0, 0)
        return _run_worker([str(number) for number in (control, listening, worker_r, debuggable)])
    with contextlib.suppress(OSError):  # the worker does it itself, too: either may come first
        os.setpgid(worker, worker)
    for descriptor in (control, listening, worker_r):
        os.close(descriptor)
    _watch(worker, lifeline)
    return _end_like(_kill_all(worker))


def _run_worker(arguments: list[str]) -> int:
    gc.disable()  # what is imported stays: looking for garbage meanwhile would take a twentieth of the time
    try:
        from gusset.serving.worker import worker  # not in the shim, which stays small
    except ImportError as error:
        sys.stderr.write(f"{sys.executable} cannot run gusset's worker: {error}\n")
        return EXIT_UNUSABLE_PYTHON
    gc.freeze()
    gc.enable()
    return worker.main(arguments)


def _watch(worker: int, lifeline: int) -> None:
    """Return when the worker has ended, or the other end of the pipe `lifeline` was closed or written to."""
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_r, False)
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda number, frame: _kill_group(worker, number))
    poll = select.poll()
    poll.register(wake_r, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    while not _reap(worker):
        if any(descriptor == lifeline for descriptor, _ in poll.poll()):
            return
        with contextlib.suppress(BlockingIOError):
            os.read(wake_r, 4096)


def _reap(worker: int) -> bool:
    """Reap the children that have ended. Returns whether the worker, which is not reaped, was among them."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if ended.si_pid == worker:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def _kill_all(worker: int) -> int:
    """Kill all descendants, and return the wait status of the worker.

    A descendant whose parent is killed becomes a child of this process, and is
    killed in the next round, until there is none left. A process that has
    changed to another account cannot be killed: this gives up on it after
    `_KILL_SECONDS`.
    """
    _kill_group(worker, signal.SIGKILL)
    status = int(signal.SIGKILL)
    deadline = time.monotonic() + _KILL_SECONDS
    with contextlib.suppress(ChildProcessError):  # no child is left
        while time.monotonic() < deadline:
            for child in children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(_KILL_INTERVAL)
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == worker:
                    status = ended[1]
    return status


def _kill_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _end_like(status: int) -> int:
    """The exit status of the worker; if a signal ended it, end by the same signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker's core file is enough
        with contextlib.suppress(OSError):  # the handler of SIGKILL cannot be set
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)
