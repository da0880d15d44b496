"""What processes that hold values do to themselves: stay unreadable, leave no core, end with their parent."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import signal

_PR_SET_DUMPABLE = 4
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
    ends what we have started, too, as long as it stays in the group; and it
    needs no thread of ours that native code could hold up.
    """
    os.set_inheritable(lifeline, False)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it had closed before we asked for the signal
        os._exit(1)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(option, argument, 0, 0, 0)
