"""Images from a registry that requires a login, which is a secret."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli, clean_environ, leaks_in
from tests.containers.conftest import (
    EngineAccess,
    ServedImage,
    missing_programs,
    podman,
    skip_if,
)
from tests.ports import free_port, listens
from tests.serving.conftest import eventually

PASSWORD = b"dckr_pat_cHVibGlj-0042"
KEY = b'{"type": "service_account", "private_key": "cHVibGlj-0043"}'
KNOWN = """\
robot:$2b$04$8Y7npEkmZKZbCKk0MyrQ.e/mtRlk/vQsNCGIX5tZET4y2cZ01ees.
_json_key:$2b$04$GYvLy3u8y.DObzB/8U4z8.XLC5eaGiwvMkbg/Tczvk9MWErK5HNgS
"""  # both passwords, hashed by `htpasswd -B`


@pytest.fixture(scope="module")
def registry(images: dict[str, str], busybox: str) -> Iterator[str]:
    """The address of a registry that requires a login and has one image, `private/server:1`."""
    skip_if(missing_programs("docker-registry"))
    folder = Path(tempfile.mkdtemp(prefix="gusset-registry-"))
    address = f"127.0.0.1:{free_port()}"
    (folder / "known").write_text(KNOWN)
    about = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": f"{folder}/data"}},
        "http": {"addr": address},
        "auth": {"htpasswd": {"realm": "here", "path": f"{folder}/known"}},
    }
    (folder / "config.yml").write_text(json.dumps(about))
    server = subprocess.Popen(
        ["docker-registry", "serve", folder / "config.yml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        host, _, port = address.partition(":")
        eventually(lambda: listens(int(port), host), "the registry listens")
        recipe = f"FROM {busybox}\nRUN mkdir /www && echo well > /www/index.html\n"
        podman("build", "-q", "-t", f"{address}/private/server:1", "-f", "-", ".", input=recipe.encode())
        with (folder / "auth").open("w") as file:
            auth = base64.b64encode(b"robot:" + PASSWORD).decode()
            json.dump({"auths": {address: {"auth": auth}}}, file)
        podman("push", "-q", "--tls-verify=false", f"--authfile={folder}/auth", f"{address}/private/server:1")
        (folder / "auth").unlink()
        (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        podman.remove_image(f"{address}/private/server:1")
        yield address
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


@pytest.fixture(params=["podman", "docker"])
def served(request: pytest.FixtureRequest, tmp_path: Path, registry: str) -> Iterator[ServedImage]:
    """Serves the registry's image, which the engine does not have yet."""
    engine = podman
    if request.param == "docker":  # it uses no TLS for a registry on the loopback
        address = f"unix://{request.getfixturevalue('docker')}"
        engine = EngineAccess(("docker", "--host", address), environ={"DOCKER_HOST": address})
    else:
        conf = tmp_path / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
        engine = EngineAccess(environ={"CONTAINERS_REGISTRIES_CONF": str(conf)})
    image = ServedImage(tmp_path, engine)
    yield image
    if image.process and image.process.poll() is None:
        image.stop()
    engine.remove_image(_image(registry))


def _image(registry: str) -> str:
    return f"{registry}/private/server:1"


def _configure(served: ServedImage, image: str, auth: dict[str, object] | None, *declared: str) -> None:
    """Configure it for busybox's HTTP server."""
    base = {"image": image} | ({"docker_auth": auth} if auth else {})
    server = {"readiness_endpoint": "/", "liveness_endpoint": "/", "predict_endpoint": "/"}
    served.configure(image, "sh -c 'httpd -f -p 8000 -h /www & trap exit TERM; wait'", docker_server=server)
    file = served.folder / "config.yaml"
    config = yaml.safe_load(file.read_text()) | {"base_image": base, "secrets": dict.fromkeys(declared)}
    file.write_text(yaml.safe_dump(config))


LOGINS = {
    "plain": ("REGISTRY_SECRET", b"robot:" + PASSWORD + b"\n"),
    "base64": ("REGISTRY_SECRET", base64.b64encode(b"robot:" + PASSWORD)),
    "json": ("GCP_SERVICE_ACCOUNT_JSON", KEY),
}


