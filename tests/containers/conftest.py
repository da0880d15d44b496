"""A real engine, a base image without a registry, and `gusset serve` of images made from it."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import clean_environ
from tests.containers.wire import RunningProxy, running_proxy
from tests.killed_runs import (
    BRIDGE,
    DOCKER,
    ends_with_run,
    own_name,
    remove_docker,
    remove_interface,
    remove_left_dockers,
    remove_left_networks,
)
from tests.manager.conftest import manager, set_up  # noqa: F401  # fixtures
from tests.serving.conftest import eventually
from tests.system import missing_programs, skip_if

REPO = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("GUSSET_TEST_CACHE") or REPO / ".cache")
BUSYBOX = "docker.io/library/busybox:stable"
BASE = "localhost/python:3.11-slim"
# Half of what debootstrap installs, which each scan of a built image would read.
OMITTED_IN_SLIM = (
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
    "usr/share/doc/*",
    "usr/share/info/*",
    "usr/share/locale/*",
    "usr/share/man/*",
)
INSIDE = Path(__file__).parent / "inside.py"
NEEDED = ("podman", "runc", "debootstrap", "zstd")
IN_DOCKER = ("root", "user", "own-secrets", "shell-less")  # of the images
SERVER = "python3 /app/inside.py 8000"

# Podman looks at all images, containers and volumes, and fails for one that another test removes meanwhile.
VANISHED = (b"layer not known", b"image not known", b"no such volume", b"no such container")
ATTEMPTS = 3

IMAGES = {
    "root": "",
    "user": "RUN useradd --uid 4321 server\nUSER server",
    "number": "USER 4321:4321",
    "unknown-user": "USER nobody-knows-me",
    "shell-less": "RUN rm -f /bin/sh /bin/bash /bin/dash\nUSER 4321",
    "passwd-less": "RUN rm -f /etc/passwd",
    "starts-itself": 'ENTRYPOINT ["python3", "/app/inside.py", "8000"]',
    "own-secrets": "RUN mkdir /secrets && echo of the image > /secrets/its_own",
}


@dataclass(frozen=True)
class EngineAccess:
    """How tests reach an engine: `command` controls it; `serve` runs as `before PYTHON -m gusset` with `environ`."""

    command: Sequence[str] = ("podman",)
    before: Sequence[str] = ()
    environ: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable

    def __call__(self, *arguments: str, input: bytes | None = None) -> str:
        for _ in range(ATTEMPTS):
            done = subprocess.run([*self.command, *arguments], input=input, capture_output=True, check=False)
            if not any(text in done.stderr for text in VANISHED):
                break
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def remove_image(self, *images: str) -> None:
        """Remove images, unless the engine still has a container of them, which may be on its way out."""
        subprocess.run([*self.command, "rmi", "-f", *images], capture_output=True, check=False)

    def responds(self) -> bool:
        return subprocess.run([*self.command, "version"], capture_output=True, check=False).returncode == 0

    def labelled(self, *command: str, id: str = "ID") -> list[tuple[str, str, str]]:
        """What the engine lists of gusset's: ids, run ids, and the names of deployments, which may be empty."""
        label = "index .Labels" if "podman" in self.command else ".Label"
        line = f'{{{{.{id}}}}}/{{{{{label} "gusset.owner"}}}}/{{{{{label} "gusset.name"}}}}'
        rows = self(*command, "--filter", "label=gusset.owner", "--format", line).splitlines()
        return [(each[0], each[1], each[2]) for each in (row.split("/") for row in rows)]

    def of_runs(self, prefix: str) -> list[str]:
        """The containers and volumes of runs whose run id begins with `prefix`."""
        found = self.labelled("ps", "-a", "--no-trunc") + self.labelled("volume", "ls", id="Name")
        return [id_ for id_, run_id, _ in found if run_id.startswith(prefix)]


podman = EngineAccess()


@pytest.fixture(scope="module")
def proxy() -> Iterator[RunningProxy]:
    """A reverse proxy for all tests of a module; a test sets what the application does, with `handle_with`."""
    with running_proxy() as running:
        yield running


def files_newer_than(folder: Path, *roots: str | Path, tests: Sequence[str] = ()) -> Iterator[Path]:
    """The files below `roots` that changed after the folder; `tests` go before those of `find`.

    `find` needs much less time than `os.walk` for an engine's storage.
    """
    command = ["find", *map(str, roots), *tests, "-type", "f", "-newer", str(folder), "-print0"]
    done = subprocess.run(command, capture_output=True, check=False)  # it fails for files that vanish
    yield from (Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name)


