"""Secrets for a container whose engine does not take our files: another machine's, or Docker's without root.

A sidecar, one for each container, holds a volume in the engine's memory and
writes into it what it is told over its standard input. When that ends, also
because gusset was killed, so do the files and it. The container shares its
network, in which it leads connections to the server's port.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping

from gusset.containers.engine.container import Container
from gusset.containers.engine.engine import Engine
from gusset.containers.engine.run_id import run_id
from gusset.containers.network.network import HostNetwork, Network, PublishedPort
from gusset.errors import HostError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

IMAGE = "busybox:stable"

_DOORS = (61234, 61235)  # ports in the container's network; above what systems give out by themselves

# Reads a line with the word, both ports and the owner, then commands. A shell
# takes its lines byte by byte, and so does dd its part: nothing is read ahead.
# Whoever connects to the door has to know the word first: neighbours of the
# container's and other accounts of this machine's may come to it. The second
# address is for a server that is not at the first: after a connection that broke
# it would get the rest of a request as a new one. No secret's name starts as
# that of the file does which is not yet whole.
_SCRIPT = r"""
read -r word door port owner
export word port
[ "$door" = - ] || nc -BACKLOG -p "$door" -e sh -c '
  read -r -t 10 -n 33 said && [ "$said" = "$word" ] || exit
  exec 3>&1
  case $(nc 127.0.0.1 "$port" 2>&1 >&3) in *refused*) exec nc ::1 "$port" ;; esac' 2>/dev/null &
echo done
while read -r what name size; do
  case $what in
  put)
    rm -f /secrets/..next
    (umask 377; exec dd bs=1 count="$size" of=/secrets/..next 2>/dev/null) &&
      [ "$(stat -c %s /secrets/..next)" = "$size" ] &&
      chown "$owner" /secrets/..next && mv -f /secrets/..next "/secrets/$name" || exit 1 ;;
  drop) rm -f "/secrets/$name" ;;
  esac
  echo done
done
rm -rf /secrets/* /secrets/.[!.]* /secrets/..next
""".replace("BACKLOG", "l" * 128)  # nc counts: so many may wait


class SidecarMount:
    """See `SecretMount`."""

    def __init__(
        self,
        engine: Engine,
        user: tuple[int, int],
        port: int,
        tell: Callable[[str], object],
        *,
        host_network: bool,
    ) -> None:
        """`user` owns the files; `port` is the server's. `tell` hears how far the pull of its image is.

        Raises:
            HostError: there is no image for it, or the engine has gone.
            ModelFailed: the engine refuses it.
        """
        self._engine = engine
        self._port = port
        self._word = secrets.token_hex(16)
        self._names: set[str] = set()
        try:
            image = engine.images.get(IMAGE, tell)
        except HostError as error:
            raise HostError(
                error.message,
                hint="a container of it holds the secrets, since this engine takes no files of gusset's: "
                "load it into the engine under that name (docs/images.md)",
            ) from None
        self._door = door = None if host_network else next(each for each in _DOORS if each != port)
        with contextlib.ExitStack() as stack:
            self.source = engine.create_volume(run_id())
            stack.callback(engine.remove_volume, self.source)
            self._container = engine.create_sidecar(
                image, _SCRIPT, volume=self.source, owner=run_id(), port=door
            )
            stack.callback(self._container.remove)
            self.network = f"container:{self._container.id}" if door else "host"
            self._pipe = self._container.pipe()
            stack.callback(self._pipe.close)
            self._container.start()
            self._ask(f"{self._word} {door or '-'} {port} {user[0]}:{user[1]}\n".encode())
            self._held = stack.pop_all()

    def replace(self, values: Mapping[str, SecretValue]) -> None:
        """See `SecretMount.replace`."""
        for name, value in values.items():
            check_name(name)
            data = value.reveal()
            self._ask(b"put %s %d\n%s" % (name.encode(), len(data), data))
            self._names.add(name)
        for name in self._names - set(values):
            self._ask(b"drop %s\n" % name.encode())
            self._names.remove(name)

    def _ask(self, command: bytes) -> None:
        if self._pipe.ask(command) != b"done\n":
            self._pipe.close()  # whatever was half said: it ends of that, and all is made anew
            raise HostError("the container that holds the secrets has ended")

    def started(self, container: Container) -> Network:
        """See `SecretMount.started`."""
        threading.Thread(target=self._end_with, args=(container,), name="gusset-sidecar", daemon=True).start()
        if self._door is None:
            return HostNetwork(self._port)
        return PublishedPort(self._engine.published(self._container, self._door), self._word)

    def _end_with(self, container: Container) -> None:
        """Without its secrets and its network the container is to be started anew."""
        self._container.wait()
        container.kill()

    def close(self) -> None:
        """See `SecretMount.close`; the volume goes with the sidecar."""
        self._held.close()
