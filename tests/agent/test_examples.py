"""The examples of docs/agent.md: the systemd units, compose.yaml, and the commands of the first section."""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.agent.conftest import Agent, put
from tests.conftest import Cli
from tests.containers.conftest import busybox, images, podman  # noqa: F401  # fixtures
from tests.containers.test_own_image import image, wheels  # noqa: F401  # fixtures
from tests.manager.conftest import Manager
from tests.serving.conftest import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "agent"
VALUE, NEW = b"s3cr3t-v4lue-before", b"an0ther-v4lue-of-more"


@pytest.fixture
def registered(admin: httpx.Client, token_file: Callable[..., Path]) -> Path:
    """The deployment and the secret of the examples; the file with its token."""
    put(admin, db_password=VALUE)
    return token_file("db_password")


def unit(name: str) -> dict[str, Any]:
    """The settings of a unit by section and key; lists where a key is repeated."""
    found: dict[str, Any] = {}
    section = ""
    for line in (EXAMPLES / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, _, text = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(text)
    return found


@pytest.mark.system("systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """With this machine's gusset in place of the one in /opt."""
    program = shutil.which("gusset", path=str(Path(sys.executable).parent)) or shutil.which("true")
    for name in ("gusset-agent.service", "my-app.service"):
        text = (EXAMPLES / name).read_text().replace("/opt/gusset/bin/gusset", str(program))
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.glob("*.service"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Unknown" not in done.stderr


def test_the_unit_of_the_agent_runs_as_it_stands(
    registered: Path,
    admin: httpx.Client,
    elsewhere: Cli,
    start: Callable[..., Agent],
    memory: Path,
    tmp_path: Path,
) -> None:
    """As systemd would run it: the command, the folder, the token as a credential, and the notice."""
    settings = unit("gusset-agent.service")
    assert settings["Service.Type"] == ["notify"]
    [line] = settings["Service.ExecStart"]
    [runtime] = settings["Service.RuntimeDirectory"]
    program, command, *words = shlex.split(line.replace("%t", str(memory)))
    assert program.endswith("/gusset") and command == "agent"
    assert words[:4] == ["--deployment", "my-app", "--dir", str(memory / runtime)]
    environment = dict(each.split("=", 1) for each in settings["Service.Environment"])
    [credential] = settings["Service.LoadCredential"]
    assert environment["GUSSET_TOKEN_FILE"] == "%d/" + credential.partition(":")[0]

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(30)
        agent = start(*words[4:], folder=memory / runtime, NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert listening.recv(100) == b"READY=1"
    application = unit("my-app.service")
    assert application["Unit.After"] == application["Unit.Requires"] == ["gusset-agent.service"]
    [line] = application["Service.ExecStart"]
    [path] = re.findall(r"/run/(\S+/db_password)", line)
    assert (memory / path).read_bytes() == VALUE
    put(admin, db_password=NEW)
    eventually(lambda: (memory / path).read_bytes() == NEW)
    assert agent.stop() == 0


def test_the_first_section_works_as_it_stands(
    manager: Manager,
    admin: httpx.Client,
    elsewhere: Cli,
    start: Callable[..., Agent],
    memory: Path,
    tmp_path: Path,
) -> None:
    """A secret, a token, the agent, the file: with the addresses of this test."""
    text = (ROOT / "docs" / "agent.md").read_text().partition("## Which secrets")[0]
    lines = [
        line.strip()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    set_secret, make_token, protect, manager_url, token, run, read = [line for line in lines if line]
    assert (manager_url.split("=")[0], token) == ("export GUSSET_MANAGER", "export GUSSET_TOKEN_FILE=token")
    person = Cli(elsewhere.home, elsewhere.environ | {"GUSSET_TOKEN_FILE": ""})
    person("login", manager.address, input=manager.key.encode())

    person(*shlex.split(set_secret)[1:], input=VALUE)
    words, _, file = make_token.partition(" > ")
    (tmp_path / file).write_bytes(person(*shlex.split(words)[1:]).stdout)
    subprocess.run(shlex.split(protect), cwd=tmp_path, check=True)
    agent = start(*shlex.split(run)[6:])
    agent.logged("Ready: 1 secret of my-app in ")

    assert shlex.split(run)[:6] == ["gusset", "agent", "--deployment", "my-app", "--dir", "/dev/shm/my-app"]
    assert read == "cat /dev/shm/my-app/db_password"
    assert (memory / "db_password").read_bytes() == VALUE


def test_a_reader_can_take_a_certificate_and_its_key_of_one_moment(
    admin: httpx.Client, token_file: Callable[..., Path], start: Callable[..., Agent], memory: Path
) -> None:
    """The line of the document."""
    put(admin, **{"tls.crt": b"the certificate\n", "tls.key": b"the key\n"})
    token_file("tls.crt", "tls.key")
    [line] = re.findall(r"cd -P .*", (ROOT / "docs" / "agent.md").read_text())
    assert start("--once").process.wait(30) == 0

    done = subprocess.run(["sh", "-c", line.replace("/secrets", str(memory))], capture_output=True)
    assert done.stdout == b"the certificate\nthe key\n"


class Compose:
    """The services of compose.yaml, run with Podman."""

    def __init__(self, images: dict[str, str], folder: Path, manager: str) -> None:  # noqa: F811
        """`images` replaces the names of images."""
        self.services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
        self._images = images
        self._folder = folder
        self._manager = manager
        self._suffix = secrets.token_hex(4)

    def name(self, text: str) -> str:
        return f"gusset-compose-{text}-{self._suffix}"

    def create_volume(self) -> None:
        volume = self.services["volumes"]["secrets"]
        options = [word for key, text in volume["driver_opts"].items() for word in ("--opt", f"{key}={text}")]
        podman("volume", "create", "--driver", volume["driver"], *options, self.name("secrets"))

    def up(self, service: str) -> None:
        its = self.services["services"][service]
        words = ["run", "-d", "--network", "host", "--name", self.name(service)]
        for key, text in its.get("environment", {}).items():
            words += ["-e", f"{key}={text.replace('${GUSSET_MANAGER}', self._manager)}"]
        for mount in its["volumes"]:
            source, _, rest = mount.partition(":")
            source = str(self._folder / source) if source.startswith("./") else self.name(source)
            words += ["-v", f"{source}:{rest}"]
        words += ["--user", its["user"]] if "user" in its else []
        podman(*words, self._images[its["image"]], *its["command"])

    def is_healthy(self, service: str) -> bool:
        how, *words = self.services["services"][service]["healthcheck"]["test"]
        assert how == "CMD"
        done = subprocess.run(
            ["podman", "exec", self.name(service), *words], capture_output=True, check=False
        )
        return done.returncode == 0

    def logs(self, service: str) -> str:
        done = subprocess.run(["podman", "logs", self.name(service)], capture_output=True, check=False)
        return (done.stdout + done.stderr).decode()

    def down(self) -> None:
        for service in self.services["services"]:
            subprocess.run(
                ["podman", "rm", "-f", "-t", "2", self.name(service)], capture_output=True, check=False
            )
        subprocess.run(
            ["podman", "volume", "rm", "-f", self.name("secrets")], capture_output=True, check=False
        )


@pytest.fixture
def compose(
    image: str,  # noqa: F811
    busybox: str,  # noqa: F811
    manager: Manager,
    registered: Path,
    tmp_path: Path,
) -> Iterator[Compose]:
    made = Compose({"gusset": image, "busybox:stable": busybox}, tmp_path, manager.address)
    shutil.chown(registered, 10001, 10001)
    registered.chmod(0o600)
    made.create_volume()
    yield made
    made.down()


def test_the_compose_file_gives_an_application_its_secrets(compose: Compose, admin: httpx.Client) -> None:
    """Both containers, with the volume in memory that they share; a new value arrives."""
    assert compose.services["services"]["app"]["depends_on"] == {"secrets": {"condition": "service_healthy"}}
    compose.up("secrets")
    eventually(lambda: compose.is_healthy("secrets"), compose.logs("secrets"))
    compose.up("app")
    eventually(lambda: compose.logs("app").split()[:1] == [str(len(VALUE))], compose.logs("app"))

    put(admin, db_password=NEW)
    eventually(lambda: str(len(NEW)) in compose.logs("app").split(), compose.logs("app"))
    in_memory = podman("exec", compose.name("app"), "sh", "-c", "grep ' /secrets ' /proc/mounts")
    assert in_memory.split()[2] == "tmpfs"
    podman("stop", "-t", "10", compose.name("secrets"))
    assert "/secrets" in podman("exec", compose.name("app"), "ls", "-d", "/secrets")
    assert podman("exec", compose.name("app"), "ls", "-A", "/secrets") == ""
