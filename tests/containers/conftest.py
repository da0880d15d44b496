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
from tests.manager.conftest import manager, set_up  # noqa: F401  # fixtures
from tests.serving.conftest import eventually

REPO = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("GUSSET_TEST_CACHE") or REPO / ".cache")
BUSYBOX = "docker.io/library/busybox:stable"
BASE = "localhost/python:3.11-slim"
INSIDE = Path(__file__).parent / "inside.py"
NEEDED = ("podman", "runc", "debootstrap", "zstd")
IN_DOCKER = ("root", "user", "own-secrets", "shell-less")  # of the images
SERVER = "python3 /app/inside.py 8000"

IMAGES = {
    "root": "",
    "user": "RUN useradd --uid 4321 server\nUSER server",
    "number": "USER 4321:4321",
    "stranger": "USER nobody-knows-me",
    "shell-less": "RUN rm -f /bin/sh /bin/bash /bin/dash\nUSER 4321",
    "passwd-less": "RUN rm -f /etc/passwd",
    "starts-itself": 'ENTRYPOINT ["python3", "/app/inside.py", "8000"]',
    "own-secrets": "RUN mkdir /secrets && echo of the image > /secrets/its_own",
}


@dataclass(frozen=True)
class Way:
    """To an engine: the command that asks it, what `serve` is started with, and from what."""

    command: Sequence[str] = ("podman",)
    before: Sequence[str] = ()
    environ: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable

    def __call__(self, *arguments: str, input: bytes | None = None) -> str:
        done = subprocess.run([*self.command, *arguments], input=input, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def answers(self) -> bool:
        return subprocess.run([*self.command, "version"], capture_output=True, check=False).returncode == 0

    def labelled(self, *command: str, id: str = "ID") -> list[tuple[str, str, str]]:
        """What the engine lists: the id, its owner, and the deployment's name, if it has one."""
        label = "index .Labels" if "podman" in self.command else ".Label"
        line = f'{{{{.{id}}}}}/{{{{{label} "gusset.owner"}}}}/{{{{{label} "gusset.name"}}}}'
        rows = self(*command, "--filter", "label=gusset.owner", "--format", line).splitlines()
        return [(each[0], each[1], each[2]) for each in (row.split("/") for row in rows)]

    def owned(self, beginning: str) -> list[str]:
        """Containers and volumes that are there of an owner whose name begins so."""
        there = self.labelled("ps", "-a", "--no-trunc") + self.labelled("volume", "ls", id="Name")
        return [id_ for id_, owner, _ in there if owner.startswith(beginning)]


podman = Way()


def forget(image: str) -> None:
    """Remove an image; one that Podman still finds a container of, which is being removed, may stay."""
    subprocess.run(["podman", "rmi", "-f", image], capture_output=True, check=False)


def unless(reason: str | None) -> None:
    """Skip the test for that reason; in CI nothing may lack."""
    if reason and os.environ.get("CI") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def lacks(*programs: str) -> str | None:
    """Which of these are not there, and what to do."""
    missing = [name for name in programs if shutil.which(name) is None]
    return (
        f"{', '.join(missing)} lacks: `make system-deps` installs it, on Debian or Ubuntu"
        if missing
        else None
    )


def why_not() -> str | None:
    """Why no container can be run here."""
    if os.getuid() != 0:
        return "these tests make images, as root"
    with socket.socket(socket.AF_UNIX) as docker:
        if docker.connect_ex("/var/run/docker.sock") == 0:
            return "Docker listens on /var/run/docker.sock and would be found before Podman: stop it"
    return lacks(*NEEDED)


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """The tests' images by what is special in them; made once on a machine, the base image cached."""
    unless(why_not())
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if subprocess.run(["podman", "image", "exists", BASE], check=False).returncode:
            _import_base()
        made = {}
        for name, lines in IMAGES.items():
            made[name] = f"localhost/gusset-test:{name}"
            recipe = f"FROM {BASE}\nCOPY inside.py /app/inside.py\n{lines}\n"
            podman("build", "-q", "-t", made[name], "-f", "-", str(INSIDE.parent), input=recipe.encode())
        return made


@pytest.fixture(scope="session")
def busybox(images: dict[str, str]) -> str:
    """The image of the sidecars, from this machine's busybox, where Podman has it."""
    unless(lacks("busybox"))
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
    return BUSYBOX


@pytest.fixture(scope="session")
def docker(images: dict[str, str], busybox: str) -> Iterator[Path]:
    """The socket of a Docker of the tests' own, with a bridge of its own, and some of the images."""
    unless(lacks("dockerd", "docker", "ip"))
    place = Path(tempfile.mkdtemp(prefix="gusset-docker-"))
    bridge, address = f"gusset{os.getpid()}", f"10.213.{os.getpid() % 255}.1/24"  # other tests may run
    for words in (
        ["link", "add", bridge, "type", "bridge"],
        ["addr", "add", address, "dev", bridge],
        ["link", "set", bridge, "up"],
    ):
        subprocess.run(["ip", *words], check=True)
    found = place / "docker.sock"
    with (place / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                *("dockerd", "--host", f"unix://{found}", "--data-root", place / "data"),
                *("--exec-root", place / "exec", "--pidfile", place / "pid", "--bridge", bridge),
                *("--iptables=false", "--ip6tables=false"),  # they are Podman's, too
            ],
            stdout=log,
            stderr=log,
        )
    try:
        way = Way(("docker", "--host", f"unix://{found}"))
        eventually(lambda: way.answers() or daemon.poll() is not None, "Docker answers")
        assert daemon.poll() is None, (place / "log").read_text()
        names = [busybox, *(images[name] for name in IN_DOCKER)]
        with subprocess.Popen(
            ["podman", "save", "--multi-image-archive", *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as saved:
            subprocess.run([*way.command, "load", "-q"], stdin=saved.stdout, check=True)
        yield found
    finally:
        daemon.terminate()
        daemon.wait(60)
        subprocess.run(["ip", "link", "del", bridge], check=False)
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in reversed([each for each in mounted if each.startswith(f"{place}/")]):
            subprocess.run(["umount", point], check=False)
        shutil.rmtree(place)


def _import_base() -> None:
    cached = CACHE / "python-3.11-slim.tar.zst"
    if not cached.exists():
        tree, beside = CACHE / "rootfs", cached.with_suffix(".new")
        shutil.rmtree(tree, ignore_errors=True)
        include = "python3,python3-venv,python3-pip,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={include}", "bookworm", str(tree)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        packed = f"tar -C '{tree}' -c . | zstd -q -T0 -o '{beside}'"
        subprocess.run(["sh", "-c", packed], check=True)
        beside.rename(cached)
        shutil.rmtree(tree)
    subprocess.run(
        ["sh", "-c", f"zstd -q -d -c '{cached}' | podman import - {BASE}"], check=True, capture_output=True
    )


class Ship:
    """One custom image, served by the real command."""

    def __init__(self, tmp_path: Path, way: Way = podman) -> None:
        self.way = way
        self.folder = tmp_path / "ship"
        self.folder.mkdir()
        self.secrets = tmp_path / "secrets"
        self.secrets.mkdir()
        self.tmp = tmp_path
        self.process: subprocess.Popen[bytes] | None = None

    def secret(self, name: str, value: bytes) -> None:
        beside = self.tmp / ".next"
        beside.write_bytes(value)
        beside.rename(self.secrets / name)

    def configure(self, image: str, command: str | None = SERVER, **more: object) -> None:
        config: dict[str, object] = {
            "base_image": {"image": image},
            "secrets": dict.fromkeys(sorted(os.listdir(self.secrets))),
            "docker_server": {
                "start_command": command,
                "server_port": 8000,
                "predict_endpoint": "/ask",
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
    ) -> Ship:
        """`before` are the words of a command that runs it; secrets are `from_folder`, or from the vault."""
        if from_folder:
            options = ("--secrets-dir", str(self.secrets), *options)
        command = [
            *self.way.before,
            *before,
            self.way.python,
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
                env=clean_environ(self.tmp / "home", self.tmp / "settings.toml") | self.way.environ | environ,
            )
        return self

    def ready(self) -> Ship:
        eventually(lambda: "ready at" in self.output or self.running.poll() is not None, "ready")
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
        """The id of the container that runs."""
        there = self.way.labelled("ps", "--no-trunc")
        return next((id_ for id_, owner, name in there if name and self.owns(owner)), "")

    @property
    def image(self) -> str:
        """The id of the image that it runs."""
        return self.way("inspect", "--format", "{{.Image}}", self.container)

    def owns(self, owner: str) -> bool:
        """Whether a label names our process: its number, and when it began."""
        began = Path(f"/proc/{self.running.pid}/stat").read_text().rpartition(")")[2].split()[19]
        return owner.startswith(f"{self.running.pid}-{began}-")

    def ask(self, do: str, **more: object) -> object:
        body = json.dumps({"do": do, **more})
        answer = httpx.post(f"{self.address}/v1/models/model:predict", content=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def content(self, name: str) -> bytes:
        """What the container reads in the file of that secret."""
        seen = self.ask("see", name=name)
        assert isinstance(seen, dict)
        return base64.b64decode(seen["value"])

    def fails(self, status: int, *texts: str) -> str:
        """It ends by itself, with this status and these texts."""
        assert self.running.wait(60) == status, self.output
        for text in texts:
            assert text in self.output
        return self.output

    def stop(self) -> int:
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(60)

    def left_behind(self, pid: int | None = None) -> list[str]:
        """Containers, volumes and folders of secrets that are there of a run; of the one that was started last."""
        mark = f"{pid or self.running.pid}-"
        places = [Path("/dev/shm"), *Path("/run/user").glob("*")]
        folders = [folder.name for place in places for folder in place.glob(f"gusset-{mark}*")]
        return folders + self.way.owned(mark)


@pytest.fixture
def ship(tmp_path: Path, images: dict[str, str]) -> Iterator[Ship]:
    made = Ship(tmp_path)
    yield made
    if made.process and made.process.poll() is None:
        made.stop()


@pytest.fixture
def launch(ship: Ship, images: dict[str, str]) -> Callable[..., Ship]:
    """Configure and start in one go, until it is ready."""

    def launch(image: str = "root", command: str | None = SERVER, *options: str, **more: object) -> Ship:
        ship.configure(images[image], command, **more)
        return ship.start(*options).ready()

    return launch
