"""Forwards the signals that this process receives to a command that it runs."""

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
    """Forwards signals to a process, from before it starts until it ends.

    The signals are blocked and waited for, not handled. Those that arrive before
    the process has started stay pending, and for each the kernel reports whether
    a terminal or another process has sent it.
    """

    def __init__(self, original_mask: set[signal.Signals]) -> None:
        self._original_mask = original_mask

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[SignalForwarder]:
        """Block the signals within the context. Call this in a process with a single thread."""
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # if it were ignored, the end of a process would not be noticed
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
    """Stop this process as SIGTSTP does by default, so that the shell sees a stopped job."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)  # returns after SIGCONT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
