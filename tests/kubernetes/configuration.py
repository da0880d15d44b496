"""What the daemons of the cluster read: options and files, in the cluster's folder."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ISSUER = "https://kubernetes.default.svc.cluster.local"
NODE, NODE_ADDRESS, POD_RANGE, SERVICE_RANGE = "node", "10.216.0.1", "10.217.0.0/16", "10.218.0.0/16"
PAUSE = "localhost/pause:1"
CNI_PLUGINS = Path("/usr/lib/cni")


@dataclass(frozen=True)
class Configuration:
    folder: Path

    def write(self) -> None:
        """Write all files that the daemons read."""
        folder = self.folder
        key = folder / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        admin, node = secrets.token_hex(16), secrets.token_hex(16)
        (folder / "tokens.csv").write_text(
            f"{admin},admin,1,system:masters\n{node},system:node:{NODE},2,system:nodes\n"
        )
        for name, token in (("admin", admin), ("node", node)):
            (folder / f"{name}.conf").write_text(json.dumps(self._kubeconfig(name, token)))
        (folder / "cni").mkdir()
        (folder / "cni" / "10-bridge.conflist").write_text(json.dumps(self._cni()))
        (folder / "kubelet.json").write_text(json.dumps(self._kubelet_config()))
        (folder / "proxy.json").write_text(json.dumps(self._proxy_config()))
        (folder / "containerd.toml").write_text(self._containerd_config())
        (folder / "services").touch()
        (folder / "resolv.conf").write_text(f"nameserver {NODE_ADDRESS}\n")

    def _kubeconfig(self, name: str, token: str) -> dict[str, Any]:
        authority = str(self.folder / "certificates" / "apiserver.crt")
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "c",
                    "cluster": {"server": f"https://{NODE_ADDRESS}:6443", "certificate-authority": authority},
                }
            ],
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

    def api_server_options(self) -> list[str]:
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

    def kubelet_options(self) -> list[str]:
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

    def dns_options(self) -> list[str]:
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

    def controller_manager_options(self) -> list[str]:
        return [
            f"--kubeconfig={self.folder / 'admin.conf'}",
            "--leader-elect=false",
            f"--root-ca-file={self.folder / 'certificates/apiserver.crt'}",
            f"--service-account-private-key-file={self.folder / 'accounts.key'}",
            f"--flex-volume-plugin-dir={self.folder / 'plugins'}",
        ]
