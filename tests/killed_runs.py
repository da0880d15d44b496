"""Removes what test runs have left that were killed, and has processes end with the run that started them.

What is shared by all runs on a machine has the process id of its run in its name. A run that goes on at
the same time is alive, so nothing of it is removed.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.serving.conftest import is_running

BRIDGE = "gusset"  # of a Docker
MACHINE = "gusset-machine-"  # a network namespace
CABLE = "gsm"  # an interface on the way to it
DOCKER = "gusset-docker-"  # a folder
ACCOUNT = "gusset-account-"  # an account of this machine


def own_name(prefix: str) -> str:
    """A name that is this run's own."""
    return f"{prefix}{os.getpid()}"


def of_ended_runs(prefix: str, names: Iterable[str]) -> Iterator[str]:
    """Those of the names that runs have given by `own_name` whose processes have ended."""
    for name in names:
        found = re.fullmatch(rf"{re.escape(prefix)}([0-9]+)", name)
        if found and not is_running(int(found[1])):
            yield name


def ends_with_run(signal: str) -> list[str]:
    """Words before a command that have it get this signal when the thread ends that has started it."""
    return ["setpriv", "--pdeathsig", signal, "--"] if shutil.which("setpriv") else []


def remove_left_networks() -> None:
    """Remove the bridges, interfaces and network namespaces of runs that were killed."""
    for prefix in (BRIDGE, CABLE):
        for name in of_ended_runs(prefix, _names_in(Path("/sys/class/net"))):
            remove_interface(name)
    for name in of_ended_runs(MACHINE, _names_in(Path("/run/netns"))):
        remove_namespace(name)


def remove_left_dockers() -> None:
    """Remove the folders of Dockers of runs that were killed."""
    top = Path(tempfile.gettempdir())
    for name in of_ended_runs(DOCKER, _names_in(top)):
        remove_docker(top / name)


def remove_left_accounts() -> None:
    """Remove the accounts of runs that were killed."""
    for name in of_ended_runs(ACCOUNT, [each.pw_name for each in pwd.getpwall()]):
        remove_account(name)


def remove_interface(name: str) -> None:
    subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


def remove_namespace(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def remove_docker(folder: Path) -> None:
    """Remove the folder of a Docker that has ended, and what is mounted in it."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed([each for each in mounted if each.startswith(f"{folder}/")]):
        subprocess.run(["umount", point], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def remove_account(name: str) -> bool:
    """Kill its processes, of which Podman leaves one that holds namespaces, and remove it; whether it is gone."""
    subprocess.run(["pkill", "-KILL", "-u", name], check=False)
    subprocess.run(["userdel", "--remove", name], capture_output=True, check=False)
    return name not in [each.pw_name for each in pwd.getpwall()]


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
