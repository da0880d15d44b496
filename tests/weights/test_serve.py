"""`gusset serve` downloads what config.yaml names before `load`."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import predict, served, write_model
from tests.conftest import Cli, seconds_since
from tests.examples.hub import Hub, serving
from tests.ports import free_port
from tests.serving.conftest import children, eventually, is_running
from tests.weights.web_server import WebServer

TOKEN = b"hf_tests_" + b"aB3dE5fG7h" * 2
BODY = random.Random(2).randbytes(500_000)
MODEL = """\
import pathlib

AT_IMPORT = [str(path) for path in pathlib.Path("data").rglob("*") if path.is_file()]

class Model:
    def __init__(self, **kwargs):
        self.resolver = kwargs["lazy_data_resolver"]
        self.secrets = kwargs["secrets"]
        try:
            self.resolver.raise_if_not_collected()
            self.early = None
        except RuntimeError as error:
            self.early = str(error)

    def load(self):
        self.folder = self.resolver.block_until_download_complete()
        self.resolver.raise_if_not_collected()

    def predict(self, inputs):
        path = pathlib.Path(inputs["path"])
        return {
            "size": path.stat().st_size,
            "at_import": AT_IMPORT,
            "early": self.early,
            "secrets": list(self.secrets),
        }
"""


@dataclass
class Project:
    """A model folder whose weights come from a hub and a web server of the tests."""

    folder: Path
    gusset: Cli
    hub: Hub
    web: WebServer
    tmp_path: Path
    mount: Path = field(init=False)

    def __post_init__(self) -> None:
        self.mount = self.tmp_path / "models" / "llama"

    def config(self, text: str) -> None:
        (self.folder / "config.yaml").write_text(text)

    def hub_weights(self, more: str = "") -> None:
        self.config(f"""\
