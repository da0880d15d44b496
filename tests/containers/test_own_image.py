"""gusset's own image: it is built from packaging/Containerfile, and the commands printed on other systems run in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cli.test_portable import elsewhere
from tests.cli.test_serve import VALUE, sha, write_model
from tests.conftest import Cli
from tests.containers.conftest import BASE, CACHE, REPO
from tests.manager.conftest import Manager, admin, deployment, manager, set_up  # noqa: F401  # fixtures
from tests.ports import free_port
from tests.serving.conftest import eventually

PYTHON = "3.11"  # of the tests' base image


@pytest.fixture(scope="module")
def wheels() -> Path:
    """A folder with the wheels that the build installs, since a build may not reach a registry."""
    requirements = REPO / "requirements" / "image.txt"
    folder = CACHE / f"image-wheels-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    with (CACHE / "image-wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test_compose.py may be run by another worker
        if not folder.exists():
            _download_wheels(requirements, folder)
    return folder


def _download_wheels(requirements: Path, folder: Path) -> None:
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    download = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(new)]
    download += ["--python-version", PYTHON]
    for packages in (["--no-deps", "--require-hashes", "-r", str(requirements)], ["hatchling"]):
        done = subprocess.run([*download, *packages], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    new.rename(folder)


@pytest.fixture(scope="module")
def image(images: dict[str, str], wheels: Path) -> str:
    """The image that packaging/Containerfile builds, on the base image of the tests."""
    name = "localhost/gusset-own-image"
    offline = ["--build-arg", "PIP_FIND_LINKS=/wheels", "--build-arg", "PIP_NO_INDEX=1"]
    options = ["--build-arg", f"BASE={BASE}", "--volume", f"{wheels}:/wheels:ro", *offline, "-t", name]
    command = ["make", "-o", ".venv/.made", "image", f"IMAGE_ARGS={shlex.join(options)}"]
    # Workers share Podman's storage: one that makes or removes images now and then fails the build of another.
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in range(3):
            done = subprocess.run(command, cwd=REPO, check=False, capture_output=True, text=True)
            if done.returncode == 0:
                break
            print(f"build {attempt + 1} of gusset's image failed:\n{done.stdout}{done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    return name  # not removed: Podman cannot remove an image while another worker builds one


@pytest.fixture
def volume() -> Iterator[str]:
    name = f"gusset-own-image-{secrets.token_hex(4)}"
    yield name
    subprocess.run(["podman", "volume", "rm", "-f", name], check=False, capture_output=True)


@pytest.fixture
def port() -> int:
    return free_port()


Translate = Callable[[str], list[str]]


@pytest.fixture
def translate(image: str, volume: str) -> Translate:
    """From a printed command line to one for Podman, with the image and the volume of the test."""

    def translate(line: str) -> list[str]:
        words = shlex.split(line)
        assert words[:3] == ["docker", "run", "--rm"] and words.count("gusset") == 1
        replaced = {"docker": "podman", "gusset": image, "gusset:/data": f"{volume}:/data", "-it": "-i"}
        return [replaced.get(word, word) for word in words]

    return translate


def printed(gusset: Cli, *args: str) -> list[str]:
    """The container commands that a command prints on a system that is not Linux."""
    message = elsewhere(gusset, *args, status=11, system="darwin").stderr.decode()
    return [line.strip() for line in message.splitlines() if line.strip().startswith("docker run")]


def run(command: list[str], *, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command that must succeed."""
    done = subprocess.run(command, input=input, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done


@contextmanager
def running(command: list[str], log: Path, until: str = "ready at") -> Iterator[None]:
    """Run a container, which has printed `until`, until the end of the context."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            eventually(lambda: until in log.read_text() or process.poll() is not None, "it is ready")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(60)


def test_a_model_is_served_with_the_printed_commands(
    gusset: Cli, tmp_path: Path, translate: Translate, port: int
) -> None:
    """A secret goes into the container's own vault; the mounted model is served with it."""
    folder = write_model(tmp_path / "model")
    serve, set_secret = printed(gusset, "serve", str(folder), "--port", str(port))
    set_secret = set_secret.replace("NAME", "hf_access_token")
    run(translate(set_secret), input=VALUE)

    with running(translate(serve), tmp_path / "log"):
        response = httpx.post(f"http://127.0.0.1:{port}/v1/models/model:predict", json={})
    assert response.json() == sha(VALUE)
    assert VALUE not in (tmp_path / "log").read_bytes()


def test_a_folder_of_secrets_is_mounted(gusset: Cli, tmp_path: Path, translate: Translate) -> None:
    folder, secrets = write_model(tmp_path / "model"), tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "hf_access_token").write_bytes(VALUE)
    [predict] = printed(gusset, "predict", str(folder), "--secrets-dir", str(secrets), "--data", "{}")
    assert predict.endswith(" < input.json")

    command = translate(predict.removesuffix(" < input.json"))
    done = run(command, input=b"{}")
    assert done.stdout.decode().strip() == str(sha(VALUE)).replace("'", '"')


def test_the_manager_runs_with_the_printed_command(
    gusset: Cli, tmp_path: Path, translate: Translate, port: int
) -> None:
    [command] = printed(gusset, "manager", "--port", str(port))
    log = tmp_path / "log"
    with running(translate(command), log):
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        eventually(lambda: re.search(r"http://\S+/setup/\S+", log.read_text()), "its link is printed")


def test_the_demo_runs_with_the_printed_command(gusset: Cli, translate: Translate) -> None:
    [demo] = printed(gusset, "demo")
    done = run(translate(demo))
    assert b"the prediction is correct" in done.stdout


def test_exec_runs_with_the_printed_command(gusset: Cli, translate: Translate) -> None:
    execute, set_secret = printed(gusset, "exec", "--secret", "a_token", "--", "true")
    run(translate(set_secret.replace("NAME", "a_token")), input=VALUE)
    words = translate(execute)
    assert words[-1] == "COMMAND"
    script = "cat $GUSSET_SECRETS_DIR/a_token"
    done = run([*words[:-1], "sh", "-c", script])
    assert done.stdout == b"***"


def test_the_agent_runs_with_the_printed_command(
    manager: Manager,  # noqa: F811
    deployment: Callable[..., httpx.Client],  # noqa: F811
    gusset: Cli,
    tmp_path: Path,
    translate: Translate,
) -> None:
    """The token's file is the container user's; the manager listens at this machine's loopback address."""
    with manager.client() as client:
        client.post("/v1/secrets", json={"name": "a_token", "value": VALUE.decode()}).raise_for_status()
    token = tmp_path / "token"
    token.write_text(deployment("app", "a_token").headers["authorization"].removeprefix("Bearer "))
    token.chmod(0o600)
    os.chown(token, 10001, 10001)
    gusset.environ |= {"GUSSET_MANAGER": manager.address, "GUSSET_TOKEN_FILE": str(token)}
    [agent] = printed(gusset, "agent", "--deployment", "app", "--dir", "anywhere", "--exec", "anything")
    words = translate(agent)
    assert words[-2:] == ["--exec", "COMMAND"]
    here = words.index("run") + 1
    log = tmp_path / "log"
    command = "sh -c 'cat /secrets/a_token; sleep 60'"
    with running([*words[:here], "--network=host", *words[here:-1], command], log, "***"):
        assert VALUE not in log.read_bytes()
