"""Runs a command as if it stood in this process's place: the signals that arrive here reach it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

FORWARDED = frozenset(
    {
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGTSTP,
        signal.SIGCONT,
    }
)

# A terminal sends these to its whole foreground process group, of which the command is a member too.
# SIGHUP is not among them: when a connection ends, only the session's leader gets it.
_FROM_TERMINAL_TO_ALL = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH})


class SignalForwarder:
    """Takes in signals from before a process starts until it ends.

    They are blocked, not handled: those that arrive before the process exists
    stay pending, and the kernel's information about each tells a terminal's from
    another process's.
    """

    def __init__(self, original_mask: set[signal.Signals]) -> None:
        self._original_mask = original_mask

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[SignalForwarder]:
        """Block the signals within the context. Call this in a process with a single thread."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, no process's end would be seen
        original = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
        try:
            yield cls({signal.Signals(number) for number in original})
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, original)

    def restore_mask(self) -> None:
        """Unblock in a new process what this one blocks; a `preexec_fn`."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._original_mask)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Forward signals until the process ends; its exit status, as `Popen.wait` returns it."""
        while (status := process.poll()) is None:
            received = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
            if received.si_signo != signal.SIGCHLD:
                self._forward(process, received)
        return status

    def _forward(self, process: subprocess.Popen[bytes], received: signal.struct_siginfo) -> None:
        sent_by_kernel = received.si_code > 0  # zero or less: sent by a process
        if not (sent_by_kernel and received.si_signo in _FROM_TERMINAL_TO_ALL):
            process.send_signal(received.si_signo)
        if received.si_signo == signal.SIGTSTP:
            _stop_this_process()


def _stop_this_process() -> None:
    """Let SIGTSTP do what it does by default, so that a shell sees its job stopped."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)  # returns after SIGCONT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
