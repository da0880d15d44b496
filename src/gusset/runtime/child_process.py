"""What all share that start a process and read its output."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

from gusset.errors import HostError

_LIMIT_HINT = "see the limits of the account, service or container: open files, processes, memory"


@contextlib.contextmanager
def translated_limits(what: str) -> Iterator[None]:
    """Within the context, HostError says what the system has no more of: processes, threads, files.

    `what` is what cannot be started then.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "an error").lower()
        raise HostError(f"{what} cannot be started: {reason}", hint=_LIMIT_HINT) from None
    except RuntimeError as error:  # of a thread's start
        raise HostError(f"{what} cannot be started: {error}", hint=_LIMIT_HINT) from None


def detach(pipe: IO[bytes] | None) -> int:
    """The descriptor of a pipe from `subprocess.Popen`, for a pump that will close it."""
    assert pipe  # noqa: S101  # it was started with PIPE
    descriptor = os.dup(pipe.fileno())
    pipe.close()
    return descriptor
