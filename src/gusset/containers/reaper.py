"""Cleans up after gusset, also when that was killed: `python -P -m gusset.containers.reaper`.

Reads lines from standard input, which only gusset's own process holds open:
`container ID` and `folder PATH` are to be removed at its end, `gone ID` has
been; `engine ADDRESS` is whose containers they are, or `service ADDRESS`, which
is a Podman that was started for gusset and ends with it. When nothing more
comes, it removes what is left.
"""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from gusset.containers.service import end_service
from gusset.serving.environment import environment_for_others

log = logging.getLogger("gusset.containers")

_TRIES = 10  # the engine may be busy with the same end, or be started anew itself
_PAUSE = 1.0  # seconds between them


def main() -> None:
    """Listen, and clean up when nobody speaks any more."""
    containers: list[str] = []
    folders: list[Path] = []
    address, is_ours = "", False
    for line in sys.stdin:
        kind, _, what = line.rstrip("\n").partition(" ")
        if kind == "container":
            containers.append(what)
        elif kind == "folder":
            folders.append(Path(what))
        elif kind == "gone" and what in containers:
            containers.remove(what)
        elif kind in ("engine", "service"):
            address, is_ours = what, kind == "service"
    for folder in folders:  # first what matters most; inside the container the files are gone, too
        shutil.rmtree(folder, ignore_errors=True)
    if containers:
        _remove(containers, address)
    if is_ours:
        end_service(address)


def _remove(containers: list[str], address: str) -> None:
    from gusset.containers.engine import container_of  # only now: we stay small

    for container in containers:
        for _ in range(_TRIES):
            try:
                if container_of(address, container).remove():
                    break
            except Exception:  # noqa: S110  # nobody is left to be told
                pass
            time.sleep(_PAUSE)


class Reaper:
    """The reaper's process, as gusset sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gusset.containers.reaper"],
            env=environment_for_others(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def tell(self, kind: str, what: str) -> None:
        """See `main` for what may be said."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(f"{kind} {what}\n")
                self._process.stdin.flush()
        except OSError:  # the next start is the second net
            log.warning(
                "The process that cleans up after gusset has ended; if gusset is killed, its secrets stay."
            )

    def close(self) -> None:
        """Nothing is left to clean up, or it is to be done now; wait for that."""
        self._process.communicate()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main()
