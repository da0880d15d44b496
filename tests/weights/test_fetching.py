"""The process that downloads."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from typing import Any

import pytest

from gusset.errors import HostError
from tests.serving.conftest import children, descriptors
from tests.weights.conftest import Fetch


@pytest.mark.parametrize("failing", ["process", "gusset-pump-1", "gusset-pump-2"])
def test_of_a_process_that_cannot_be_started_nothing_is_left(
    run_fetch: Fetch, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Where the system gives no process, or no thread for its output."""
    start, pumps = threading.Thread.start, 0

    def start_thread(thread: threading.Thread) -> None:
        nonlocal pumps
        pumps += thread.name.startswith("gusset-pump")
        if failing == f"gusset-pump-{pumps}":
            raise RuntimeError("can't start new thread")
        start(thread)

    def popen(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(threading.Thread, "start", start_thread)
    if failing == "process":
        monkeypatch.setattr(subprocess, "Popen", popen)
    files, processes = descriptors(os.getpid()), children(os.getpid())
    with pytest.raises(HostError, match="the process that downloads cannot be started: "):
        run_fetch.start()
    for thread in threading.enumerate():
        if thread.name.startswith("gusset-pump"):
            thread.join(10)
    assert (descriptors(os.getpid()), children(os.getpid())) == (files, processes)
