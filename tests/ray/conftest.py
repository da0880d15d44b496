"""Fixtures: real clusters of Ray on this machine, one for each module, and a manager that their nodes can reach."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Cli, clean_environ
from tests.manager.conftest import Manager, set_up  # noqa: F401
from tests.ports import free_port

ray = pytest.importorskip("ray", reason="the extra gusset[ray] is not installed")
OBJECT_STORE = 80 * 1024 * 1024  # bytes; Ray takes no less


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # Ray's own


def contents_below(folder: Path) -> dict[Path, bytes]:
    """The content of all files below a folder, but for those that vanish meanwhile."""
    found = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                if path.is_file():
                    found[path] = path.read_bytes()
    return found


def eventually(check: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.1)


@dataclass
class Cluster:
    """A cluster of Ray with Serve's proxy at `url`; this process is its driver."""

    nodes: Any  # ray.cluster_utils.Cluster
    url: str
    folder: Path  # of Ray's sessions, with its logs

    @property
    def address(self) -> str:
        return str(self.nodes.address)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def run(self, **applications: Any) -> None:
        """Serve each application below `/NAME`, and return when all are running."""
        from ray import serve

        targets = [
            serve.RunTarget(each, name=name, route_prefix=f"/{name}") for name, each in applications.items()
        ]
        serve.run_many(targets)


@contextmanager
def running_cluster(*, cpus: int = 4, dashboard: bool = False, port: int | None = None) -> Iterator[Cluster]:
    """A head; nodes are added by `nodes.add_node`. Nothing of it is left afterwards."""
    from ray.cluster_utils import Cluster as Nodes

    from ray import serve

    folder = Path(tempfile.mkdtemp(prefix="gr"))  # short: Ray makes sockets below it
    (folder / "ray").mkdir()
    before = dict(os.environ)
    os.environ |= {
        "RAY_TMPDIR": str(folder),  # where Ray notes which cluster is the current one
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "GUSSET_CACHE": str(folder / "cache"),
        "GUSSET_SETTINGS": str(folder / "settings.toml"),
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after which Ray kills a proxy: 5 are few under load
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # after which nodes end without their head
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_initial_delay_ms": "0",
    }
    options = {"temp_dir": str(folder / "ray"), "include_dashboard": dashboard}
    options |= {"gcs_server_port": port} if port else {}
    options |= (
        {"dashboard_port": free_port()} if dashboard else {}
    )  # not the default: clusters run side by side
    nodes = Nodes(
        initialize_head=True,
        head_node_args={"num_cpus": cpus, "object_store_memory": OBJECT_STORE, **options},
    )
    proxy = free_port()
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        serve.start(http_options={"port": proxy})
        yield Cluster(nodes, f"http://127.0.0.1:{proxy}", folder)
    finally:
        with suppress(Exception):
            ray.shutdown()
        nodes.shutdown()
        os.environ.clear()
        os.environ |= before
        eventually(lambda: _removed(folder), "the end of Ray's processes, which still write")


def _removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node."""
    with running_cluster() as running:
        yield running


@dataclass
class Secrets:
    """A manager, the command line of a person who is signed in to it, and a token for the nodes."""

    manager: Manager
    gusset: Cli
    folder: Path

    def token(self, deployment: str, *names: str) -> str:
        """The path of a file with a token of this deployment."""
        command = ("token", "create", "--deployment", deployment, "--secrets", ",".join(names))
        made = json.loads(self.gusset(*command, "--output", "json").stdout)
        file = self.folder / f"{deployment}.token"
        file.touch(0o600)
        file.write_text(made["token"])
        return str(file)


@pytest.fixture(scope="module")
def secrets(
    tmp_path_factory: pytest.TempPathFactory,
    set_up: tuple[Path, str],  # noqa: F811
) -> Iterator[Secrets]:
    folder = tmp_path_factory.mktemp("manager")
    home = folder / "home"
    shutil.copytree(set_up[0], home)
    manager = Manager(Cli(home, clean_environ(home, folder / "none.toml")), set_up[1], folder)
    elsewhere = Cli(folder / "elsewhere", clean_environ(folder / "elsewhere", folder / "settings.toml"))
    elsewhere("login", manager.address, input=manager.key.encode())
    yield Secrets(manager, elsewhere, folder)
    if manager.process.poll() is None:
        assert manager.stop() == 0


def write_folder(folder: Path, config: str, code: str) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "model" / "model.py").write_text(code)
    return folder
