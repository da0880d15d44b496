"""How a process protects itself, and how it ends together with the processes that it has started."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import signal
from functools import partial

# Without pathlib, which would be most of the shim's memory: it brings urllib, ipaddress and re.

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_F_SETSIG = 10


def harden() -> None:
    """Make this process non-dumpable and without core files.

    Other processes of the same account can then neither attach to it nor read
    its memory or environment under /proc. Call it after exec, which resets the
    flag. Without Linux it only disables core files.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_pipe(lifeline: int) -> None:
    """Have the kernel kill this whole process group when the other end of the pipe `lifeline` closes.

    Nothing may ever be written to the pipe. Unlike a parent-death signal this
    also ends child processes, as long as they stay in the group (the shim ends
    the rest). And it needs no thread, which native code could block.
    """
    os.set_inheritable(lifeline, False)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it was closed before the signal was requested
        os._exit(1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process, though not its children, when the thread that started it ends.

    `parent` is the process id of that thread.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the signal was requested
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of all descendants that are orphaned, in place of process 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """The process ids of this process's children, zombies too. The process must have a single thread."""
    own = os.getpid()
    try:
        return [int(text) for text in _read(f"/proc/self/task/{own}/children").split()]
    except OSError:  # the kernel was built without this file
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
        return [pid for pid in pids if _parent(pid) == own]


def _parent(pid: int) -> int | None:
    try:
        return int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123
        return file.read()


def keep_from_forks(*descriptors: int) -> None:
    """Have these sockets closed in every process that is forked from this one.

    In the child the numbers then refer to /dev/null, so that copied socket
    objects can still close them.
    """
    for descriptor in descriptors:
        status = os.fstat(descriptor)
        os.register_at_fork(
            after_in_child=partial(_replace_by_null, descriptor, (status.st_dev, status.st_ino))
        )


def _replace_by_null(descriptor: int, identity: tuple[int, int]) -> None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return
    if (status.st_dev, status.st_ino) == identity:  # else it was closed, and its number is in use again
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(option, argument, 0, 0, 0)