weights:
  - source: hf://org/gated@main
    mount_location: {self.mount}
    auth_secret_name: hub_token
{more}""")

    @contextmanager
    def served(self, *args: str) -> Iterator[str]:
        with served(self.gusset, str(self.folder), *args, errors=self.tmp_path / "errors") as (address, _):
            yield address

    def fails(self, status: int, *args: str) -> str:
        done = self.gusset("serve", str(self.folder), "--port", "0", *args, status=status)
        return done.stderr.decode()


@pytest.fixture
def project(gusset: Cli, tmp_path: Path, web: WebServer) -> Iterator[Project]:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "config.json").write_bytes(b"{}")
    (repository / "model.safetensors").write_bytes(BODY)
    with serving(Hub("org/gated", repository, TOKEN)) as hub:
        gusset.environ |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        yield Project(write_model(tmp_path / "m", "", MODEL), gusset, hub, web, tmp_path)


def test_weights_are_there_before_load_and_the_token_is_not_the_models(project: Project) -> None:
    """The secret that the download logs in with is no secret of the model."""
    project.hub_weights()
    project.gusset("secret", "set", "hub_token", input=TOKEN)
    with project.served() as address:
        result = predict(address, {"path": str(project.mount / "model.safetensors")}).json()
    assert result["size"] == len(BODY)
    assert result["secrets"] == []
    assert "Data was not collected" in result["early"]
    assert project.mount.is_symlink()


def test_external_data_is_there_before_the_import(project: Project) -> None:
    """In the data folder, with its folders; a second start downloads nothing."""
    url = project.web.put("/x.bin", BODY)
    project.config(f"external_data:\n  - {{url: {url}, local_data_path: a/x.bin}}\n")
    for _ in range(2):
        with project.served() as address:
            result = predict(address, {"path": "data/a/x.bin"}).json()
        assert (result["size"], result["at_import"]) == (len(BODY), ["data/a/x.bin"])
    assert project.web.statuses == [200, 304]


def test_a_gated_repository_without_a_token_ends_serve_with_secret_and_line(project: Project) -> None:
    """5 if the secret is missing, 7 if its value is refused; nothing of the model has run."""
    project.hub_weights()
    text = project.fails(5)
    assert "config.yaml:2: weights[0].source: hf://org/gated@main demands a login" in text
    assert "the secret hub_token" in text
    assert "config.yaml:4: weights[0].auth_secret_name" in text
    assert "gusset secret set hub_token" in text

    project.gusset("secret", "set", "hub_token", input=b"hf_wrong_wrong_wrong")
    text = project.fails(7)
    assert "refuses the value of the secret hub_token" in text
    assert "hf_wrong" not in text


def test_other_failures_have_their_own_exit_status(project: Project) -> None:
    """A wrong revision is 3, an unreachable hub 8, a path that cannot be made 11, a foreign folder 6."""
    project.gusset("secret", "set", "hub_token", input=TOKEN)
    project.config(f"weights: [{{source: hf://org/gated@v9, mount_location: {project.mount}}}]")
    assert "has no revision v9" in project.fails(3)

    project.gusset.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
    project.hub_weights()
    assert "cannot be downloaded" in project.fails(8)

    project.mount.mkdir(parents=True)
    (project.mount / "precious").write_text("mine")
    assert "gusset did not make it" in project.fails(6)
    assert (project.mount / "precious").read_text() == "mine"

    project.gusset.environ["HF_ENDPOINT"] = project.hub.address
    project.config(
        "weights: [{source: hf://org/gated, auth_secret_name: hub_token, mount_location: /proc/models/llama}]"
    )
    text = project.fails(11)
    assert 'sudo mkdir -p /proc/models && sudo chown "$USER" /proc/models' in text


def has_bytes(folder: Path) -> bool:
    """Whether a part of a download is in the folder; files may come and go meanwhile."""
    try:
        return any(file.stat().st_size and not file.suffix for file in folder.iterdir())
    except FileNotFoundError:
        return False


def test_the_probe_says_that_weights_are_being_downloaded(project: Project) -> None:
    """Readiness is 503 meanwhile; Ctrl-C ends the download at once, and the next start goes on from there."""
    url = project.web.put("/x.bin", BODY, pause=30)
    project.config(f"external_data:\n  - {{url: {url}, local_data_path: x.bin}}\n")
    cache = Path(project.gusset.environ["GUSSET_CACHE"]) / "weights" / "partial"
    errors = project.tmp_path / "errors"
    port = free_port()
    command = [sys.executable, "-m", "gusset", "serve", str(project.folder), "--port", str(port)]
    with (
        errors.open("wb") as log,
        subprocess.Popen(command, env=project.gusset.environ, stdout=log, stderr=log) as process,
    ):
        eventually(lambda: has_bytes(cache))
        response = httpx.get(f"http://127.0.0.1:{port}/v1/models/model")
        assert (response.status_code, "are being downloaded" in response.text) == (503, True)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert seconds_since(started) < 10
    assert "AT_IMPORT" not in errors.read_text()

    project.web.files["/x.bin"].pause = 0
    with project.served() as address:
        assert predict(address, {"path": "data/x.bin"}).json()["size"] == len(BODY)
    assert project.web.seen[-1].range is not None


def test_reload_downloads_what_a_changed_key_names(project: Project) -> None:
    """The old model serves until the new weights are there."""
    first, second = project.web.put("/1.bin", b"1"), project.web.put("/2.bin", b"22")
    slow = project.web.put("/3.bin", BODY, pause=1)
    project.config(f"external_data:\n  - {{url: {first}, local_data_path: x.bin}}\n")
    with project.served("--reload") as address:
        assert predict(address, {"path": "data/x.bin"}).json()["size"] == 1
        project.config(
            f"external_data:\n  - {{url: {second}, local_data_path: y.bin}}\n"
            f"  - {{url: {slow}, local_data_path: z.bin}}\n"
        )

        def is_new() -> bool:
            response = predict(address, {"path": "data/y.bin"})
            return response.status_code == 200 and response.json()["size"] == 2

        eventually(is_new)

        (project.folder / "model" / "model.py").write_text(MODEL + "# changed")
        eventually(lambda: "'model/model.py' has changed" in (project.tmp_path / "errors").read_text())
    reloads = re.findall("again: '(.*)' has changed", (project.tmp_path / "errors").read_text())
    assert reloads == ["config.yaml", "model/model.py"]  # not once more for what gusset downloads


def test_predict_downloads_too(project: Project) -> None:
    """`gusset predict DIR` serves the folder for one call."""
    project.hub_weights()
    project.gusset("secret", "set", "hub_token", input=TOKEN)
    path = project.mount / "config.json"
    done = project.gusset("predict", str(project.folder), "--data", f'{{"path": "{path}"}}')
    assert b'"size":2' in done.stdout.replace(b" ", b"")


def test_the_token_is_in_no_file_argument_or_environment(
    project: Project, leaking_files: Callable[..., list[Path]]
) -> None:
    """Neither in a cache, nor in a log, nor in what other processes can see."""
    project.hub_weights()
    project.gusset("secret", "set", "hub_token", input=TOKEN)
    with project.served():
        for pid in os.listdir("/proc"):
            for name in ("cmdline", "environ"):
                if pid.isdecimal() and int(pid) != os.getpid():
                    with suppress(OSError):
                        assert TOKEN not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert leaking_files([project.tmp_path], TOKEN) == []


def test_check_says_what_would_be_downloaded_and_what_is_missing(project: Project) -> None:
    """Nothing is downloaded. A secret that is named but missing is a warning: the source may be public."""
    project.hub_weights()
    done = project.gusset("check", str(project.folder))
    assert f"downloads hf://org/gated@main to {project.mount}" in done.stdout.decode()
    text = (done.stdout + done.stderr).decode()
    assert "config.yaml:2" in text
    assert "the secret hub_token does not exist: only a public source can be downloaded" in text
    assert project.hub.requests == []

    project.config("external_data: [{url: https://h.test/x, local_data_path: ../x}]")
    assert "leaves the data folder" in project.gusset("check", str(project.folder), status=4).stderr.decode()
    assert "leaves the data folder" in project.fails(3)


def test_a_killed_server_leaves_no_process_and_the_next_goes_on(project: Project) -> None:
    """The process that downloads ends with the supervisor, however that ends."""
    url = project.web.put("/x.bin", BODY, pause=0.5)
    project.config(f"external_data:\n  - {{url: {url}, local_data_path: x.bin}}\n")
    command = [sys.executable, "-m", "gusset", "serve", str(project.folder), "--port", "0"]
    with subprocess.Popen(command, env=project.gusset.environ, stderr=subprocess.DEVNULL) as process:
        partial = Path(project.gusset.environ["GUSSET_CACHE"]) / "weights" / "partial"
        eventually(lambda: has_bytes(partial))
        (fetcher,) = [pid for pid in children(process.pid) if b"weights.fetcher" in command_of(pid)]
        process.kill()
    eventually(lambda: not is_running(fetcher))

    project.web.files["/x.bin"].pause = 0
    with project.served() as address:
        assert predict(address, {"path": "data/x.bin"}).json()["size"] == len(BODY)
    assert project.web.seen[-1].range is not None


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_two_servers_share_download_and_mount(project: Project) -> None:
    """Started at once, each has the weights, and each file was downloaded once."""
    project.hub_weights()
    project.gusset("secret", "set", "hub_token", input=TOKEN)
    with ThreadPoolExecutor(2) as pool:

        def serve_once(number: int) -> int:
            errors = project.tmp_path / f"errors{number}"
            with served(project.gusset, str(project.folder), errors=errors) as (address, _):
                path = str(project.mount / "model.safetensors")
                return predict(address, {"path": path}).json()["size"]

        assert list(pool.map(serve_once, range(2))) == [len(BODY)] * 2
    assert len(project.hub.downloads) == 2
