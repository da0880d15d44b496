"""The process between supervisor and worker: `python -P -m gusset.serving.worker.shim`. Nothing outlives it.

It runs no code of the model and never holds a value. The worker is its child,
and whatever is orphaned below the worker becomes its child as well, in a
session of its own too. When worker or supervisor have ended, however they did,
it kills what is left, and then ends as the worker did.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time

from gusset.runtime.process import adopt_orphans, children, harden

_PATIENCE = 5.0  # seconds for killed processes to end; one that hangs in a driver may take for ever
_ROUND = 0.002  # seconds


def main(arguments: list[str]) -> int:
    """`arguments`: the file descriptors of control socket, listener and lifeline; 1 for debuggable."""
    control, listening, lifeline, debuggable = map(int, arguments)
    if not debuggable:
        harden()
    adopt_orphans()
    tie, ours = os.pipe()  # closed by our end, and then the worker is killed
    worker = os.fork()
    if worker == 0:
        os.close(lifeline)
        os.close(ours)
        os.setpgid(0, 0)
        from gusset.serving.worker import worker as work  # only now: we stay small

        return work.main([str(number) for number in (control, listening, tie, debuggable)])
    with contextlib.suppress(OSError):  # the worker does it itself, too; who comes first is open
        os.setpgid(worker, worker)
    for descriptor in (control, listening, tie):
        os.close(descriptor)
    _watch(worker, lifeline)
    return _end_like(_end_all(worker))


def _watch(worker: int, lifeline: int) -> None:
    """Return when the worker has ended, or the other end of the pipe `lifeline` was written to or closed."""
    bell, rope = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(rope, False)
    signal.set_wakeup_fd(rope, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda number, frame: _kill_group(worker, number))
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    while not _bury_orphans(worker):
        if any(descriptor == lifeline for descriptor, _ in poll.poll()):
            return
        with contextlib.suppress(BlockingIOError):
            os.read(bell, 4096)


def _bury_orphans(worker: int) -> bool:
    """Reap those of our children that have ended, up to the worker; whether that was met."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if ended.si_pid == worker:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def _end_all(worker: int) -> int:
    """Kill everything below us, and return the wait status of the worker.

    Whoever loses its parent by that becomes our child and is killed in the
    next round, until there is none. A child that has changed to another account
    cannot be killed, and is not waited for longer than `_PATIENCE`.
    """
    _kill_group(worker, signal.SIGKILL)
    status = int(signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE
    with contextlib.suppress(ChildProcessError):  # the end: there is nobody left
        while time.monotonic() < deadline:
            for child in children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(_ROUND)
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == worker:
                    status = ended[1]
    return status


def _kill_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _end_like(status: int) -> int:
    """The exit status to end with, unless the worker was ended by a signal: then so are we."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core file, the worker's, is enough
        with contextlib.suppress(OSError):  # SIGKILL cannot be set, and needs not
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
