"""A name for one run of gusset, by which its containers, volumes and folders are found."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

RUN_ID_LABEL = "gusset.owner"  # of containers and volumes


def run_id() -> str:
    """The name of this process's run: its process id, its start time, and its machine and PID namespace."""
    return f"{os.getpid()}-{_process_started_at(os.getpid())}-{_process_namespace()}"


def run_has_ended(name: str) -> bool:
    """Whether the process of that `run_id` has certainly ended; False if it may run on another machine."""
    pid, _, rest = name.partition("-")
    started_at, _, namespace = rest.partition("-")
    if not pid.isdecimal() or namespace != _process_namespace():
        return False
    return _process_started_at(int(pid)) != started_at


@cache
def _process_namespace() -> str:
    """A name for this machine and PID namespace, outside of which a process id means another process."""
    try:
        machine = Path("/etc/machine-id").read_text("utf-8", "replace").strip()
    except OSError:
        machine = ""
    processes = Path("/proc/self/ns/pid").stat().st_ino
    return hashlib.sha256(f"{machine or os.uname().nodename} {processes}".encode()).hexdigest()[:16]


def _process_started_at(pid: int) -> str:
    """The start time of a process in clock ticks since boot; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
