"""A Podman of gusset's own, for where no engine listens: its service, on a socket of ours alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from gusset.errors import HostError
from gusset.serving.environment import environment_for_others

_SECONDS = 20.0


class Service:
    """`podman system service`, which `end_service` ends: it lives on for whoever cleans up after us."""

    def __init__(self, podman: str) -> None:
        """Nothing is started yet, so that its `address` can be told first."""
        self._podman = podman
        self._folder = Path(tempfile.mkdtemp(prefix="gusset-podman-"))
        self._socket = self._folder / "podman.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"unix://{self._socket}"

    def start(self) -> bool:
        """Have it listen; whether it had to be started for that.

        Raises:
            HostError: it does not start.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        self._socket.unlink(missing_ok=True)
        with (self._folder / "log").open("wb") as said:  # not a pipe: it would die of it, once we are killed
            self._process = subprocess.Popen(
                [self._podman, "system", "service", "--time=0", self.address],
                env=environment_for_others(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        deadline = time.monotonic() + _SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._listens():
                return True
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()
        why = (self._folder / "log").read_text("utf-8", "replace").strip()
        raise HostError("Podman's service does not start", hint=why[-500:] or None)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self._socket)) == 0


def end_service(address: str) -> None:
    """End the service that listens there, whoever started it, and remove its socket's folder."""
    path = address.removeprefix("unix://")
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):  # it has just ended
                if address.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGTERM)
    shutil.rmtree(Path(path).parent, ignore_errors=True)
