"""Secrets for containers of an engine that cannot mount gusset's files: far away, or Docker without root.

Each container has a sidecar: a second container that mounts a volume in the
engine's memory and writes into it the values that it reads from its standard
input. At the end of the input, also because gusset was killed, the sidecar
removes the files and ends. The container shares the sidecar's network, in which
the sidecar forwards connections to the server.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping

from gusset.containers.engine import leftovers
from gusset.containers.engine.container import Container, Pipe
from gusset.containers.engine.engine import Engine
from gusset.containers.engine.images import Image
from gusset.containers.engine.run_id import run_id
from gusset.containers.network.network import HostNetwork, Network, PublishedPort
from gusset.containers.secrets.memory_folder import PREVIOUS
from gusset.errors import HostError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

IMAGE = "busybox:stable"

_PUBLISHED_PORTS = (61234, 61235)  # one that the server does not use; above the usual ephemeral ports

# Reads a line with the password, the published port, the server's port and the
# files' user; then commands. Nothing is read ahead: a shell reads its lines byte
# by byte, and so does dd. Each connection to the published port has to begin with
# the password, because other containers and accounts of the machine can connect
# to it. ::1 is tried only if 127.0.0.1 refuses the connection: after one that
# broke, the rest of a request would be read as a new one. The name of the file
# that is not complete yet is one that no secret can have.
_SCRIPT = r"""
read -r password published port user
export password port
[ "$published" = - ] || nc -BACKLOG -p "$published" -e sh -c '
  read -r -t 10 -n 33 line && [ "$line" = "$password" ] || exit
  exec 3>&1
  case $(nc 127.0.0.1 "$port" 2>&1 >&3) in *refused*) exec nc ::1 "$port" ;; esac' 2>/dev/null &
echo done
while read -r command name size; do
  case $command in
  put)
    rm -f /secrets/..next
    case $name in */*) mkdir -p "/secrets/${name%/*}" ;; esac
    (umask 377; exec dd bs=1 count="$size" of=/secrets/..next 2>/dev/null) &&
      [ "$(stat -c %s /secrets/..next)" = "$size" ] &&
      chown "$user" /secrets/..next && mv -f /secrets/..next "/secrets/$name" || exit 1 ;;
  drop) rm -f "/secrets/$name" ;;
  esac
  echo done
done
rm -rf /secrets/* /secrets/.[!.]* /secrets/..next /secrets/..previous
""".replace("BACKLOG", "l" * 128)  # nc takes the number of letters as the length of its queue


class SidecarMount:
    """See `SecretMount`."""

    def __init__(
        self,
        engine: Engine,
        container: Container,
        *,
        volume: str,
        pipe: Pipe,
        port: int,
        published_port: int | None,
        password: str,
        resources: contextlib.ExitStack,
    ) -> None:
        """For a sidecar that runs: see `start`. `published_port` is None on the host's network."""
        self._engine = engine
        self._container = container
        self._pipe = pipe
        self._port = port
        self._published_port = published_port
        self._password = password
        self._resources = resources
        self._paths: set[str] = set()
        self.source = volume
        self.network = "host" if published_port is None else f"container:{container.id}"

    @classmethod
    def start(
        cls,
        engine: Engine,
        user: tuple[int, int],
        port: int,
        *,
        on_progress: Callable[[str], object],
        host_network: bool,
    ) -> SidecarMount:
        """Create a volume and a sidecar, and start the sidecar.

        `user` is the user and group id of the files, and `port` the server's.
        `on_progress` is called with texts about the pull of the sidecar's image.

        Raises:
            HostError: there is no image for it, or the engine does not respond.
            ModelFailed: the engine refuses it.
        """
        image = _find_image(engine, on_progress)
        published_port = None if host_network else next(each for each in _PUBLISHED_PORTS if each != port)
        with contextlib.ExitStack() as stack:
            volume = engine.create_volume(run_id())
            stack.callback(leftovers.remove_volume, engine.api, volume)
            container = engine.create_sidecar(
                image, _SCRIPT, volume=volume, run_id=run_id(), port=published_port
            )
            stack.callback(container.remove)
            pipe = container.pipe()
            stack.callback(pipe.close)
            container.start()
            password = secrets.token_hex(16)
            _send(pipe, f"{password} {published_port or '-'} {port} {user[0]}:{user[1]}\n".encode())
            return cls(
                engine,
                container,
                volume=volume,
                pipe=pipe,
                port=port,
                published_port=published_port,
                password=password,
                resources=stack.pop_all(),
            )

    def replace(self, values: Mapping[str, SecretValue], previous: Mapping[str, SecretValue]) -> None:
        """See `SecretMount.replace`."""
        kept = {f"{PREVIOUS}/{check_name(name)}": value for name, value in previous.items()}
        files = kept | {check_name(name): value for name, value in values.items()}
        for path, value in files.items():
            data = value.reveal()
            _send(self._pipe, b"put %s %d\n%s" % (path.encode(), len(data), data))
            self._paths.add(path)
        for path in self._paths - set(files):
            _send(self._pipe, b"drop %s\n" % path.encode())
            self._paths.remove(path)

    def connect_network(self, container: Container) -> Network:
        """See `SecretMount.connect_network`."""
        threading.Thread(target=self._end_with, args=(container,), name="gusset-sidecar", daemon=True).start()
        if self._published_port is None:
            return HostNetwork(self._port)
        address = self._engine.published(self._container, self._published_port)
        return PublishedPort(address, self._password)

    def _end_with(self, container: Container) -> None:
        """Kill the container when the sidecar ends: without secrets and network it has to be replaced."""
        self._pipe.wait()
        container.kill()

    def addresses(self, container: Container) -> list[str]:
        """See `SecretMount.addresses`."""
        return self._container.addresses()

    def close(self) -> None:
        """See `SecretMount.close`."""
        self._resources.close()


def _send(pipe: Pipe, command: bytes) -> None:
    """Send a command, and wait until the sidecar has carried it out."""
    if pipe.request(command) != b"done\n":
        pipe.close()  # perhaps within a command: this ends the sidecar, and both containers are replaced
        raise HostError("the container that holds the secrets has ended")


def _find_image(engine: Engine, on_progress: Callable[[str], object]) -> Image:
    try:
        return engine.images.get(IMAGE, on_progress)
    except HostError as error:
        raise HostError(
            error.message,
            hint="a container of this image holds the secrets, since the engine cannot mount gusset's files: "
            "load it into the engine under that name (docs/images.md)",
        ) from None
