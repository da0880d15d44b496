"""`gusset build` with real engines: the images run, their secrets rotate, and no layer has a build's secret."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from gusset.containers.build.model_requirements import runtime_requirements
from gusset.environments.resources import TRUSS_FILE, list_text
from tests.cli.test_serve import VALUE, sha, write_model
from tests.conftest import Cli, clean_environ, leaks_in
from tests.containers.conftest import CACHE, EngineAccess, podman, skip_if
from tests.manager.conftest import Manager
from tests.ports import free_port
from tests.serving.conftest import eventually

PYTHON = "3.11"  # of the tests' base image
OLD_PYDANTIC = "pydantic==1.10.*"  # gusset itself needs pydantic 2
NEXT = b"hf_the-value-after-the-rotation-77"
SECRET = b"build-secret-" + os.urandom(60).hex().encode()  # other runs use the same storage
USER = 60000
WORD = "index-word-cHVibGlj-0815"


@dataclass(frozen=True)
class Builder:
    """An engine, and how `gusset build` finds it."""

    engine: EngineAccess
    environ: dict[str, str]
    storage: Path

    @property
    def is_docker(self) -> bool:
        return "docker" in self.engine.command


@pytest.fixture(scope="module")
def wheels() -> Path:
    """A folder with what an image of a model installs, since a build may not reach an index."""
    lines = [*runtime_requirements(()), *list_text(TRUSS_FILE).splitlines()]
    sets = [lines, [OLD_PYDANTIC]]
    folder = CACHE / f"build-wheels-{hashlib.sha256(repr(sets).encode()).hexdigest()[:12]}"
    if not folder.exists():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        for each in sets:
            (CACHE / "build-requirements.txt").write_text("\n".join(each))
            command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(new)]
            command += ["--python-version", PYTHON, "-r", str(CACHE / "build-requirements.txt")]
            subprocess.run(command, check=True, capture_output=True)
        new.rename(folder)
    return folder


both_builders = pytest.mark.parametrize(
    "builder", ["podman", pytest.param("docker", marks=pytest.mark.matrix)], indirect=True
)


@pytest.fixture(scope="module", params=["podman", "docker"])
def builder(request: pytest.FixtureRequest, images: dict[str, str]) -> Builder:
    if request.param == "podman":
        info = json.loads(podman("info", "--format", "json"))
        return Builder(podman, {}, Path(info["store"]["graphRoot"]))
    address = request.getfixturevalue("docker")
    environ = {"DOCKER_HOST": f"unix://{address}", "PATH": path_with_buildkit()}
    return Builder(EngineAccess(("docker", "--host", f"unix://{address}")), environ, address.parent / "data")


def path_with_buildkit() -> str:
    """PATH, with the folder first that has a docker command with BuildKit."""
    folders = os.environ["PATH"].split(":")
    for folder in folders:
        if Path(folder, "docker").exists():
            help_text = subprocess.run(
                [f"{folder}/docker", "build", "--help"],
                env=os.environ | {"DOCKER_BUILDKIT": "1"},
                capture_output=True,
            ).stdout
            if b"--secret" in help_text:
                return ":".join([folder, *folders])
    skip_if("no docker command here has BuildKit; `make system-deps` installs one")
    raise AssertionError


@contextmanager
def running(builder: Builder, image: str, *options: str, port: int) -> Iterator[str]:
    """A container of an image, with a read-only root, until the end of the context; its id."""
    common = ["run", "-d", "--read-only", "--network", "host"]
    container = builder.engine(*common, *options, image, "--port", str(port)).splitlines()[-1]
    try:
        yield container
    finally:
        builder.engine("rm", "-f", container)


PYDANTIC_MODEL = """\
import hashlib

import pydantic


class Model:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        assert pydantic.VERSION.startswith("1.")
        return {"sha": hashlib.sha256(self._secrets.bytes("hf_access_token")).hexdigest()}