def why_no_containers() -> str | None:
    """Why no container can be run on this machine; None if one can."""
    if os.getuid() != 0:
        return "these tests build images, which needs root"
    with socket.socket(socket.AF_UNIX) as docker:
        if docker.connect_ex("/var/run/docker.sock") == 0:
            return "Docker listens on /var/run/docker.sock and would be found before Podman: stop it"
    return missing_programs(*NEEDED)


def make_once(make: Callable[[], object], factory: pytest.TempPathFactory) -> None:
    """Call it unless another worker of this run of pytest has: all of them share Podman's storage."""
    folder = factory.getbasetemp()
    made = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / f"{make.__name__}.made"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make()
            made.touch()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tests' images by what is special about them. The base image is cached on the machine."""
    skip_if(why_no_containers())
    make_once(_build_images, tmp_path_factory)
    return {name: f"localhost/gusset-test:{name}" for name in IMAGES}


def _build_images() -> None:
    if subprocess.run(["podman", "image", "exists", BASE], check=False).returncode:
        _import_base()
    for name, lines in IMAGES.items():
        recipe = f"FROM {BASE}\nCOPY inside.py /app/inside.py\n{lines}\n"
        tag = f"localhost/gusset-test:{name}"
        podman("build", "-q", "-t", tag, "-f", "-", str(INSIDE.parent), input=recipe.encode())