@pytest.mark.parametrize("login", ["plain", pytest.param("base64", marks=pytest.mark.matrix), "json"])
def test_an_image_is_pulled_with_a_secret(served: ServedImage, registry: str, login: str) -> None:
    """The login is neither in the container, nor where engines store those of their users."""
    method, value = LOGINS[login]
    served.secret("pull", value)
    served.secret("other", b"the container's own")
    auth: dict[str, object] = {"auth_method": method, "secret_name": "pull", "registry": f"http://{registry}"}
    _configure(served, _image(registry), auth, "other")
    served.start().ready()
    assert f"pulling {_image(registry)}" in served.output
    assert served.engine("exec", served.container, "ls", "/secrets") == "other"
    reported = served.engine("inspect", served.container) + served.engine(
        "image", "inspect", _image(registry)
    )
    for stored in (
        "/run/containers",
        Path.home() / ".config/containers",
        Path.home() / ".docker",
        "/var/tmp",
    ):
        for top, _, names in os.walk(stored):
            for file in (Path(top, name) for name in names):
                with contextlib.suppress(OSError):
                    reported += (
                        file.read_text(errors="replace")
                        if file.is_file() and file.stat().st_size < 100_000
                        else ""
                    )
    assert served.stop() == 0
    for secret in (value, PASSWORD, b"cHVibGlj-0043"):
        assert not leaks_in((reported + served.output).encode(), secret)


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (b"robot:wrong-password", ("cannot be pulled", "the login in the secret pull right?")),
        (b"stranger:" + PASSWORD, ("cannot be pulled", "the login in the secret pull right?")),
        (b"no login at all", ("the secret pull is not a login", "gusset secret set pull")),
        (b"\xff:\xfe", ("the secret pull is not a login",)),
        (b"", ("the secret pull is not a login",)),
    ],
)
def test_a_wrong_login_is_reported_by_the_name_of_its_secret(
    served: ServedImage, registry: str, value: bytes, texts: tuple[str, ...]
) -> None:
    """Not by its value."""
    served.secret("pull", value)
    _configure(served, _image(registry), {"auth_method": "registry_secret", "secret_name": "pull"})
    served.start().fails(11, *texts)
    assert "Traceback" not in served.output
    assert not leaks_in(served.output.encode(), PASSWORD)


def test_a_built_image_is_pushed_with_the_login_of_its_base(
    served: ServedImage, registry: str, gusset: Cli
) -> None:
    """To the same registry only. Without a login the registry refuses it, and the image stays here."""
    served.secret("pull", b"robot:" + PASSWORD)
    auth: dict[str, object] = {"auth_method": "REGISTRY_SECRET", "secret_name": "pull"}
    _configure(served, _image(registry), auth)
    tag = f"{registry}/private/built:1"
    command = ["build", str(served.folder), "--tag", tag, "--push", "--secrets-dir", str(served.secrets)]
    done = gusset(*command, **served.engine.environ)
    assert b"built and pushed" in done.stdout
    assert not leaks_in(done.stdout + done.stderr, PASSWORD)

    _configure(served, _image(registry), None)
    done = gusset(*command, status=7, **served.engine.environ)
    assert b"the registry refuses the image" in done.stderr
    assert served.engine("image", "inspect", "--format", "{{.Id}}", tag)
    served.engine.remove_image(tag)


def test_a_missing_login_is_reported(served: ServedImage, registry: str) -> None:
    """With the registry's error, and what to do."""
    _configure(served, _image(registry), None)
    served.start().fails(11, "cannot be pulled", "base_image.docker_auth")


def test_an_image_that_does_not_exist_is_reported(served: ServedImage, registry: str) -> None:
    """With a login that is right."""
    served.secret("pull", b"robot:" + PASSWORD)
    image = f"{registry}/private/nothing:1"
    _configure(served, image, {"auth_method": "REGISTRY_SECRET", "secret_name": "pull"})
    served.start().fails(11, f"the image {image}", "cannot be pulled", "is the name right?")


@pytest.mark.parametrize("served", ["podman"], indirect=True)
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
            ("docker_auth.registry", "gets no login for another registry"),
        ),
        ({"auth_method": "REGISTRY_SECRET", "secret_name": "a b"}, 3, ("docker_auth.secret_name", "a space")),
        ({"auth_method": "AWS_IAM"}, 3, ("docker_auth.auth_method", "AWS_IAM", "get-login-password")),
        (
            {"auth_method": "AWS_OIDC", "aws_oidc_role_arn": "arn", "aws_oidc_region": "eu"},
            3,
            ("does not log in to a registry with AWS_OIDC", "REGISTRY_SECRET"),
        ),
    ],
)
def test_an_invalid_docker_auth_is_refused_before_the_pull(
    served: ServedImage, registry: str, auth: dict[str, object], status: int, texts: tuple[str, ...]
) -> None:
    """With its location in the file."""
    _configure(served, _image(registry), auth)
    known = {
        "registry": registry,
        "file": served.folder / "config.yaml",
        "underscored": registry.replace(":", "_"),
    }
    served.start().fails(status, *(text.format(**known) for text in texts))
    assert "pulling" not in served.output


@pytest.mark.parametrize("served", ["podman"], indirect=True)
def test_a_login_from_the_vault_is_audited(served: ServedImage, registry: str) -> None:
    """As the deployment's other secrets; --allow-missing pulls without it."""
    gusset = Cli(served.tmp / "home", clean_environ(served.tmp / "home", served.tmp / "settings.toml"))
    _configure(served, _image(registry), {"auth_method": "REGISTRY_SECRET", "secret_name": "pull"})
    served.start("--allow-missing", "pull", from_folder=False).fails(11, "cannot be pulled")
    gusset("secret", "set", "pull", "--exact", input=b"robot:" + PASSWORD)
    served.start(from_folder=False).ready()
    assert served.stop() == 0
    records = gusset("audit", "export").stdout.decode().splitlines()
    assert any('"pull"' in each and '"served"' in each for each in records)
