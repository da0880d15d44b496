"""Removes what gusset leaves behind, also when it is killed: `python -P -m gusset.containers.reaper RUN_ID`.

Reads lines from standard input, whose other end only the process of that run holds:

- `engine ADDRESS`: the engine at which the run has its containers and volumes.
- `service ADDRESS`: the same, reached through a service that the run starts and the reaper has to end.
- `creating`: a request is under way that creates a container or a volume.
- `created`: the engine has responded to it.
- `build PID`: the process of a build, which leads a group.
- `containers FOLDER`: where Podman describes the containers in which the build runs commands with secrets.
- `image ID`: an intermediate image of a build that is not finished.
- `built`: the build is finished or removed.
- `done`: nothing is left to remove.

At the end of the input it removes everything that carries the run id, unless it
has read `done` and no request is under way, ends the build and removes its images.
"""

# Imports in functions: the process stays small until it acts.

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from gusset.containers.engine.engine_socket import end_service
from gusset.runtime.environment import child_environment

log = logging.getLogger("gusset")

_TRIES = 10  # the engine may be busy, or may itself be restarting
_TRIES_WHEN_CREATING = 20  # what the request creates appears when the engine is ready with it
_PAUSE = 1.0  # seconds between them
_CLOSE_SECONDS = 20.0
_BUILD_PAUSE = 0.1  # seconds between looks at a build that ends
_BUILD_CHECKS = 50


def main(run_id: str) -> None:
    """Read standard input to its end, then clean up."""
    address, is_service, is_creating, is_done = "", False, False, False
    build, containers, images = 0, "", list[str]()
    for line in sys.stdin:
        kind, _, argument = line.rstrip("\n").partition(" ")
        if kind in ("engine", "service"):
            address, is_service = argument, kind == "service"
        elif kind in ("creating", "created"):
            is_creating = kind == "creating"
        elif kind == "build":
            build = int(argument)
        elif kind == "containers":
            containers = argument
        elif kind == "image":
            images.append(argument)
        elif kind == "built":
            build, images = 0, []
        elif kind == "done":
            is_done = True
    if is_creating or not is_done:
        _remove(address, run_id, is_creating=is_creating)
    if build:
        end_group(build)
        if containers:
            _remove_working_containers(Path(containers), run_id)
        _remove_images(address, images)
    if is_service:
        end_service(address)


def _remove(address: str, run_id: str, *, is_creating: bool) -> None:
    from gusset.containers.engine import leftovers
    from gusset.containers.secrets import memory_folder

    # The values first: this also removes the files from containers that have the folder mounted.
    memory_folder.remove_all(lambda name: name == run_id)
    tries = _TRIES_WHEN_CREATING if is_creating else _TRIES
    for _ in range(tries if address else 0):
        with suppress(Exception):  # no caller is waiting for an error any more
            if not leftovers.remove_run(address, run_id) and not is_creating:
                return
        time.sleep(_PAUSE)


def _remove_working_containers(folder: Path, run_id: str) -> None:
    from gusset.containers.engine.working_containers import remove_working_containers

    remove_working_containers(folder, lambda name: name == run_id)


def _remove_images(address: str, images: list[str]) -> None:
    """Remove the images of a build, the last one first; those that others use stay."""
    from gusset.containers.engine import leftovers

    left: list[str] | None = None
    for _ in range(_TRIES if images else 0):
        with suppress(Exception):  # no caller is waiting for an error any more
            before, left = left, leftovers.remove_images(address, images)
            if not left or left == before:
                return
        time.sleep(_PAUSE)


def end_group(leader: int) -> None:
    """End the processes of a build, as Ctrl-C at a terminal does: the engine's command cleans up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(leader, number)
        for _ in range(_BUILD_CHECKS):
            if not _is_running(leader):
                return
            time.sleep(_BUILD_PAUSE)


def _is_running(group: int) -> bool:
    """Whether a process of the group runs. Ended ones that nobody has waited for do not count."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            state, _, found = file.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                return True
    return False


class Reaper:
    """The reaper's process, from gusset's side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def start(cls, run_id: str) -> Reaper:
        """Start it for the folders, containers and volumes of that run."""
        return cls(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "gusset.containers.reaper", run_id],
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
        )

    def notify(self, kind: str, argument: str = "") -> None:
        """Send a line to it; the module lists the kinds."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(f"{kind} {argument}\n")
                self._process.stdin.flush()
        except OSError:  # the next start of gusset removes leftovers too
            log.warning("gusset's cleanup process has ended; if gusset is killed, its secrets stay.")

    def close(self) -> None:
        """End its input, and wait at most `_CLOSE_SECONDS` until it has cleaned up."""
        try:
            self._process.communicate(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("The engine does not respond; a process keeps trying to remove what is left there.")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main(sys.argv[1])
