"""Receives the signals that this process forwards to a command that it runs."""

from __future__ import annotations

import os
import signal
import sys
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


ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})


class ReceivedSignals:
    """Receives signals one after the other, from before the command starts until it ends.

    The signals are blocked and waited for, not handled. Those that arrive before
    the command has started stay pending, and for each the kernel reports whether
    a terminal or another process has sent it.
    """

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[ReceivedSignals]:
        """Block the signals within the context. Call this in a process with a single thread.

        Threads and processes that start within the context inherit the blocked signals.
        """
        original = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
        try:
            yield cls()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, original)

    def wait(self, timeout: float | None) -> signal.struct_siginfo | None:
        """Wait for a signal to forward.

        None after SIGCHLD, which `wake` and child processes send, or after `timeout` seconds.
        """
        awaited = FORWARDED | {signal.SIGCHLD}
        if timeout is None:
            received: signal.struct_siginfo | None = signal.sigwaitinfo(awaited)
        else:
            received = signal.sigtimedwait(awaited, max(0.0, timeout))
        return None if received is None or received.si_signo == signal.SIGCHLD else received

    def discard(self) -> None:
        """Drop the signals that have arrived, so that they do not end this process after the context."""
        while signal.sigtimedwait(FORWARDED | {signal.SIGCHLD}, 0) is not None:
            pass


def wake() -> None:
    """Have `ReceivedSignals.wait` return. For other threads."""
    os.kill(os.getpid(), signal.SIGCHLD)


def is_from_kernel(received: signal.struct_siginfo) -> bool:
    """Whether a terminal has sent the signal, not a process."""
    return received.si_code > 0


def stop_this_process() -> None:
    """Stop this process as SIGTSTP does by default, so that the shell sees a stopped job.

    Returns after SIGCONT, or at once when no shell could continue the process.
    """
    with _unblocked(signal.SIGTSTP):
        os.kill(os.getpid(), signal.SIGTSTP)


def stop_process_group() -> None:
    """Stop all processes of this job, as a terminal does; see `stop_this_process`."""
    with _unblocked(signal.SIGTSTP):
        os.killpg(os.getpgrp(), signal.SIGTSTP)


@contextmanager
def _unblocked(number: signal.Signals) -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})


@contextmanager
def ending_by_exception() -> Iterator[None]:
    """Within the context, signals that end this process raise SystemExit instead, unless they are blocked."""
    ending = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]  # Python raises KeyboardInterrupt for SIGINT
    wanted = [number for number in ending if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: sys.exit(128 + n)) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def delayed() -> Iterator[None]:
    """Within the context, signals that end this process are blocked: they act at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
