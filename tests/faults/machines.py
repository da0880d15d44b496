"""A machine of its own for a process: a network namespace at the end of a cable that a test can pull."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.killed_runs import (
    CABLE,
    MACHINE,
    own_name,
    remove_interface,
    remove_left_networks,
    remove_namespace,
)
from tests.system import skip_if


@dataclass(frozen=True)
class Machine:
    """A network namespace that reaches this machine at `host`, through a pair of virtual interfaces."""

    name: str
    host: str
    cable: str  # this machine's end

    @classmethod
    @contextmanager
    def connected(cls) -> Iterator[Machine]:
        """Skips the test where this account or system has no network namespaces; in CI it fails."""
        number = os.getpid() % 16384  # of a subnet with four addresses, in the network for tests of RFC 2544
        network = f"198.18.{number >> 6}"
        first, second = (f"{network}.{(number & 63) * 4 + host}" for host in (1, 2))
        machine = cls(own_name(MACHINE), first, own_name(CABLE))
        remove_left_networks()
        try:
            _ip("netns", "add", machine.name)
            own_end = ("peer", "name", "eth0", "netns", machine.name)
            _ip("link", "add", "name", machine.cable, "type", "veth", *own_end)
            _ip("addr", "add", f"{first}/30", "dev", machine.cable)
            _ip("link", "set", machine.cable, "up")
            _ip("-n", machine.name, "addr", "add", f"{second}/30", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            _remove(machine)
            output = getattr(error, "stderr", b"") or str(error).encode()
            reason = f"network namespaces cannot be made: {output.decode(errors='replace').strip()}"
            skip_if(reason)
        try:
            yield machine
        finally:
            _remove(machine)

    @property
    def command(self) -> Sequence[str]:
        """What runs a command there."""
        return ["ip", "netns", "exec", self.name]

    def pull_cable(self) -> None:
        """From now on all packets in both directions are lost, and neither side gets an error for them."""
        _ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self.cable, "up")

    def request(self, url: str, body: str) -> str:
        """The response to a POST that a process of that machine makes."""
        code = (
            "import sys, urllib.request as r; "
            "q = r.Request(sys.argv[1], sys.argv[2].encode(), {'content-type': 'application/json'}); "
            "print(r.build_opener(r.ProxyHandler({})).open(q, timeout=30).read().decode())"
        )
        command = [*self.command, sys.executable, "-I", "-c", code, url, body]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


def _remove(machine: Machine) -> None:
    """The cable goes with the namespace, once no process of it is left."""
    remove_interface(machine.cable)
    remove_namespace(machine.name)
