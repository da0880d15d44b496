"""One container: its output, its input, its end. And translation of the library's exceptions."""

# Imports in functions: the library docker is an optional extra.

from __future__ import annotations

import io
import os
import resource
import select
import socket
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO

from gusset.errors import HostError, ModelFailed

API_SECONDS = 60  # timeout of a request to an engine

# Called with the kind and the argument of a line for `gusset.containers.reaper`, which lists the kinds.
Notify = Callable[[str, str], object]

_SMALL_FILE = 4 * 1024 * 1024  # bytes of an archive with a small file
_RESPONSE_SECONDS = 20  # timeout of a program in a container that has little to do
_START_HINT = (
    "is the first word of docker_server.start_command a program in the image? "
    "There may be no shell in it: then name the server itself"
)


class Container:
    """A container of an engine. `api` is the library's low-level client."""

    def __init__(self, api: Any, id_: str) -> None:
        self._api = api
        self.id = id_
        self._attached: Any = None  # the connection on which its output comes

    def file(self, path: str) -> bytes:
        """The content of a small file; empty if there is none or it is too large: an image may have any."""
        import docker.errors

        packed = io.BytesIO()
        try:
            parts, _ = self._api.get_archive(self.id, path)
            for part in parts:
                packed.write(part)
                if packed.tell() > _SMALL_FILE:
                    parts.close()
                    return b""
        except docker.errors.APIError:
            return b""
        packed.seek(0)
        with tarfile.open(fileobj=packed) as archive:
            member = next((each for each in archive if each.isfile()), None)
            file = archive.extractfile(member) if member else None
            return file.read() if file else b""

    def pipe(self) -> Pipe:
        """Its standard input and output. Call it before `start`, of a container that has a standard input.

        Raises:
            HostError: the engine does not respond.
        """
        with translate_engine_errors("the sidecar of the container does not start"):
            return Pipe(
                self._api.attach_socket(self.id, params={"stdin": 1, "stdout": 1, "stderr": 0, "stream": 1})
            )

    def attach(self, out: int, err: int) -> None:
        """Copy everything that the container prints to these descriptors. Call it before `start`.

        Takes ownership of the descriptors and closes them at the end of the output.

        Raises:
            ModelFailed: there is no such command or user; Podman looks for them here, Docker in `start`.
            HostError: the engine does not respond.
        """
        from docker.utils.socket import STDERR, STDOUT, frames_iter

        targets = {STDOUT: os.fdopen(out, "wb", buffering=0), STDERR: os.fdopen(err, "wb", buffering=0)}
        try:
            with translate_engine_errors("the container does not start", _START_HINT):
                self._attached = self._api.attach_socket(
                    self.id, params={"stdout": 1, "stderr": 1, "stream": 1}
                )
            frames = frames_iter(self._attached, tty=False)  # type: ignore[no-untyped-call]
            threading.Thread(target=_copy, args=(frames, targets), name="gusset-attach", daemon=True).start()
        except BaseException:
            _copy((), targets)
            raise

    def start(self) -> None:
        """Start it.

        Raises:
            ModelFailed: its command cannot be run.
            HostError: the engine does not respond.
        """
        with translate_engine_errors("the container does not start", _START_HINT):
            self._api.start(self.id)

    def wait(self) -> int | None:
        """Wait until it ends; its exit status, or None if that cannot be found out.

        It first waits for the end of the output: Podman before 4.6 uses a core to wait for a container
        (https://github.com/containers/podman/issues/18150).
        """
        if self._attached:
            _wait_closed(self._attached)
        try:
            return int(self._api.wait(self.id, timeout=None)["StatusCode"])
        except Exception:  # it was removed, or the engine does not respond
            return None

    def pid(self) -> int:
        """The process id, on this machine, of its first process; 0 if it does not run."""
        try:
            return int(self._api.inspect_container(self.id)["State"]["Pid"])
        except Exception:  # it was removed, or the engine does not respond
            return 0

    def addresses(self) -> list[str]:
        """Its addresses in the engine's networks; none if it does not run or has the network of another."""
        try:
            networks = self._api.inspect_container(self.id)["NetworkSettings"]["Networks"] or {}
        except Exception:  # it was removed, or the engine does not respond
            return []
        return [each["IPAddress"] for each in networks.values() if each.get("IPAddress")]

    def leave_no_core(self) -> None:
        """Forbid core files, which would contain the values. Call it right after `start`.

        The container's own limits cannot do this: Podman, given one limit, drops those that it is
        configured with.
        """
        if pid := self.pid():
            with suppress(OSError):  # it has ended, or this process may not limit it
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))

    def stop(self, seconds: int) -> None:
        """Send SIGTERM, and SIGKILL if it has not ended after `seconds`."""
        with suppress(Exception):  # it has ended already
            self._api.stop(self.id, timeout=seconds)

    def kill(self) -> None:
        """Send SIGKILL."""
        with suppress(Exception):  # it has ended already
            self._api.kill(self.id)

    def remove(self) -> bool:
        """Kill it if it runs, and remove it; whether it is gone now."""
        import docker.errors

        try:
            self._api.remove_container(self.id, force=True, v=True)
        except docker.errors.NotFound:
            return True
        except no_response_errors():
            return False
        return True