@pytest.fixture(scope="session")
def busybox(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the sidecar's image in Podman, built from this machine's busybox."""
    skip_if(missing_programs("busybox"))
    make_once(_import_busybox, tmp_path_factory)
    return BUSYBOX


def _import_busybox() -> None:
    program = shutil.which("busybox") or ""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        folder = tarfile.TarInfo("bin")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        archive.add(program, "bin/busybox")
        for name in subprocess.check_output([program, "--list"], text=True).split():
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
    podman("import", "-", BUSYBOX, input=packed.getvalue())


@pytest.fixture(scope="session")
def docker(images: dict[str, str], busybox: str) -> Iterator[Path]:
    """The socket of a Docker that runs for the tests, with its own bridge and some of the images."""
    skip_if(missing_programs("dockerd", "docker", "ip"))
    remove_left_networks()
    remove_left_dockers()
    folder = Path(tempfile.gettempdir(), own_name(DOCKER))
    folder.mkdir(mode=0o700)
    # Unique, for test runs at the same time.
    bridge, address = own_name(BRIDGE), f"10.213.{os.getpid() % 255}.1/24"
    for words in (
        ["link", "add", bridge, "type", "bridge"],
        ["addr", "add", address, "dev", bridge],
        ["link", "set", bridge, "up"],
    ):
        subprocess.run(["ip", *words], check=True)
    found = folder / "docker.sock"
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                *(
                    *ends_with_run("TERM"),
                    "dockerd",
                    "--host",
                    f"unix://{found}",
                    "--data-root",
                    folder / "data",
                ),
                *("--exec-root", folder / "exec", "--pidfile", folder / "pid", "--bridge", bridge),
                *("--iptables=false", "--ip6tables=false"),  # Podman uses them too
            ],
            stdout=log,
            stderr=log,
        )
    try:
        engine = EngineAccess(("docker", "--host", f"unix://{found}"))
        eventually(lambda: engine.responds() or daemon.poll() is not None, "Docker responds")
        assert daemon.poll() is None, (folder / "log").read_text()
        names = [busybox, *(images[name] for name in IN_DOCKER)]
        with subprocess.Popen(
            ["podman", "save", "--multi-image-archive", *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as saved:
            subprocess.run([*engine.command, "load", "-q"], stdin=saved.stdout, check=True)
        yield found
    finally:
        daemon.terminate()
        daemon.wait(60)
        remove_interface(bridge)
        remove_docker(folder)


def _import_base() -> None:
    cached = CACHE / "python-3.11-slim.tar.zst"
    if not cached.exists():
        tree, new = CACHE / "rootfs", cached.with_suffix(".new")
        shutil.rmtree(tree, ignore_errors=True)
        include = "python3,python3-venv,python3-pip,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={include}", "bookworm", str(tree)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for pattern in OMITTED_IN_SLIM:
            for path in tree.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        packed = f"tar -C '{tree}' -c . | zstd -q -T0 -o '{new}'"
        subprocess.run(["sh", "-c", packed], check=True)
        new.rename(cached)
        shutil.rmtree(tree)
    subprocess.run(
        ["sh", "-c", f"zstd -q -d -c '{cached}' | podman import - {BASE}"], check=True, capture_output=True
    )


class ServedImage:
    """A folder with a custom image, and the `gusset serve` that runs it."""

    def __init__(self, tmp_path: Path, engine: EngineAccess = podman) -> None:
        self.engine = engine
        self.folder = tmp_path / "served"
        self.folder.mkdir()
        self.secrets = tmp_path / "secrets"
        self.secrets.mkdir()
        self.tmp = tmp_path
        self.process: subprocess.Popen[bytes] | None = None

    def secret(self, name: str, value: bytes) -> None:
        """Set a secret, also while it is served."""
        new = self.tmp / ".next"
        new.write_bytes(value)
        new.rename(self.secrets / name)

    def configure(self, image: str, command: str | None = SERVER, **more: object) -> None:
        config: dict[str, object] = {
            "base_image": {"image": image},
            "secrets": dict.fromkeys(sorted(os.listdir(self.secrets))),
            "docker_server": {
                "start_command": command,
                "server_port": 8000,
                "predict_endpoint": "/command",
                "readiness_endpoint": "/ready",
                "liveness_endpoint": "/health",
            },
        }
        for key, value in more.items():
            known = config.get(key)
            config[key] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

    def start(
        self, *options: str, before: Sequence[str] = (), from_folder: bool = True, **environ: str
    ) -> ServedImage:
        """`before` is a command that runs `serve`. Secrets come from the folder, or else from the vault."""
        if from_folder:
            options = ("--secrets-dir", str(self.secrets), *options)
        command = [
            *self.engine.before,
            *before,
            self.engine.python,
            "-m",
            "gusset",
            "serve",
            str(self.folder),
            "--port",
            "0",
        ]
        with (self.tmp / "out").open("wb") as out, (self.tmp / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *options],
                stdout=out,
                stderr=err,
                env=clean_environ(self.tmp / "home", self.tmp / "settings.toml")
                | self.engine.environ
                | environ,
            )
        return self

    def ready(self) -> ServedImage:
        try:
            eventually(lambda: "ready at" in self.output or self.running.poll() is not None, "ready")
        except AssertionError as late:
            raise AssertionError(self.output) from late
        assert self.running.poll() is None, self.output
        return self

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process
        return self.process

    @property
    def output(self) -> str:
        return (self.tmp / "out").read_text("utf-8", "replace") + (self.tmp / "err").read_text(
            "utf-8", "replace"
        )

    @property
    def address(self) -> str:
        found = re.search(r"ready at (\S+)", self.output)
        assert found, self.output
        return found[1]

    @property
    def container(self) -> str:
        """The id of the running container; empty if there is none."""
        found = self.engine.labelled("ps", "--no-trunc")
        return next((id_ for id_, run_id, name in found if name and self.is_its_run(run_id)), "")

    @property
    def image(self) -> str:
        """The id of the image of the running container."""
        return self.engine("inspect", "--format", "{{.Image}}", self.container)

    def is_its_run(self, run_id: str) -> bool:
        """Whether a run id is that of the running process: its process id and start time."""
        started_at = Path(f"/proc/{self.running.pid}/stat").read_text().rpartition(")")[2].split()[19]
        return run_id.startswith(f"{self.running.pid}-{started_at}-")

    def call(self, do: str, **more: object) -> object:
        """Call the server in the container, `inside.py`, through the proxy."""
        body = json.dumps({"do": do, **more})
        response = httpx.post(f"{self.address}/v1/models/model:predict", content=body, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()

    def content(self, name: str) -> bytes:
        """What the server reads from the file of that secret."""
        described = self.call("describe", name=name)
        assert isinstance(described, dict)
        return base64.b64decode(described["value"])

    def fails(self, status: int, *texts: str) -> str:
        """Assert that it ends by itself with this status and these texts; its output."""
        assert self.running.wait(60) == status, self.output
        for text in texts:
            assert text in self.output
        return self.output

    def stop(self) -> int:
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(60)

    def left_behind(self, pid: int | None = None) -> list[str]:
        """The containers, volumes and folders of secrets of a run; by default, of the last one."""
        prefix = f"{pid or self.running.pid}-"
        parents = [Path("/dev/shm"), *Path("/run/user").glob("*")]
        folders = [folder.name for parent in parents for folder in parent.glob(f"gusset-{prefix}*")]
        return folders + self.engine.of_runs(prefix)


@pytest.fixture
def served(tmp_path: Path, images: dict[str, str]) -> Iterator[ServedImage]:
    image = ServedImage(tmp_path)
    yield image
    if image.process and image.process.poll() is None:
        image.stop()


@pytest.fixture
def launch(served: ServedImage, images: dict[str, str]) -> Callable[..., ServedImage]:
    """Configures and starts it, and waits until it is ready."""

    def launch(
        image: str = "root", command: str | None = SERVER, *options: str, **more: object
    ) -> ServedImage:
        served.configure(images[image], command, **more)
        return served.start(*options).ready()

    return launch
