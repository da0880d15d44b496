"""What the examples' tests share: an environment with real transformers, a hub, and `gusset serve` in it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import Cli, leaks_in
from tests.examples import hub as hubs
from tests.examples.environments import CURRENT, HOME, LEGACY, REPO, FolderEnvironment, Unavailable, tiny_bert
from tests.killed_runs import DOCKER

SHARED_FOLDERS = [Path("/tmp"), Path("/dev/shm")]
# Folders there with many thousands of files, which no server knows of: its own is searched by itself.
OF_OTHER_TESTS = ("pytest-of-", DOCKER, "gusset-postgres-")
PATIENCE = 120.0  # seconds to wait for a process's output


@dataclass(frozen=True)
class Variant:
    """One spelling of the example, and the environment that understands it."""

    folder: Path
    environment: FolderEnvironment

    @property
    def repo_id(self) -> str:
        config = yaml.safe_load((self.folder / "config.yaml").read_text())
        return str(config["model_metadata"]["repo_id"])


VARIANTS = {
    "token": Variant(REPO / "examples" / "fill-mask", CURRENT),
    "use_auth_token": Variant(REPO / "tests" / "examples" / "legacy", LEGACY),
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Each variant in turn; skipped with the reason where its environment cannot be made."""
    variant = VARIANTS[request.param]
    for environment in (variant.environment, CURRENT):
        if not environment.ready:
            _unavailable(environment.reason)
    return variant


def _unavailable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def make_token() -> bytes:
    """A token of the hub's kind that was never seen before."""
    return b"hf_" + "".join(random.SystemRandom().choices(string.ascii_letters, k=34)).encode()


@pytest.fixture
def token() -> bytes:
    """The token that the hub accepts."""
    return make_token()


@pytest.fixture
def wrong() -> bytes:
    """A token that the hub refuses."""
    return make_token()


@pytest.fixture
def hub(variant: Variant, token: bytes) -> Iterator[hubs.Hub]:
    try:
        folder = tiny_bert()
    except Unavailable as error:
        _unavailable(str(error))
    with hubs.serving(hubs.Hub(variant.repo_id, folder, token)) as hub:
        yield hub


@dataclass
class Server:
    """A `gusset serve` process; what it prints goes to files that are searched for leaks."""

    process: subprocess.Popen[bytes]
    output: Path

    def printed(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.output.iterdir()))

    def address(self) -> str:
        """Where it serves, once it is ready."""
        deadline = time.monotonic() + PATIENCE
        while not (line := (self.output / "stdout").read_text()).endswith("\n"):
            assert self.process.poll() is None, f"it ended with {self.process.returncode}\n{self.printed()}"
            assert time.monotonic() < deadline, f"it is not ready\n{self.printed()}"
            time.sleep(0.05)
        return str(json.loads(line)["address"])

    def ended_with(self, status: int) -> bool:
        """Whether it ends by itself with `status`; with another one, fails with what it printed."""
        ended = self.process.wait(PATIENCE)
        assert ended == status, f"it ended with {ended}\n{self.printed()}"
        return True

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def predict(self, sentence: str | None) -> httpx.Response:
        return httpx.post(f"{self.address()}/v1/models/model:predict", json=sentence, timeout=PATIENCE)

    def processes(self) -> list[Path]:
        """The server and all that it has started, as folders of /proc."""
        found = [Path(f"/proc/{self.process.pid}")]
        for folder in found:
            for children in folder.glob("task/*/children"):
                found += [Path(f"/proc/{pid.decode()}") for pid in _content(children).split()]
        return found


@dataclass
class Workspace:
    """Everything that a run of the example touches, in one folder."""

    folder: Path
    environ: dict[str, str]
    begun: float = field(default_factory=time.time)
    servers: list[Server] = field(default_factory=list)

    def serve(self, model: Path) -> Server:
        output = self.folder / "output" / str(len(self.servers))
        output.mkdir(parents=True)
        command = [sys.executable, "-m", "gusset", "serve", str(model), "--port", "0", "--output", "json"]
        with (output / "stdout").open("wb") as stdout, (output / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self.environ
            )
        self.servers.append(server := Server(process, output))
        return server

    def leaks(self, *values: bytes) -> list[str]:
        """Where a value stands in some form: a file of this run, a new shared file, or a process."""
        places = {*self._own_files(), *self._new_shared_files()}
        for server in self.servers:
            if server.process.poll() is None:
                places |= {folder / name for folder in server.processes() for name in ("cmdline", "environ")}
        return sorted(str(path) for path in places if leaks_in(_content(path), *values))

    def _own_files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def _new_shared_files(self) -> list[Path]:
        found = []
        for shared in SHARED_FOLDERS:
            for folder, folders, names in os.walk(shared):
                if folder == str(shared):
                    folders[:] = [name for name in folders if not name.startswith(OF_OTHER_TESTS)]
                found += [path for name in names if self._is_new(path := Path(folder, name))]
        return found

    def _is_new(self, path: Path) -> bool:
        try:
            facts = path.lstat()
        except OSError:
            return False  # it was somebody's, and is gone
        return path.is_file() and facts.st_mtime >= self.begun - 1 and facts.st_size < 2**25


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone meanwhile, or kept from us as well as from others
        return b""


@pytest.fixture
def workspace(
    tmp_path: Path, variant: Variant, hub: hubs.Hub, environ: dict[str, str]
) -> Iterator[Workspace]:
    """Caches, temporary files, vault and output under `tmp_path`; no way out but to the hub.

    The hub is also the proxy for all other hosts: it refuses, and remembers
    who was asked for in `hub.strays`.
    """
    kept = {name: text for name, text in environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHON"))}
    (tmp_path / "tmp").mkdir()
    proxies = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], hub.address)
    settings = {
        "GUSSET_CACHE": str(HOME),
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TMPDIR": str(tmp_path / "tmp"),
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
    workspace = Workspace(tmp_path, kept | proxies | settings)
    yield workspace
    for server in workspace.servers:
        server.stop()
    assert hub.strays == [], "requests to hosts other than the hub"


@pytest.fixture
def set_token(gusset: Cli) -> Callable[[bytes], Any]:
    """`gusset secret set hf_access_token`, with a value on standard input."""
    return lambda value: gusset("secret", "set", "hf_access_token", input=value)


LAZY = """

class LazyModel(Model):
    def load(self):
        pass

    def predict(self, sentence):
        if sentence is None:
            return os.getpid()
        if self._fill_mask is None:
            print("asking the hub with", self._secrets["hf_access_token"], flush=True)
            super().load()
        return super().predict(sentence)
"""


@pytest.fixture
def lazy(variant: Variant, tmp_path: Path) -> Path:
    """The variant, changed to load when it is first called, and to print its token carelessly."""
    folder = Path(shutil.copytree(variant.folder, tmp_path / "lazy"))
    module = folder / "model" / "model.py"
    module.write_text("import os\n\n" + module.read_text() + LAZY)
    with (folder / "config.yaml").open("a") as config:
        config.write("model_class_name: LazyModel\n")
    return folder
