"""Whose containers, volumes and folders are whose: a name for one run of gusset."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

OWNER = "gusset.owner"  # the label that bears the name


def run_id() -> str:
    """What stands for this process in labels and folders: its number, when it began, and where."""
    return f"{os.getpid()}-{_process_started_at(os.getpid())}-{_process_namespace()}"


def run_has_ended(name: str) -> bool:
    """Whether the process of that `run_id` has surely ended; of another machine's that is not known."""
    pid, _, rest = name.partition("-")
    began, _, where = rest.partition("-")
    return pid.isdecimal() and where == _process_namespace() and _process_started_at(int(pid)) != began


@cache
def _process_namespace() -> str:
    """A name for this machine and for what its process numbers mean: in a container they mean other ones."""
    try:
        machine = Path("/etc/machine-id").read_text("utf-8", "replace").strip()
    except OSError:
        machine = ""
    processes = Path("/proc/self/ns/pid").stat().st_ino
    return hashlib.sha256(f"{machine or os.uname().nodename} {processes}".encode()).hexdigest()[:16]


def _process_started_at(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
