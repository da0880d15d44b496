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

ISSUER = "https://kubernetes.default.svc.cluster.local"
NODE, NODE_ADDRESS, POD_RANGE, SERVICE_RANGE = "node", "10.216.0.1", "10.217.0.0/16", "10.218.0.0/16"
API = f"https://{NODE_ADDRESS}:6443"
PAUSE = "localhost/pause:1"
NEEDED = ("etcd", "containerd", "ctr", "runc", "iptables", "ip", "dnsmasq", "nsenter", "unshare", "setpriv")
CNI_PLUGINS = Path("/usr/lib/cni")
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
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
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
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # What tests use.

    def kubectl(self, *arguments: str, input: str | None = None, fails: bool = False) -> str:
        """The output of a command of kubectl, which must succeed, or must fail."""
        command = [
            str(self.programs / "kubectl"),
            "--kubeconfig",
            str(self.folder / "admin.conf"),
            *arguments,
        ]
        done = self.run(command, input=None if input is None else input.encode())
        output = (done.stderr if fails else done.stdout).decode("utf-8", "replace")
        assert (done.returncode != 0) is fails, (
            f"kubectl {' '.join(arguments)}: {(done.stdout + done.stderr).decode()}"
        )
        return output

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
        self._make_mounts()
        self._make_network()
        self._write_files()
        self._start_daemon("etcd", "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync")
        self._start_daemon("containerd", "containerd", "--config", self.folder / "containerd.toml")
        self._start_daemon("kube-apiserver", self.programs / "kube-apiserver", *self._api_server_options())
        self._until(lambda: self._is_ready("/readyz"), "the API server is ready", "kube-apiserver")
        config = f"--kubeconfig={self.folder / 'admin.conf'}"
        self._start_daemon(
            "kube-controller-manager",
            self.programs / "kube-controller-manager",
            config,
            "--leader-elect=false",
            f"--root-ca-file={self.folder / 'certificates/apiserver.crt'}",
            f"--service-account-private-key-file={self.folder / 'accounts.key'}",
            f"--flex-volume-plugin-dir={self.folder / 'plugins'}",
        )
        self._start_daemon("kube-scheduler", self.programs / "kube-scheduler", config, "--leader-elect=false")
        self._start_daemon(
            "kube-proxy", self.programs / "kube-proxy", f"--config={self.folder / 'proxy.json'}"
        )
        self._start_daemon("dnsmasq", "dnsmasq", *self._dns_options())
        self._start_daemon("kubelet", self.programs / "kubelet", *self._kubelet_options())
        self._until(self._has_node, "the node is ready", "kubelet")

    def stop(self) -> None:
        """End all processes of the cluster and remove its control groups."""
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
        names = self.folder / "resolv.conf"
        names.write_text(f"nameserver {NODE_ADDRESS}\n")
        self._must(["mount", "--bind", str(names), "/etc/resolv.conf"])

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

    def _write_files(self) -> None:
        folder = self.folder
        key = folder / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        self._admin, self._node = secrets.token_hex(16), secrets.token_hex(16)
        (folder / "tokens.csv").write_text(
            f"{self._admin},admin,1,system:masters\n{self._node},system:node:{NODE},2,system:nodes\n"
        )
        for name, token in (("admin", self._admin), ("node", self._node)):
            (folder / f"{name}.conf").write_text(json.dumps(self._kubeconfig(name, token)))
        (folder / "cni").mkdir()
        (folder / "cni" / "10-bridge.conflist").write_text(json.dumps(self._cni()))
        (folder / "kubelet.json").write_text(json.dumps(self._kubelet_config()))
        (folder / "proxy.json").write_text(json.dumps(self._proxy_config()))
        (folder / "containerd.toml").write_text(self._containerd_config())
        (folder / "services").touch()

    def _kubeconfig(self, name: str, token: str) -> dict[str, Any]:
        authority = str(self.folder / "certificates" / "apiserver.crt")
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": API, "certificate-authority": authority}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": name}}],
            "current-context": "c",
        }

    def _cni(self) -> dict[str, Any]:
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": POD_RANGE}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}

    def _kubelet_config(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},  # only the node itself reaches it
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.folder.name}",
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.folder / "resolv.conf"),
            "failSwapOn": False,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": True,
            "readOnlyPort": 0,
        }

    def _proxy_config(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": NODE,
            "clientConnection": {"kubeconfig": str(self.folder / "admin.conf")},
            # These are sysctls of the machine, which a network namespace may not set.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "iptables": {"minSyncPeriod": "0.1s"},
        }

    def _containerd_config(self) -> str:
        folder = self.folder
        return f"""
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
  address = "{folder}/containerd.sock"
[ttrpc]
  address = "{folder}/containerd.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  stream_server_address = "127.0.0.1"
  # The machine may itself be a container, which may not make a process more important than it is.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{shutil.which("runc")}"
        SystemdCgroup = false
"""

    def _api_server_options(self) -> list[str]:
        return [
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-signing-key-file={self.folder / 'accounts.key'}",
            f"--service-account-key-file={self.folder / 'accounts.key'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--cert-dir={self.folder / 'certificates'}",
            f"--advertise-address={NODE_ADDRESS}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _kubelet_options(self) -> list[str]:
        return [
            f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={self.folder / 'node.conf'}",
            f"--volume-plugin-dir={self.folder / 'plugins'}",
            f"--cert-dir={self.folder / 'kubelet-certificates'}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{self.folder / 'containerd.sock'}",
        ]

    def _dns_options(self) -> list[str]:
        return [
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            f"--addn-hosts={self.folder / 'services'}",
            f"--listen-address={NODE_ADDRESS}",
            "--bind-interfaces",
            "--local=/cluster.local/",
            "--user=root",
            f"--pid-file={self.folder / 'dnsmasq.pid'}",
        ]

    def _start_daemon(self, name: str, *command: object) -> None:
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

    def _is_ready(self, path: str) -> bool:
        config = ["--kubeconfig", str(self.folder / "admin.conf")]
        return self.run([str(self.programs / "kubectl"), *config, "get", "--raw", path]).stdout == b"ok"

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
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            deadline = time.monotonic() + 10
            while not (found := children.read_text().split()) or not _is_python(int(found[0])):
                assert time.monotonic() < deadline and outer.poll() is None, "no new namespaces"
                time.sleep(0.01)
            yield int(found[0])
        finally:
            outer.kill()


def _is_python(process: int) -> bool:
    """Whether the first process has set up the mounts."""
    return (
        b"os.wait()" in Path(f"/proc/{process}/cmdline").read_bytes()
        and b"make-rshared" not in Path(f"/proc/{process}/cmdline").read_bytes()
    )


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
