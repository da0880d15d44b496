"""Images from a registry that wants a login, which is a secret."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli, clean_environ, leaks_in
from tests.containers.conftest import Ship, Way, forget, lacks, podman, unless
from tests.serving.conftest import eventually

pytestmark = pytest.mark.xdist_group("engines")

PASSWORD = b"dckr_pat_cHVibGlj-0042"
KEY = b'{"type": "service_account", "private_key": "cHVibGlj-0043"}'
KNOWN = """\
robot:$2b$04$8Y7npEkmZKZbCKk0MyrQ.e/mtRlk/vQsNCGIX5tZET4y2cZ01ees.
_json_key:$2b$04$GYvLy3u8y.DObzB/8U4z8.XLC5eaGiwvMkbg/Tczvk9MWErK5HNgS
"""  # these two, as `htpasswd -B` has them


@pytest.fixture(scope="module")
def registry(images: dict[str, str], busybox: str) -> Iterator[str]:
    """A registry's address; it asks for a login and has one image, `private/server:1`."""
    unless(lacks("docker-registry"))
    place = Path(tempfile.mkdtemp(prefix="gusset-registry-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (place / "known").write_text(KNOWN)
    about = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": f"{place}/data"}},
        "http": {"addr": address},
        "auth": {"htpasswd": {"realm": "here", "path": f"{place}/known"}},
    }
    (place / "config.yml").write_text(json.dumps(about))
    server = subprocess.Popen(
        ["docker-registry", "serve", place / "config.yml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        host, _, port = address.partition(":")
        eventually(lambda: _listens(host, int(port)), "the registry listens")
        recipe = f"FROM {busybox}\nRUN mkdir /www && echo well > /www/index.html\n"
        podman("build", "-q", "-t", f"{address}/private/server:1", "-f", "-", ".", input=recipe.encode())
        with (place / "auth").open("w") as file:
            auth = base64.b64encode(b"robot:" + PASSWORD).decode()
            json.dump({"auths": {address: {"auth": auth}}}, file)
        podman("push", "-q", "--tls-verify=false", f"--authfile={place}/auth", f"{address}/private/server:1")
        (place / "auth").unlink()
        (place / "registries.conf").write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        forget(f"{address}/private/server:1")
        yield address
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(place)


def _listens(host: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0


@pytest.fixture(params=["podman", "docker"])
def ship(request: pytest.FixtureRequest, tmp_path: Path, registry: str) -> Iterator[Ship]:
    """Serves that image, which no engine has yet."""
    way = podman
    if request.param == "docker":  # it speaks to a registry on the loopback without TLS as it is
        address = f"unix://{request.getfixturevalue('docker')}"
        way = Way(("docker", "--host", address), environ={"DOCKER_HOST": address})
    else:
        conf = tmp_path / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
        way = Way(environ={"CONTAINERS_REGISTRIES_CONF": str(conf)})
    made = Ship(tmp_path, way)
    yield made
    if made.process and made.process.poll() is None:
        made.stop()
    subprocess.run([*way.command, "rmi", "-f", _image(registry)], capture_output=True, check=False)


def _image(registry: str) -> str:
    return f"{registry}/private/server:1"


def _configure(ship: Ship, image: str, auth: dict[str, object] | None, *declared: str) -> None:
    """For busybox's own server."""
    base = {"image": image} | ({"docker_auth": auth} if auth else {})
    server = {"readiness_endpoint": "/", "liveness_endpoint": "/", "predict_endpoint": "/"}
    ship.configure(image, "sh -c 'httpd -f -p 8000 -h /www & trap exit TERM; wait'", docker_server=server)
    file = ship.folder / "config.yaml"
    config = yaml.safe_load(file.read_text()) | {"base_image": base, "secrets": dict.fromkeys(declared)}
    file.write_text(yaml.safe_dump(config))


LOGINS = {
    "plain": ("REGISTRY_SECRET", b"robot:" + PASSWORD + b"\n"),
    "base64": ("REGISTRY_SECRET", base64.b64encode(b"robot:" + PASSWORD)),
    "json": ("GCP_SERVICE_ACCOUNT_JSON", KEY),
}


@pytest.mark.parametrize("login", LOGINS)
def test_an_image_is_pulled_with_a_secret(ship: Ship, registry: str, login: str) -> None:
    """It is told; the login is nowhere, neither in the container, nor where engines keep those of people."""
    method, value = LOGINS[login]
    ship.secret("pull", value)
    ship.secret("other", b"the container's own")
    auth: dict[str, object] = {"auth_method": method, "secret_name": "pull", "registry": f"http://{registry}"}
    _configure(ship, _image(registry), auth, "other")
    ship.start().ready()
    assert f"pulling {_image(registry)}" in ship.output
    assert ship.way("exec", ship.container, "ls", "/secrets") == "other"
    told = ship.way("inspect", ship.container) + ship.way("image", "inspect", _image(registry))
    for kept in ("/run/containers", Path.home() / ".config/containers", Path.home() / ".docker", "/var/tmp"):
        for top, _, names in os.walk(kept):
            for file in (Path(top, name) for name in names):
                with contextlib.suppress(OSError):
                    told += (
                        file.read_text(errors="replace")
                        if file.is_file() and file.stat().st_size < 100_000
                        else ""
                    )
    assert ship.stop() == 0
    for secret in (value, PASSWORD, b"cHVibGlj-0043"):
        assert not leaks_in((told + ship.output).encode(), secret)


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (b"robot:wrong-password", ("cannot be pulled", "the secret pull?")),
        (b"stranger:" + PASSWORD, ("cannot be pulled", "the secret pull?")),
        (b"no login at all", ("the secret pull is no login", "gusset secret set pull")),
        (b"\xff:\xfe", ("the secret pull is no login",)),
        (b"", ("the secret pull is no login",)),
    ],
)
def test_a_wrong_login(ship: Ship, registry: str, value: bytes, texts: tuple[str, ...]) -> None:
    """What went wrong, and which secret it is; not what is in it."""
    ship.secret("pull", value)
    _configure(ship, _image(registry), {"auth_method": "registry_secret", "secret_name": "pull"})
    ship.start().fails(11, *texts)
    assert "Traceback" not in ship.output
    assert not leaks_in(ship.output.encode(), PASSWORD)


def test_no_login(ship: Ship, registry: str) -> None:
    """The registry's own words, and what to do."""
    _configure(ship, _image(registry), None)
    ship.start().fails(11, "cannot be pulled", "base_image.docker_auth")


def test_no_such_image(ship: Ship, registry: str) -> None:
    """In a registry that answers."""
    ship.secret("pull", b"robot:" + PASSWORD)
    image = f"{registry}/private/nothing:1"
    _configure(ship, image, {"auth_method": "REGISTRY_SECRET", "secret_name": "pull"})
    ship.start().fails(11, f"the image {image}", "cannot be pulled", "is the name right?")


@pytest.mark.parametrize("ship", ["podman"], indirect=True)
@pytest.mark.parametrize(
    ("auth", "status", "texts"),
    [
        (
            {"auth_method": "REGISTRY_SECRET", "secret_name": "pull"},
            5,
            ("the login to {registry}", "pull ({file}:", "gusset secret set pull"),
        ),
        ({"auth_method": "REGISTRY_SECRET"}, 5, ("DOCKER_REGISTRY_{underscored}",)),
        (
            {"auth_method": "REGISTRY_SECRET", "secret_name": "pull", "registry": "elsewhere.example"},
            3,
            ("docker_auth.registry", "gets no login that is for another registry"),
        ),
        ({"auth_method": "REGISTRY_SECRET", "secret_name": "a b"}, 3, ("docker_auth.secret_name", "a space")),
        ({"auth_method": "AWS_IAM"}, 3, ("docker_auth.auth_method", "AWS_IAM", "get-login-password")),
        (
            {"auth_method": "AWS_OIDC", "aws_oidc_role_arn": "arn", "aws_oidc_region": "eu"},
            3,
            ("does not log in to a registry by AWS_OIDC", "REGISTRY_SECRET"),
        ),
    ],
)
def test_what_is_refused_before_anything_is_pulled(
    ship: Ship, registry: str, auth: dict[str, object], status: int, texts: tuple[str, ...]
) -> None:
    """With its place in the file."""
    _configure(ship, _image(registry), auth)
    known = {
        "registry": registry,
        "file": ship.folder / "config.yaml",
        "underscored": registry.replace(":", "_"),
    }
    ship.start().fails(status, *(text.format(**known) for text in texts))
    assert "pulling" not in ship.output


@pytest.mark.parametrize("ship", ["podman"], indirect=True)
def test_a_login_from_the_vault(ship: Ship, registry: str) -> None:
    """It is read, and recorded, as the deployment's other secrets are; without it one may try by --allow-missing."""
    gusset = Cli(ship.tmp / "home", clean_environ(ship.tmp / "home", ship.tmp / "settings.toml"))
    _configure(ship, _image(registry), {"auth_method": "REGISTRY_SECRET", "secret_name": "pull"})
    ship.start("--allow-missing", "pull", from_folder=False).fails(11, "cannot be pulled")
    gusset("secret", "set", "pull", "--exact", input=b"robot:" + PASSWORD)
    ship.start(from_folder=False).ready()
    assert ship.stop() == 0
    records = gusset("audit", "export").stdout.decode().splitlines()
    assert any('"pull"' in each and '"ship"' in each for each in records)