"""


def write_pydantic_model(folder: Path, image: str) -> Path:
    """A model that pins another pydantic than gusset needs. Its image is built without the cache."""
    folder = write_configured(
        folder, base_image={"image": image}, requirements=[OLD_PYDANTIC], build={"no_cache": "true"}
    )
    (folder / "model" / "model.py").write_text(PYDANTIC_MODEL)
    return folder


@pytest.fixture(scope="module")
def built_model(
    builder: Builder, images: dict[str, str], wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The name of the image of that model in the engine."""
    folder = tmp_path_factory.mktemp("built")
    gusset = Cli(folder / "home", clean_environ(folder / "home", folder / "settings.toml"))
    name = "localhost/gusset-built-model"
    build_model(gusset, builder, write_pydantic_model(folder / "model", images["root"]), wheels, name)
    yield name
    builder.engine.remove_image(name)


def predict(port: int) -> object:
    response = httpx.post(f"http://127.0.0.1:{port}/v1/models/model:predict", json={}, timeout=20)
    return response.json()


def responds_with(port: int, expected: object) -> bool:
    try:
        return predict(port) == expected
    except httpx.TransportError:
        return False


@pytest.fixture
def port() -> int:
    return free_port()


def write_configured(folder: Path, **config: object) -> Path:
    """The model of the tests, with more keys."""
    file = write_model(folder) / "config.yaml"
    file.write_text(file.read_text() + yaml.safe_dump(config))
    return folder


def build_model(gusset: Cli, builder: Builder, folder: Path, wheels: Path, tag: str) -> None:
    gusset(
        "build",
        str(folder),
        "--tag",
        tag,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(wheels),
        **builder.environ,
    )


@both_builders
def test_the_image_of_a_model_is_served_and_rotates(
    tmp_path: Path,
    builder: Builder,
    built_model: str,
    manager: Manager,
    port: int,
) -> None:
    """With a folder that is mounted, and with a manager and a token file; SIGTERM ends it."""
    secrets = tmp_path / "mounted"
    secrets.mkdir()
    (secrets / "hf_access_token").write_bytes(VALUE)
    with running(builder, built_model, "-v", f"{secrets}:/secrets:ro", port=port) as container:
        eventually(lambda: responds_with(port, sha(VALUE)), "the model is served")
        (secrets / ".next").write_bytes(NEXT)
        (secrets / ".next").rename(secrets / "hf_access_token")
        eventually(lambda: responds_with(port, sha(NEXT)), "the rotation reaches it")
        assert VALUE.decode() not in builder.engine("logs", container)
        assert builder.engine("inspect", "--format", "{{.Config.User}}", container) == f"{USER}:{USER}"
        builder.engine("stop", "-t", "20", container)
        assert builder.engine("inspect", "--format", "{{.State.ExitCode}}", container) == "0"

    with manager.client() as admin:
        admin.post(
            "/v1/secrets", json={"name": "hf_access_token", "value": VALUE.decode()}
        ).raise_for_status()
        made = admin.post("/v1/deployments", json={"name": "built", "secrets": ["hf_access_token"]})
        token = tmp_path / "token"
        token.write_text(made.json()["token"])
        token.chmod(0o600)
        os.chown(token, USER, USER)
        options = ["-v", f"{token}:/token:ro", "-e", "GUSSET_TOKEN_FILE=/token"]
        options += ["-e", f"GUSSET_MANAGER={manager.address}"]
        with running(builder, built_model, *options, port=port):
            eventually(lambda: responds_with(port, sha(VALUE)), "the model is served")
            admin.post(
                "/v1/secrets", json={"name": "hf_access_token", "value": NEXT.decode()}
            ).raise_for_status()
            eventually(lambda: responds_with(port, sha(NEXT)), "the rotation reaches it")


SERVER = {
    "start_command": "python3 /app/inside.py 8000",
    "server_port": 8000,
    "predict_endpoint": "/command",
    "readiness_endpoint": "/ready",
    "liveness_endpoint": "/health",
}


