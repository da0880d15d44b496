"""Sockets of gusset's own on which an engine answers: a Podman that it starts, or an engine far away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from gusset.errors import HostError
from gusset.runtime.environment import child_environment

_SECONDS = 30.0
_REMOTE_SOCKET = "/var/run/docker.sock"


class Service:
    """A process that keeps a socket, until `end_service`: it lives on for whoever cleans up after us."""

    def __init__(self, what: str, command: Callable[[Path], list[str]], hint: str | None = None) -> None:
        """`what` names it in messages, `command` starts it for the socket at that path.

        Nothing is started yet, so that its `address` can be told first.
        """
        self.what = what
        self.hint = hint
        self._folder = Path(tempfile.mkdtemp(prefix="gusset-engine-"))
        self._socket = self._folder / "engine.sock"
        self._command = command(self._socket)
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"unix://{self._socket}"

    def start(self) -> bool:
        """Have it listen; whether it had to be started for that.

        Raises:
            HostError: it does not start.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        for stale in self._folder.iterdir():
            stale.unlink()
        with (self._folder / "log").open("wb") as said:  # not a pipe: it would die of it, once we are killed
            self._process = subprocess.Popen(
                self._command,
                env=child_environment(),
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
        why = (self._folder / "log").read_text("utf-8", "replace").strip()[-500:]
        raise HostError(f"{self.what} cannot be had" + (f": {why}" if why else ""), hint=self.hint)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self._socket)) == 0


def podman(program: str) -> Service:
    """The service of a Podman that is installed here."""
    return Service(
        "Podman's service", lambda path: [program, "system", "service", "--time=0", f"unix://{path}"]
    )


class Tunnel(Service):
    """The socket of an engine on another machine, by the ssh command, its configuration and its keys."""

    def __init__(self, url: str) -> None:
        """`url` as in DOCKER_HOST: ssh://USER@HOST:PORT, and the socket's path there if it is not Docker's.

        Raises:
            HostError: that is no such address.
        """
        try:
            parts = urlsplit(url)
            host, user, port = _docker_host_of(parts), parts.username, parts.port
        except ValueError:
            raise _no_address() from None
        if not host or host.startswith("-") or (user or "").startswith("-") or parts.password is not None:
            raise _no_address()
        if (ssh := shutil.which("ssh")) is None:
            raise HostError(
                f"to reach {host} the command ssh is needed",
                hint="install it, as in apt install openssh-client",
            )
        self._ssh = ssh
        self._target = [*(["-l", user] if user else []), *(["-p", str(port)] if port else []), host]
        self._forwarding = ""
        remote = parts.path.rstrip("/") or _REMOTE_SOCKET
        super().__init__(
            f"the engine of {host}",
            lambda path: [
                *(ssh, "-nNT", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"),
                *("-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "-o", "ControlPersist=no"),
                *("-o", "StreamLocalBindMask=0177", "-M", "-S", str(self._control)),
                *("-L", f"{path}:{remote}", *self._target),
            ],
            hint=f"does `ssh {' '.join(self._target)}` log in without asking for a password?",
        )

    @property
    def _control(self) -> Path:
        return self._folder / "control"

    def forward(self, port: int) -> Path:
        """A socket of ours that leads to that port of 127.0.0.1 there; one for another port ends.

        Raises:
            HostError: it cannot be made.
        """
        if self._forwarding:
            self._ask("cancel")
        path = self._folder / "server.sock"
        path.unlink(missing_ok=True)
        self._forwarding = f"{path}:127.0.0.1:{port}"
        if fault := self._ask("forward"):
            raise HostError(f"{self.what} cannot be reached: {fault}")
        return path

    def _ask(self, what: str) -> str:
        """Ask the process that holds the connection; give its complaint."""
        try:
            done = subprocess.run(
                [*(self._ssh, "-S", self._control, "-O", what, "-L", self._forwarding), *self._target],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "the connection does not answer"
        return done.stderr.decode("utf-8", "replace").strip() if done.returncode else ""


def _docker_host_of(parts: SplitResult) -> str:
    """The host as it was written: ssh may have it in its configuration; the library makes it lower case."""
    host = parts.netloc.rpartition("@")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _no_address() -> HostError:
    """Without repeating it: there may be a password in it."""
    return HostError("DOCKER_HOST is no ssh:// address", hint="as in ssh://user@machine, without a password")


def end_service(address: str) -> None:
    """End the process that keeps this socket, whoever started it, and remove its folder."""
    path = address.removeprefix("unix://").encode()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):  # it has just ended
                if path in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGTERM)
    shutil.rmtree(Path(os.fsdecode(path)).parent, ignore_errors=True)