class Pipe:
    """Standard input and output of a container. For one thread at a time, and another that waits."""

    def __init__(self, attached: Any) -> None:
        from docker.utils.socket import frames_iter

        self._attached = attached  # holds the connection open
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.settimeout(API_SECONDS)
        self._frames = frames_iter(attached, tty=False)  # type: ignore[no-untyped-call]

    def request(self, data: bytes) -> bytes:
        """Write `data`; what is printed next, or nothing if the program has ended or does not respond."""
        try:
            self._socket.sendall(data)
            readable = select.poll()  # `frames_iter` has no timeout
            readable.register(self._socket, select.POLLIN)
            if not readable.poll(_RESPONSE_SECONDS * 1000):
                return b""
            return bytes(next(self._frames)[1])
        except (OSError, StopIteration, ValueError):  # the container has ended, or its engine
            return b""

    def wait(self) -> None:
        """Wait until the container has closed it, which it does at its end, or `close` was called."""
        _wait_closed(self._socket)

    def close(self) -> None:
        """Close its standard input."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._attached.close()


def no_response_errors() -> tuple[type[Exception], ...]:
    """What the library raises if the engine does not respond. Errors within a stream are those of urllib3."""
    import docker.errors
    import urllib3.exceptions

    return (docker.errors.DockerException, urllib3.exceptions.HTTPError, OSError)


@contextmanager
def translate_engine_errors(what: str, hint: str | None = None) -> Iterator[None]:
    """Raise gusset's errors in place of the library's. `what` says what failed, and `hint` what to do.

    Raises:
        ModelFailed: the engine refuses the request.
        HostError: the engine does not respond.
    """
    import docker.errors

    try:
        yield
    except docker.errors.APIError as error:
        raise ModelFailed(f"{what}: {reason(error)}", hint=hint) from None
    except no_response_errors() as error:
        raise HostError(f"the container engine does not respond: {reason(error)}") from None


@contextmanager
def creating(notify: Notify, problem: str) -> Iterator[None]:
    """Around a request that creates a container or a volume: tells the reaper when it is under way.

    An engine finishes such a request even if gusset has been killed meanwhile.
    `problem` says what failed.

    Raises:
        ModelFailed: the engine refuses the request.
        HostError: the engine does not respond. It may still create it, so the request stays under way.
    """
    notify("creating", "")
    try:
        with translate_engine_errors(problem):
            yield
    except ModelFailed:
        notify("created", "")
        raise
    notify("created", "")


def reason(error: Exception) -> str:
    """The first line of an exception's message, for use in a message of gusset's."""
    explanation = getattr(error, "explanation", None) or getattr(error, "strerror", None)
    return str(explanation or error).strip().splitlines()[0][:400] if str(error) else type(error).__name__


def _wait_closed(connection: Any) -> None:
    """Wait until the other end or this one has closed it, whether or not everything was read."""
    closed = select.poll()
    with suppress(ValueError):  # it is closed already
        closed.register(connection.fileno(), select.POLLRDHUP)
        closed.poll()


def _copy(frames: Iterable[tuple[int, bytes]], targets: Mapping[int, BinaryIO]) -> None:
    """Write the data of each frame to the target of its stream; close the targets at the end."""
    with ExitStack() as stack:
        for target in targets.values():
            stack.enter_context(target)
        with suppress(Exception):  # the engine does not respond any more; then the container ends too
            for stream, data in frames:
                view = memoryview(data)
                while view:
                    view = view[targets[stream].write(view) :]
