"""A Kubernetes cluster of one node, which leaves nothing behind.

API server, controller manager, scheduler, kubelet and kube-proxy come from `binaries.py`; etcd, containerd, runc
and the CNI plugins are Debian's. All of it runs in namespaces of its own (network, mounts, processes): the
addresses, iptables rules, mounts and pods are gone when the first process of the namespaces ends, and the
machine's own containerd is not touched. What namespaces do not cover, sysctls and control groups, is put back.

The network is a plain bridge: it does not enforce a NetworkPolicy. Names of services are resolved by dnsmasq from
a list, which `Cluster.publish_services` writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.examples.environments import Unavailable
from tests.kubernetes.binaries import programs
from tests.kubernetes.configuration import CNI_PLUGINS, NODE_ADDRESS, Configuration

NEEDED = (
    *("etcd", "containerd", "ctr", "runc", "iptables", "ip", "dnsmasq"),  # the node
    *("nsenter", "unshare", "setpriv", "openssl", "curl", "podman", "busybox"),
)
CGROUPS = Path("/sys/fs/cgroup")
# What kubelet and kube-proxy set for the whole machine.
SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# Folders of the machine that the cluster's processes do not see: they have empty ones there.
HIDDEN = ("/run", "/var/lib", "/var/log")
# The first process of the namespaces waits for whatever loses its parent there.
FIRST_PROCESS = """
import os, time
print("ready", flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.2)
"""


def why_unavailable() -> str | None:
    """Why no cluster can be started on this machine; None if one can."""
    if os.geteuid() != 0:
        return "a cluster needs root"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}; `make system-deps` installs them on Debian"
    if not (CNI_PLUGINS / "bridge").exists():
        return f"{CNI_PLUGINS}/bridge is missing; Debian's containernetworking-plugins has it"
    try:
        programs()
    except Unavailable as error:
        return str(error)
    return None


class Cluster:
    """A running cluster, made by `running_cluster`. Its files are below `folder`."""

    def __init__(self, folder: Path, first_process: int) -> None:
        self.folder = folder
        self.namespaces = first_process
        self.programs = programs()
        self._admin = folder / "admin.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # What tests use.

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """The output of a command of kubectl, which must succeed."""
        done = self.try_kubectl(*arguments, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {(done.stdout + done.stderr).decode()}"
        return done.stdout.decode("utf-8", "replace")

    def try_kubectl(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[bytes]:
        command = [str(self.programs / "kubectl"), f"--kubeconfig={self._admin}", *arguments]
        return self.run(command, input=None if input is None else input.encode())

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` knows of an object or a list of them."""
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def run(
        self, command: Sequence[str], *, input: bytes | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the cluster's node, in its network and with its DNS."""
        return subprocess.run(
            self._entered(("--net", "--mount"), command),
            input=input,
            env=environ,
            capture_output=True,
            timeout=240,
        )

    @contextmanager
    def process(self, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process on the cluster's node, with pipes for its input and output, until the end of the context."""
        entered = self._entered(("--net", "--mount"), command)
        with subprocess.Popen(entered, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()

    def import_images(self, *names: str) -> None:
        """Give images of Podman to the node."""
        for name in names:
            archive = self.folder / f"image-{secrets.token_hex(4)}.tar"
            subprocess.run(
                ["podman", "save", "-q", "-o", str(archive), name], check=True, capture_output=True
            )
            done = self.ctr("images", "import", str(archive))
            archive.unlink()
            assert done.returncode == 0, done.stderr.decode()

    def ctr(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        own = ["ctr", "--address", str(self.folder / "containerd.sock"), "-n", "k8s.io"]
        return self.run([*own, *arguments])

    def publish_services(self) -> None:
        """Have the names of all services resolved, as a cluster's DNS does by itself."""
        lines = []
        for each in self.get("services", "--all-namespaces")["items"]:
            name = f"{each['metadata']['name']}.{each['metadata']['namespace']}.svc"
            lines.append(f"{each['spec']['clusterIP']} {name}.cluster.local {name}\n")
        (self.folder / "services").write_text("".join(lines))
        self._must(["kill", "-HUP", (self.folder / "dnsmasq.pid").read_text().strip()])

    def logs(self, name: str, tail: int = 30) -> str:
        """The end of what a daemon has logged."""
        return "\n".join((self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()[-tail:])

    # Starting and ending.

    def start(self) -> None:
        """Start everything, and wait until the node is ready."""
        configuration = Configuration(self.folder)
        configuration.write()
        self._make_mounts()
        self._make_network()
        self._start("etcd", "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync")
        self._start("containerd", "containerd", "--config", self.folder / "containerd.toml")
        self._start_kubernetes("kube-apiserver", *configuration.api_server_options())
        self._until(self._is_ready, "the API server is ready", "kube-apiserver")
        self._start_kubernetes("kube-controller-manager", *configuration.controller_manager_options())
        config = f"--kubeconfig={self._admin}"
        self._start_kubernetes("kube-scheduler", config, "--leader-elect=false")
        self._start_kubernetes("kube-proxy", f"--config={self.folder / 'proxy.json'}")
        self._start("dnsmasq", "dnsmasq", *configuration.dns_options())
        self._start_kubernetes("kubelet", *configuration.kubelet_options())
        self._until(self._has_node, "the node is ready", "kubelet")

    def stop(self) -> None:
        """End all processes of the cluster."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.namespaces, signal.SIGKILL)
        for daemon in self._daemons.values():
            daemon.wait(30)

    def _make_mounts(self) -> None:
        """Give the daemons folders of their own where they write to paths that no option changes."""
        for path in HIDDEN:
            own = self.folder / "hidden" / path.strip("/").replace("/", "-")
            own.mkdir(parents=True)
            self._must(["mount", "--bind", str(own), path])
        self._must(["mount", "--bind", str(self.folder / "resolv.conf"), "/etc/resolv.conf"])

    def _make_network(self) -> None:
        for words in (
            ["link", "set", "lo", "up"],
            ["link", "add", "node0", "type", "veth", "peer", "name", "nowhere"],
            ["link", "set", "nowhere", "up"],
            ["addr", "add", f"{NODE_ADDRESS}/24", "dev", "node0"],
            ["link", "set", "node0", "up"],
            # Nothing is there, but without a route an address of a service is refused before iptables sees it.
            ["route", "add", "default", "dev", "node0"],
        ):
            self._must(["ip", *words])
        for name in ("ipv4/ip_forward", "ipv4/conf/all/route_localnet"):
            self._must(["sh", "-c", f"echo 1 > /proc/sys/net/{name}"])

    def _start_kubernetes(self, name: str, *options: str) -> None:
        self._start(name, self.programs / name, *options)

    def _start(self, name: str, *command: object) -> None:
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        with (self.folder / f"{name}.log").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                self._entered(["--all"], [str(word) for word in command]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=self.folder,
            )

    def _entered(self, which: Sequence[str], command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self.namespaces}", *which, "--", *command]

    def _must(self, command: Sequence[str]) -> None:
        done = subprocess.run(self._entered(["--all"], command), capture_output=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"

    def _is_ready(self) -> bool:
        return self.try_kubectl("get", "--raw", "/readyz").stdout == b"ok"

    def _has_node(self) -> bool:
        nodes = self.get("nodes")["items"]
        conditions = [each for node in nodes for each in node["status"].get("conditions", [])]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _until(self, condition: Any, what: str, daemon: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self._daemons[daemon].poll() is not None
            assert not ended and time.monotonic() < deadline, f"not so: {what}\n{self.logs(daemon)}"
            time.sleep(0.2)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster whose node is ready. At the end all of it is gone."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gusset-kubernetes-")))
        stack.enter_context(_sysctls_put_back())
        stack.callback(_remove_cgroups, folder.name)
        _make_cgroups(folder.name)
        cluster = Cluster(folder, stack.enter_context(_namespaces()))
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


@contextmanager
def _namespaces() -> Iterator[int]:
    """New namespaces for network, mounts and processes; the id of their first process.

    They end with this process, even when it is killed.
    """
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork"]
    command += ["--kill-child", "--mount-proc", "--propagation", "slave"]
    command += ["sh", "-c", 'mount --make-rshared / && exec "$0" -c "$1"', sys.executable, FIRST_PROCESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as outer:
        try:
            assert outer.stdout and outer.stdout.readline() == b"ready\n", "the kernel gives no namespaces"
            yield int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        finally:
            outer.kill()


@contextmanager
def _sysctls_put_back() -> Iterator[None]:
    files = [Path("/proc/sys") / name for name in SYSCTLS]
    before = {file: file.read_text() for file in files if file.exists()}
    try:
        yield
    finally:
        for file, value in before.items():
            if file.read_text() != value:
                file.write_text(value)


def _make_cgroups(name: str) -> None:
    for hierarchy in CGROUPS.iterdir():
        if hierarchy.is_dir() and not hierarchy.is_symlink():
            (hierarchy / name).mkdir(exist_ok=True)


def _remove_cgroups(name: str) -> None:
    for top in CGROUPS.glob(f"*/{name}"):
        for folder, _, _ in os.walk(top, topdown=False):
            _remove_cgroup(Path(folder))


def _remove_cgroup(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # a process of it is still ending
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        else:
            return
