"""One container of an engine's: its output, its input, its end. And how an engine's refusals are told."""

from __future__ import annotations

import os
import resource
import select
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO

from gusset.errors import HostError, ModelFailed

API_SECONDS = 60  # for an engine to answer

_RESPONSE_SECONDS = 20  # for a program in a container that has little to do
_START_HINT = (
    "is the first word of docker_server.start_command a program of the image's? "
    "There may be no shell in it: then name the server itself"
)


class Container:
    """One container of an engine's."""

    def __init__(self, api: Any, id_: str) -> None:
        self._api = api
        self.id = id_

    def file(self, path: str) -> bytes:
        """A small file of the container's; empty when there is none."""
        import io
        import tarfile

        import docker.errors

        try:
            parts, _ = self._api.get_archive(self.id, path)
        except docker.errors.APIError:
            return b""
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
            member = next((each for each in archive if each.isfile()), None)
            file = archive.extractfile(member) if member else None
            return file.read() if file else b""

    def pipe(self) -> Pipe:
        """Its standard input and output; before `start`, of a container that was made with them.

        Raises:
            HostError: the engine has gone.
        """
        with translate_engine_errors("the sidecar of the container does not start"):
            return Pipe(
                self._api.attach_socket(self.id, params={"stdin": 1, "stdout": 1, "stderr": 0, "stream": 1})
            )

    def attach(self, out: int, err: int) -> None:
        """Carry all that the container prints to these descriptors, from its first byte; before `start`.

        They are ours from now on, and closed when it prints no more.

        Raises:
            ModelFailed: its command or its user cannot be had; Podman looks for them now, Docker in `start`.
            HostError: the engine has gone.
        """
        targets = [os.fdopen(out, "wb", buffering=0), os.fdopen(err, "wb", buffering=0)]
        try:
            with translate_engine_errors("the container does not start", _START_HINT):
                stream = self._api.attach(
                    self.id, stdout=True, stderr=True, stream=True, logs=False, demux=True
                )
        except BaseException:
            _carry((), targets)
            raise
        threading.Thread(target=_carry, args=(stream, targets), name="gusset-attach", daemon=True).start()

    def start(self) -> None:
        """Start it.

        Raises:
            ModelFailed: its command cannot be run.
        """
        with translate_engine_errors("the container does not start", _START_HINT):
            self._api.start(self.id)

    def wait(self) -> int | None:
        """Its exit status, once it has ended; None when that cannot be known."""
        try:
            return int(self._api.wait(self.id, timeout=None)["StatusCode"])
        except Exception:  # removed, or the engine has gone
            return None

    def pid(self) -> int:
        """The process id of its first process, as this machine has it; 0 when it does not run."""
        try:
            return int(self._api.inspect_container(self.id)["State"]["Pid"])
        except Exception:  # removed, or the engine has gone
            return 0

    def leave_no_core(self) -> None:
        """Have it write no core file, which would have the values in it; best as soon as it has started.

        Not by a limit of the container's: giving one drops those that the engine is configured with.
        """
        if pid := self.pid():
            with suppress(OSError):  # it has ended, or is not ours to limit
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))

    def stop(self, seconds: int) -> None:
        """SIGTERM, and SIGKILL when it has not ended after so many seconds."""
        with suppress(Exception):  # it has ended by itself
            self._api.stop(self.id, timeout=seconds)

    def kill(self) -> None:
        """End it at once."""
        with suppress(Exception):  # it has ended by itself
            self._api.kill(self.id)

    def remove(self) -> bool:
        """Kill it if it runs, and remove it; whether it is gone now."""
        import docker.errors

        try:
            self._api.remove_container(self.id, force=True, v=True)
        except docker.errors.NotFound:
            return True
        except (docker.errors.DockerException, OSError):
            return False
        return True


class Pipe:
    """Standard input and output of a container. For one thread at a time."""

    def __init__(self, attached: Any) -> None:
        from docker.utils.socket import frames_iter

        self._attached = attached  # holds the connection open
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.settimeout(API_SECONDS)
        self._frames = frames_iter(attached, tty=False)  # type: ignore[no-untyped-call]

    def ask(self, data: bytes) -> bytes:
        """Write that, and give what is printed next; empty when nothing can be any more."""
        try:
            self._socket.sendall(data)
            answer = select.poll()  # the library waits without end for one
            answer.register(self._socket, select.POLLIN)
            if not answer.poll(_RESPONSE_SECONDS * 1000):
                return b""
            return bytes(next(self._frames)[1])
        except (OSError, StopIteration, ValueError):  # it has ended, or its engine has
            return b""

    def close(self) -> None:
        """Its standard input ends."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._attached.close()


@contextmanager
def translate_engine_errors(what: str, hint: str | None = None) -> Iterator[None]:
    """Say in our words what the engine refused, or that it is not there any more."""
    import docker.errors

    try:
        yield
    except docker.errors.APIError as error:
        raise ModelFailed(f"{what}: {reason(error)}", hint=hint) from None
    except (docker.errors.DockerException, OSError) as error:
        raise HostError(f"the container engine does not answer any more: {reason(error)}") from None


def reason(error: Exception) -> str:
    explanation = getattr(error, "explanation", None) or getattr(error, "strerror", None)
    return str(explanation or error).strip().splitlines()[0][:400] if str(error) else type(error).__name__


def _carry(stream: Iterable[Sequence[bytes | None]], targets: Sequence[BinaryIO]) -> None:
    """Write what comes in pairs each to its target; then close them."""
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(target)
        with suppress(Exception):  # the engine has gone; so has the container
            for pair in stream:
                for target, data in zip(targets, pair, strict=True):
                    view = memoryview(data or b"")
                    while view:
                        view = view[target.write(view) :]
