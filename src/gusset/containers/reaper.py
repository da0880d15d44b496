"""Cleans up after a gusset that was killed: `python -P -m gusset.containers.reaper ADDRESS SERVICE`.

Reads lines from standard input, which only gusset's own process holds open:
`container ID` and `folder PATH` are to be removed at its end, `gone ID` has
been. When nothing more comes, it removes what is left.
"""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from gusset.serving.environment import environment_for_others

log = logging.getLogger("gusset.containers")

_HEADROOM = 3  # times that the engine is asked; it may be busy with the same end


def main(address: str, service: int) -> None:
    """`service` is the process id of a Podman that was started for gusset, 0 when there is none."""
    containers: list[str] = []
    folders: list[Path] = []
    for line in sys.stdin:
        kind, _, what = line.rstrip("\n").partition(" ")
        if kind == "container":
            containers.append(what)
        elif kind == "folder":
            folders.append(Path(what))
        elif kind == "gone" and what in containers:
            containers.remove(what)
    from gusset.containers.engine import container_of, end_service  # only now: we stay small

    for folder in folders:  # first what matters most; inside the container the files are gone, too
        shutil.rmtree(folder, ignore_errors=True)
    for container in containers:
        for _ in range(_HEADROOM):
            try:
                container_of(address, container).remove()
                break
            except Exception:  # noqa: S112  # nobody is left to be told
                continue
    if service:
        end_service(service, address)


class Reaper:
    """The reaper's process, as gusset sees it."""

    def __init__(self, address: str, service: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gusset.containers.reaper", address, str(service)],
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
    main(sys.argv[1], int(sys.argv[2]))
