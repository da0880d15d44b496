"""compose.yaml: two managers on PostgreSQL behind a proxy; one is killed, and the vault stays usable.

The images of PostgreSQL and Caddy are built here, with the same interface as the official ones: a test
reaches no registry.
"""

from __future__ import annotations

import os
import secrets
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.containers.conftest import BASE, REPO, missing_programs, podman, skip_if
from tests.containers.test_own_image import image, wheels  # noqa: F401  # fixtures
from tests.manager.conftest import ADMIN, PASSWORD
from tests.ports import free_port
from tests.postgres_server import wheel
from tests.serving.conftest import eventually

FILES = Path(__file__).parent / "compose"
POSTGRES, CADDY = "localhost/gusset-test-postgres", "localhost/gusset-test-caddy"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other_images(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PostgreSQL from the wheel of the tests, Caddy from this machine, as compose.yaml gets their names."""
    skip_if(missing_programs("caddy", "busybox"))
    context = tmp_path_factory.mktemp("compose-images")
    shutil.copytree(wheel() / "pginstall18", context / "postgres")
    shutil.copytree(wheel().with_suffix(".libs"), context / "libraries")
    shutil.copy(FILES / "postgres-entrypoint", context)
    for program in ("caddy", "busybox"):
        shutil.copy(shutil.which(program) or "", context)
    recipes = {
        POSTGRES: "COPY postgres /opt/postgres\n"
        "COPY libraries /opt/libraries\n"
        "COPY postgres-entrypoint /\n"
        "ENV PATH=/opt/postgres/bin:$PATH PGHOST=/tmp LD_LIBRARY_PATH=/opt/libraries\n"
        'ENTRYPOINT ["/postgres-entrypoint"]\n',
        CADDY: "COPY caddy busybox /usr/bin/\nRUN ln -s busybox /usr/bin/wget\n"
        "ENV XDG_DATA_HOME=/data\n"
        'CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile"]\n',
    }
    for name, lines in recipes.items():
        recipe = f"FROM {BASE}\n{lines}"
        podman("build", "-q", "-t", name, "-f", "-", str(context), input=recipe.encode())
    return {"POSTGRES_IMAGE": POSTGRES, "CADDY_IMAGE": CADDY}


class Stack:
    """The containers of compose.yaml, under a name of their own."""

    def __init__(self, folder: Path, images: dict[str, str]) -> None:
        self.name = f"gusset{secrets.token_hex(3)}"
        self.port = free_port()
        self.secrets = folder / "secrets"
        self.compose = [sys.executable, "-m", "podman_compose", "-p", self.name]
        self.environ = {
            **os.environ,
            **images,
            "COMPOSE": " ".join(self.compose),
            "SECRETS_DIR": str(self.secrets),
            "HTTPS_PORT": f"127.0.0.1:{self.port}",
        }

    def __call__(self, *words: str, input: bytes | None = None) -> bytes:
        """Execute a command of compose; what it printed."""
        return self.run(*self.compose, *words, input=input)

    def run(self, *command: str, input: bytes | None = None) -> bytes:
        done = subprocess.run(
            command, cwd=REPO, env=self.environ, input=input, capture_output=True, timeout=240
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout

    def set_up(self) -> str:
        """Everything that the script does; the administrator's API key."""
        printed = self.run("packaging/compose-setup", ADMIN, input=PASSWORD).decode()
        return next(word for word in printed.split() if word.startswith("gusset_key_"))

    def client(self, key: str) -> httpx.Client:
        """A client of the proxy, which trusts Caddy's own authority."""
        authority = self("exec", "-T", "proxy", "cat", "/data/caddy/pki/authorities/local/root.crt")
        context = ssl.create_default_context(cadata=authority.decode())
        url, headers = f"https://localhost:{self.port}", {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=url, headers=headers, verify=context, timeout=20, trust_env=False)

    def is_healthy(self, service: str) -> bool:
        """What the health check of a container says, executed now: Podman needs systemd to repeat it."""
        command = ["podman", "healthcheck", "run", self.container(service)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def container(self, service: str) -> str:
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={self.name}"
        return podman("ps", "-aq", "--filter", label, "--filter", project)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:  # the proxy is still starting
        return False


def write(client: httpx.Client, name: str) -> None:
    """Set a secret, as a client behind a proxy does it: it repeats until a manager has responded.

    Caddy 2.6 cannot send a request with a body to another manager, as newer ones do.
    """
    for _ in range(30):
        body, headers = {"name": name, "value": "value"}, {"idempotency-key": f"write {name}"}
        response = client.post("/v1/secrets", json=body, headers=headers)
        if response.status_code not in (502, 503):
            break
        time.sleep(0.2)
    assert response.status_code == 200, response.text


@pytest.fixture
def stack(tmp_path: Path, image: str, other_images: dict[str, str]) -> Iterator[Stack]:  # noqa: F811
    made = Stack(tmp_path, other_images | {"GUSSET_IMAGE": image})
    try:
        yield made
        for service in ("proxy", "manager-1", "manager-2", "database"):  # shown when the test fails
            logs = ["podman", "logs", "--tail", "15", made.container(service)]
            print(service, subprocess.run(logs, capture_output=True, text=True))
    finally:
        made("--profile", "owner", "down", "-v", "-t", "5")


def test_the_vault_stays_usable_when_a_manager_is_killed(stack: Stack) -> None:
    """Set up by the script; a secret through the proxy; one manager is killed; reads and writes go on."""
    key = stack.set_up()
    with stack.client(key) as client:
        eventually(lambda: is_ready(client), "it is ready")
        write(client, "before")
        eventually(lambda: all(map(stack.is_healthy, ("manager-1", "manager-2"))), "both are ready")
        podman("kill", "--signal", "KILL", stack.container("manager-1"))
        for number in range(20):
            write(client, f"after-{number}")
        assert len(client.get("/v1/secrets").json()["secrets"]) == 21
        # What forwards the client's address is trusted: the log has it, and not that of the proxy.
        actors = [record["actor"] for record in client.get("/v1/audit").json()["records"]]
        assert not any("10.214.8.10" in actor for actor in actors), actors
    for service in ("manager-2", "proxy", "database"):
        found = podman("inspect", "--format", "{{.Config.Env}} {{.Args}}", stack.container(service))
        passwords = [(stack.secrets / "owner_password").read_text(), key]
        assert not any(secret in found for secret in passwords)
        assert stack.is_healthy(service)