def write_image(folder: Path, image: str, commands: Sequence[str], **config: object) -> Path:
    """A custom image whose build has a secret."""
    folder.mkdir()
    base = {"base_image": {"image": image}, "docker_server": SERVER, "build_commands": list(commands)}
    build = {"build": {"secret_to_path_mapping": {"build_token": "/run/build/token"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(base | build | config))
    return folder


@pytest.fixture
def build_secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "build-secrets"
    folder.mkdir()
    (folder / "build_token").write_bytes(SECRET)
    return folder


LEAKS = {  # by the file that the error names
    "srv/copied": "cp /run/build/token /srv/copied",
    "srv/zipped.gz": "gzip < /run/build/token > /srv/zipped.gz",
    "srv/encoded": "base64 /run/build/token > /srv/encoded",
    "srv/named-": 'touch "/srv/named-$(cat /run/build/token)"',
    "srv/link": 'ln -s "$(cat /run/build/token)" /srv/link',
    "srv/removed": "cp /run/build/token /srv/removed",
    "srv/overwritten": "cp /run/build/token /srv/overwritten",
    "srv/attribute": 'python3 -c \'import os, pathlib as p; p.Path("/srv/attribute").touch(); '
    'os.setxattr("/srv/attribute", "user.note", p.Path("/run/build/token").read_bytes())\'',
}
IN_CONFIG = ("environment variable API_KEY", "label org.opencontainers.image.title", "history, entry ")


@both_builders
def test_each_kind_of_leak_ends_the_build_and_leaves_nothing(
    gusset: Cli, tmp_path: Path, images: dict[str, str], builder: Builder, build_secrets: Path
) -> None:
    """The error names layer, file and instruction; the engine's storage has the value nowhere."""
    later = ["rm /srv/removed", "echo harmless > /srv/overwritten"]
    commands = [*LEAKS.values(), *later, ": " + SECRET.decode()]
    config = {
        "environment_variables": {"API_KEY": SECRET.decode()},
        "model_name": SECRET.decode(),
    }
    folder = write_image(tmp_path / "image", images["root"], commands, **config)
    command = ["build", str(folder), "--tag", "localhost/gusset-leak", "--secrets-dir", str(build_secrets)]
    done = gusset(*command, status=4, **builder.environ)
    output = done.stdout + done.stderr
    for file in LEAKS:
        is_kept = file != "srv/attribute" or not builder.is_docker  # Docker's layers have no such attributes
        assert (f", {file}".encode() in output) == is_kept, file
    for part in IN_CONFIG:
        assert part.encode() in output, part
    assert b"made by: " in output and b"layer " in output
    assert not leaks_in(output, SECRET)
    assert not files_with(builder.storage, SECRET)
    assert not gusset.home.joinpath("gusset-leak").exists()


@both_builders
def test_a_value_that_the_base_image_has_ends_the_build(
    gusset: Cli, tmp_path: Path, images: dict[str, str], builder: Builder, build_secrets: Path
) -> None:
    """In a variable or label, or since a trigger of it (ONBUILD) writes one. The base image stays."""
    base = "localhost/gusset-leaking-base"
    lines = [
        f"FROM {images['root']}",
        f"ENV BASE_KEY={SECRET.decode()}",
        f"LABEL base.note={SECRET.decode()}",
    ]
    lines.append("ONBUILD RUN cp /run/build/token /srv/triggered || true")
    # OCI's format has no triggers.
    options = [] if builder.is_docker else ["--format", "docker", "--layers=false"]
    printed = builder.engine("build", "-q", *options, "-t", base, "-", input="\n".join(lines).encode())
    base_id = printed.strip().removeprefix("sha256:")
    try:
        folder = write_image(tmp_path / "image", base, ["true"])
        before = set(files_with(builder.storage, SECRET))
        done = gusset("build", str(folder), "--secrets-dir", str(build_secrets), status=4, **builder.environ)
        output = done.stdout + done.stderr
        parts = [b"environment variable BASE_KEY", b"label base.note"]
        # Docker mounts the secret for the commands of build_commands only.
        parts += [] if builder.is_docker else [b"srv/triggered"]
        for part in parts:
            assert part in output, part
        assert not leaks_in(output, SECRET)
        # A listing can miss a file while other tests remove images, so the base image is known by its id.
        new = set(files_with(builder.storage, SECRET)) - before
        assert not [path for path in new if base_id not in path]
        builder.engine("image", "inspect", base)
    finally:
        builder.engine.remove_image(base)


def files_with(storage: Path, value: bytes) -> list[str]:
    """What is new in an engine's storage and has a value in content, name, link target or attribute."""
    recent = ["find", str(storage), "-xdev", "-newerct", "15 minutes ago"]
    encoded = base64.b64encode(value)[:60]  # a line of it
    words = [word for each in (value, encoded) for word in ("-e", each.decode())]
    grep = ["-type", "f", "-exec", "grep", "-lF", *words, "{}", "+"]
    text = value.decode()
    named = ["(", "-name", f"*{text}*", "-o", "-lname", f"*{text}*", ")"]
    listings = [
        subprocess.run([*recent, *tests], capture_output=True, check=False).stdout
        for tests in (grep, named, ["-print0"])
    ]
    paths = listings.pop().split(b"\0")
    return [
        *b"".join(listings).decode().splitlines(),
        *(str(path) for path in paths if in_attribute(path, value)),
    ]


def in_attribute(path: bytes, value: bytes) -> bool:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return any(value in os.getxattr(path, name, follow_symlinks=False) for name in names)
    except OSError:  # it was removed
        return False


def test_a_build_with_a_secret_that_it_keeps_to_itself(
    gusset: Cli, tmp_path: Path, images: dict[str, str], builder: Builder, build_secrets: Path
) -> None:
    """The image is searched, runs, and is built anew when the value changes; a name that is in use moves."""
    read = "sha256sum /run/build/token > /srv/made"
    folder = write_image(tmp_path / "image", images["root"], [read])
    tag = "localhost/gusset-clean"
    command = ["build", str(folder), "--tag", tag, "--secrets-dir", str(build_secrets), "--output", "json"]
    made = []
    for value in (SECRET, SECRET + b"-next"):
        (build_secrets / "build_token").write_bytes(value)
        result = json.loads(gusset(*command, **builder.environ).stdout)
        assert result["scan"]["clean"] and result["scan"]["searched"]["secrets"] == ["build_token"]
        shown = builder.engine("run", "--rm", "--entrypoint", "cat", tag, "/srv/made")
        assert shown.startswith(hashlib.sha256(value).hexdigest())
        made.append(result["id"])
    assert made[0] != made[1]
    assert not files_with(builder.storage, SECRET)
    again = gusset(*command[:-2], **builder.environ)
    assert b"was another image before" not in again.stderr


def test_a_leak_is_accepted_by_name(gusset: Cli, tmp_path: Path, busybox: str, build_secrets: Path) -> None:
    """The output says so; a name that the build does not know is refused."""
    folder = write_image(tmp_path / "image", busybox, ["cp /run/build/token /kept"])
    command = [
        "build",
        str(folder),
        "--tag",
        "localhost/gusset-accepted",
        "--secrets-dir",
        str(build_secrets),
    ]
    assert b"accepted with --allow" in gusset(*command, "--allow", "build_token").stderr
    gusset(*command, "--allow", "another", status=2)
    podman.remove_image("localhost/gusset-accepted")


def test_a_build_that_fails_or_is_ended_leaves_nothing(
    gusset: Cli, tmp_path: Path, busybox: str, build_secrets: Path
) -> None:
    """Neither the layer that has the value, nor the file of the secret."""
    leak = "cp /run/build/token /copied"
    storage = Path(json.loads(podman("info", "--format", "json"))["store"]["graphRoot"])
    folder = write_image(tmp_path / "failing", busybox, [leak, "cat /run/build/token; exit 3"])
    command = ["build", str(folder), "--secrets-dir", str(build_secrets)]
    done = gusset(*command, status=9)
    assert not leaks_in(done.stdout + done.stderr, SECRET)
    assert b"***" in done.stderr
    assert not files_with(storage, SECRET)

    for number in (signal.SIGTERM, signal.SIGKILL):
        folder = write_image(tmp_path / number.name, busybox, [leak, "echo now; sleep 30"])
        command = [sys.executable, "-m", "gusset", "build", str(folder), "--secrets-dir", str(build_secrets)]
        log = tmp_path / f"{number.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=gusset.environ, stdout=output, stderr=output)
        eventually(lambda log=log: "\nnow\n" in log.read_text(), "the second command runs")
        process.send_signal(number)
        process.wait(60)
        eventually(lambda: not files_with(storage, SECRET), "everything is removed")
        assert not list(Path("/dev/shm").glob(f"gusset-{process.pid}-*"))


def path_with_podman(folder: Path, cases: str) -> str:
    """A PATH with a `podman` that first does what the cases of a shell say for its arguments."""
    folder.mkdir()
    script = folder / "podman"
    script.write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\nexec {shutil.which("podman")} "$@"\n')
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_an_engine_that_is_too_old_or_absent_builds_nothing(
    gusset: Cli, tmp_path: Path, busybox: str, build_secrets: Path
) -> None:
    """It is never built without the secrets."""
    folder = write_image(tmp_path / "image", busybox, ["true"])
    command = ["build", str(folder), "--secrets-dir", str(build_secrets)]
    old = f"*--help) echo no such option; exit;; *build*) touch {tmp_path}/built; exit;;"
    done = gusset(*command, status=11, PATH=path_with_podman(tmp_path / "old", old))
    assert b"too old for build secrets" in done.stderr
    assert b"docker-buildx" in done.stderr  # what to install
    assert not (tmp_path / "built").exists()
    done = gusset(*command, status=11, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert b"no container engine responds" in done.stderr
    (build_secrets / "build_token").unlink()
    assert b"build_token" in gusset(*command, status=5).stderr


def test_a_disk_that_is_full_and_a_foreign_image_are_failures_of_the_machine(
    gusset: Cli, tmp_path: Path, busybox: str
) -> None:
    """Podman's own message stands for a disk that fills up in the middle of a build."""
    full = "*build*help) echo --secret; exit;; *build*) echo write: no space left on device; exit 125;;"
    folder = write_image(tmp_path / "image", busybox, ["true"], build={})
    done = gusset("build", str(folder), status=11, PATH=path_with_podman(tmp_path / "full", full))
    assert b"a disk is full" in done.stderr
    foreign = "localhost/gusset-test:foreign-base"
    command = ["build", "-q", "--arch", "s390x", "-t", foreign, "-f", "-"]
    podman(*command, input=b"FROM scratch\nENV A=c\n")
    folder = write_image(tmp_path / "foreign", foreign, ["true"], build={})
    assert b"is for s390x" in gusset("build", str(folder), status=11).stderr
    podman.remove_image(foreign)


def test_a_build_during_which_another_process_removes_an_image_starts_again(
    gusset: Cli, tmp_path: Path, busybox: str
) -> None:
    """Podman's own message stands for the removal, which would have to meet the moment of its search."""
    attempts = tmp_path / "attempts"
    racing = (
        f"*build*help) ;; *build*) echo attempt >>{attempts}; [ $(wc -l <{attempts}) -gt $REMOVALS ] || "
        "{ echo Error: checking if cached image exists: layer not known; exit 125; };;"
    )
    command = ["build", str(write_image(tmp_path / "image", busybox, ["true"], build={"no_cache": "true"}))]
    environ = {"PATH": path_with_podman(tmp_path / "racing", racing)}
    done = gusset(*command, **environ, REMOVALS="2")
    assert done.stderr.count(b"another process removed an image") == 2
    podman.remove_image(done.stdout.decode().split()[-1])
    attempts.unlink()
    assert b"layer not known" in gusset(*command, **environ, REMOVALS="9", status=9).stderr
    assert attempts.read_text().count("attempt") == 3


def test_a_push_that_is_refused_keeps_the_image(gusset: Cli, tmp_path: Path, busybox: str, port: int) -> None:
    """Nothing listens at that address."""
    folder = write_image(tmp_path / "image", busybox, ["true"], build={})
    tag = f"127.0.0.1:{port}/team/model:1"
    done = gusset("build", str(folder), "--tag", tag, "--push", status=11)
    assert b"cannot be pushed" in done.stderr
    assert podman("image", "inspect", "--format", "{{.Id}}", tag)
    podman.remove_image(tag)


@pytest.mark.parametrize("builder", ["podman"], indirect=True)
def test_two_builds_of_two_clones_have_the_same_layers(
    gusset: Cli, tmp_path: Path, images: dict[str, str], wheels: Path, builder: Builder, built_model: str
) -> None:
    """With nothing from the cache."""
    clone = "localhost/gusset-clone"
    build_model(gusset, builder, write_pydantic_model(tmp_path / "model", images["root"]), wheels, clone)
    layers = [
        podman("image", "inspect", "--format", "{{.RootFS.Layers}}", each) for each in (built_model, clone)
    ]
    podman.remove_image(clone)
    assert layers[0] == layers[1]


class _Index(http.server.BaseHTTPRequestHandler):
    """An index with one package, for those who present the login."""

    wheel: bytes
    authorization = "Basic " + base64.b64encode(f"robot:{WORD}".encode()).decode()

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.authorization:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        name = "tiny_thing-1.2-py3-none-any.whl"
        body = self.wheel if self.path.endswith(".whl") else f'<a href="/files/{name}">{name}</a>'.encode()
        self.send_response(200 if "tiny" in self.path else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def private_index() -> Iterator[int]:
    """The port of a private index."""
    packed = io.BytesIO()
    about = "tiny_thing-1.2.dist-info"
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("tiny_thing.py", "")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny_thing\nVersion: 1.2\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    _Index.wheel = packed.getvalue()
    with http.server.ThreadingHTTPServer(("", 0), _Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def index_host(images: dict[str, str]) -> str:
    """This machine's address in Podman's network."""
    return podman("network", "inspect", "podman", "--format", "{{(index .Subnets 0).Gateway}}")


def test_the_installation_of_a_custom_image_gets_a_login(
    gusset: Cli,
    tmp_path: Path,
    images: dict[str, str],
    private_index: int,
    index_host: str,
    build_secrets: Path,
) -> None:
    """Its pip reads the .netrc."""
    (build_secrets / "index_login").write_text(f"machine {index_host}\nlogin robot\npassword {WORD}\n")
    options = [f"--index-url http://{index_host}:{private_index}/simple", f"--trusted-host {index_host}"]
    folder = write_image(
        tmp_path / "image",
        images["root"],
        [],
        requirements=[*options, "tiny_thing"],
        build={"secret_to_path_mapping": {"index_login": "/run/build/.netrc"}},
    )
    tag = "localhost/gusset-login-image"
    done = gusset("build", str(folder), "--tag", tag, "--secrets-dir", str(build_secrets))
    assert not leaks_in(done.stdout + done.stderr, WORD.encode())
    assert has_tiny_thing(tag)


def test_the_installation_of_a_model_gets_a_login(
    gusset: Cli,
    tmp_path: Path,
    images: dict[str, str],
    private_index: int,
    index_host: str,
    build_secrets: Path,
    wheels: Path,
) -> None:
    """uv gets a pip.conf in its own words; what gusset needs comes from the machine's index."""
    url = f"http://robot:{WORD}@{index_host}:{private_index}/simple"
    (build_secrets / "index_login").write_text(f"[global]\nindex-url = {url}\ntrusted-host = {index_host}\n")
    folder = write_configured(
        tmp_path / "model",
        base_image={"image": images["root"]},
        requirements=["tiny_thing"],
        build={"secret_to_path_mapping": {"index_login": "/run/build/pip.conf"}},
    )
    tag = "localhost/gusset-login-model"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    done = gusset("build", str(folder), "--tag", tag, "--secrets-dir", str(build_secrets), **offline)
    assert not leaks_in(done.stdout + done.stderr, WORD.encode())
    assert has_tiny_thing(tag)


def has_tiny_thing(tag: str) -> bool:
    """Whether the image has the package of the private index. The image is removed."""
    command = ["--entrypoint", "python3", tag, "-c", "import tiny_thing as t; print(t.__name__)"]
    found = podman("run", "--rm", *command)
    podman.remove_image(tag)
    return found == "tiny_thing"
