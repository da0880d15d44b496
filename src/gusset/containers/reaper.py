"""Cleans up after gusset, also when that was killed: `python -P -m gusset.containers.reaper OWNER`.

Reads lines from standard input, which only gusset's own process holds open:
`engine ADDRESS` is where the containers of that `run_id` are; `service
ADDRESS` too, and its process was started for gusset and ends with it. `done`
says that nothing of them is left. When nothing more comes without that, it
removes what there is.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from contextlib import suppress

from gusset.containers.engine.engine_socket import end_service
from gusset.runtime.environment import child_environment

log = logging.getLogger("gusset")

_TRIES = 10  # the engine may be busy with the same end, or be started anew itself
_PAUSE = 1.0  # seconds between them
_PATIENCE = 20.0  # seconds


def main(owner: str) -> None:
    """Listen, and clean up when nobody speaks any more."""
    address, is_ours, is_done = "", False, False
    for line in sys.stdin:
        kind, _, what = line.rstrip("\n").partition(" ")
        if kind in ("engine", "service"):
            address, is_ours = what, kind == "service"
        elif kind == "done":
            is_done = True
    if not is_done:
        _remove(address, owner)
    if is_ours:
        end_service(address)


def _remove(address: str, owner: str) -> None:
    from gusset.containers.engine import leftovers  # only now: we stay small
    from gusset.containers.secrets import memory_folder

    memory_folder.remove_all(
        lambda name: name == owner
    )  # first what matters most; in a container they are gone, too
    clear = 0
    for _ in range(_TRIES if address else 0):
        with suppress(Exception):  # nobody is left to be told
            # Twice: what was asked for last may only just be made.
            clear = clear + 1 if not leftovers.remove_all_of_run(address, owner) else 0
        if clear == 2:
            break
        time.sleep(_PAUSE)


class Reaper:
    """The reaper's process, as gusset sees it."""

    def __init__(self, owner: str) -> None:
        """`owner` is what folders, containers and volumes carry that are to go when we do."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gusset.containers.reaper", owner],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def tell(self, kind: str, what: str = "") -> None:
        """See the module for what may be said."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(f"{kind} {what}\n")
                self._process.stdin.flush()
        except OSError:  # the next start is the second net
            log.warning(
                "The process that cleans up after gusset has ended; if gusset is killed, its secrets stay."
            )

    def close(self) -> None:
        """We are going; wait for what it still has to do, while there is hope."""
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("The engine does not answer; a process goes on trying to remove what is left there.")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main(sys.argv[1])
