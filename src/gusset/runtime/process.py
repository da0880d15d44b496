"""What serving's processes do to themselves: stay unreadable, leave no core, end together."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import signal
from functools import partial
from pathlib import Path

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_F_SETSIG = 10


def harden() -> None:
    """Make this process non-dumpable and without core files.

    Other processes of the same account can then neither attach to it nor read
    its memory or environment under /proc. To be called after exec, which
    resets the flag. Does nothing where the kernel is not Linux.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_pipe(lifeline: int) -> None:
    """Have the kernel kill this whole process group when the other end of the pipe `lifeline` closes.

    Nothing may ever be written to the pipe. Unlike a parent-death signal this
    ends what we have started, too, as long as it stays in the group (the
    warden ends the rest); and it needs no thread of ours that native code
    could hold up.
    """
    os.set_inheritable(lifeline, False)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it had closed before we asked for the signal
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of whatever is orphaned below this process, in place of process 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """The process ids of this process's children, ended ones too; it must have one thread only."""
    own = os.getpid()
    try:
        return [int(text) for text in Path(f"/proc/self/task/{own}/children").read_text().split()]
    except OSError:  # a kernel that was built without it
        there = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
        return [pid for pid in there if _parent(pid) == own]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None


def keep_from_forks(*descriptors: int) -> None:
    """Have these sockets closed in every process that is forked from this one.

    There the numbers then stand for /dev/null: objects that were forked, too,
    may still close them.
    """
    for descriptor in descriptors:
        about = os.fstat(descriptor)
        os.register_at_fork(after_in_child=partial(_let_go, descriptor, (about.st_dev, about.st_ino)))


def _let_go(descriptor: int, known: tuple[int, int]) -> None:
    try:
        about = os.fstat(descriptor)
    except OSError:
        return
    if (about.st_dev, about.st_ino) == known:  # else it was closed before, and its number serves another
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(option, argument, 0, 0, 0)
