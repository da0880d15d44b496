"""Processes of gusset's own that make an engine reachable: a local Podman, or ssh to another machine.

Each makes a socket in its own folder. The process outlives gusset, because the
reaper needs it to remove containers; `end_service` ends it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from gusset.errors import HostError
from gusset.runtime.environment import child_environment

_SECONDS = 30.0
_SOCKET = "engine.sock"
_REMOTE_SOCKET = "/var/run/docker.sock"


class Service:
    """A process that listens on a socket in `folder`. Its `address` is known before `start`."""

    def __init__(self, folder: Path, command: Sequence[str], *, what: str, hint: str | None = None) -> None:
        """`command` starts it, `what` names it in messages, `hint` says what to do if it does not start."""
        self.what = what
        self.hint = hint
        self._folder = folder
        self._socket = folder / _SOCKET
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"unix://{self._socket}"

    def start(self) -> bool:
        """Start it unless it runs, and wait until it listens; whether it had to be started.

        Raises:
            HostError: it does not start.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        for stale in self._folder.iterdir():
            stale.unlink()
        # Not a pipe: that would break when gusset is killed, and end the process.
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
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
        raise HostError(f"{self.what} cannot be reached" + (f": {why}" if why else ""), hint=self.hint)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self._socket)) == 0


class PodmanService(Service):
    """The service of a Podman that is installed on this machine, run by this account."""

    def __init__(self, program: str) -> None:
        folder = _new_folder()
        command = [program, "system", "service", "--time=0", f"unix://{folder / _SOCKET}"]
        super().__init__(folder, command, what="Podman's service")


class SshForwarding(Service):
    """The socket of an engine on another machine, by the ssh command with its configuration and keys."""

    def __init__(self, folder: Path, *, ssh: str, host: str, options: Sequence[str], remote: str) -> None:
        """`options` are for the ssh command; `remote` is the path of the socket on that host."""
        self._ssh = ssh
        self._control = folder / "control"
        self._target = [*options, host]
        self._forwarding = ""
        command = [
            *(ssh, "-nNT", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"),
            *("-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "-o", "ControlPersist=no"),
            *("-o", "StreamLocalBindMask=0177", "-M", "-S", str(self._control)),
            *("-L", f"{folder / _SOCKET}:{remote}", *self._target),
        ]
        hint = f"does `ssh {' '.join(self._target)}` log in without asking for a password?"
        super().__init__(folder, command, what=f"the engine on {host}", hint=hint)

    @classmethod
    def create(cls, url: str) -> SshForwarding:
        """For a URL as in DOCKER_HOST: ssh://USER@HOST:PORT, followed by the socket's path if not Docker's.

        Raises:
            HostError: it is not such a URL, or the ssh command is not installed.
        """
        try:
            parts = urlsplit(url)
            host, user, port = _host_as_written(parts), parts.username, parts.port
        except ValueError:
            raise _invalid_url() from None
        if not host or host.startswith("-") or (user or "").startswith("-") or parts.password is not None:
            raise _invalid_url()
        if (ssh := shutil.which("ssh")) is None:
            raise HostError(
                f"to reach {host} the command ssh is needed",
                hint="install it, as in apt install openssh-client",
            )
        options = [*(["-l", user] if user else []), *(["-p", str(port)] if port else [])]
        remote = parts.path.rstrip("/") or _REMOTE_SOCKET
        return cls(_new_folder(), ssh=ssh, host=host, options=options, remote=remote)

    def forward(self, port: int) -> Path:
        """A socket on this machine that leads to that port of 127.0.0.1 there. It replaces an earlier one.

        Raises:
            HostError: it cannot be made.
        """
        if self._forwarding:
            self._control_command("cancel")
        path = self._folder / "server.sock"
        path.unlink(missing_ok=True)
        self._forwarding = f"{path}:127.0.0.1:{port}"
        if problem := self._control_command("forward"):
            raise HostError(f"{self.what} cannot be reached: {problem}")
        return path

    def _control_command(self, command: str) -> str:
        """Send a command for `_forwarding` to the ssh process with the connection; its error message."""
        try:
            done = subprocess.run(
                [*(self._ssh, "-S", self._control, "-O", command, "-L", self._forwarding), *self._target],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "the connection does not respond"
        return done.stderr.decode("utf-8", "replace").strip() if done.returncode else ""


def end_service(address: str) -> None:
    """End the process that listens on this socket, whoever started it, and remove its folder."""
    path = address.removeprefix("unix://").encode()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):  # it has just ended
                if path in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGTERM)
    shutil.rmtree(Path(os.fsdecode(path)).parent, ignore_errors=True)


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="gusset-engine-"))


def _host_as_written(parts: SplitResult) -> str:
    """The host in its own spelling, which ssh's configuration may know it by; `hostname` is in lower case."""
    host = parts.netloc.rpartition("@")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _invalid_url() -> HostError:
    """Does not quote the URL: there may be a password in it."""
    return HostError(
        "DOCKER_HOST is not an ssh:// address", hint="as in ssh://user@machine, without a password"
    )
