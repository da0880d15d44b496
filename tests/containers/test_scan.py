"""`gusset scan` of images that Podman built and Docker loaded, with a leak of each kind."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.containers.conftest import missing_programs, podman, skip_if

pytestmark = pytest.mark.engine

BASE = "localhost/gusset-scan-base:latest"
LEAKY = "localhost/gusset-scan-leaky:latest"
CLEAN = "localhost/gusset-scan-clean:latest"


@dataclass(frozen=True)
class Leak:
    """A line of a Containerfile, and what the scan has to report: file and part; form and layer if any."""

    line: str
    file: str
    part: str
    form: str = "plain"


def run(command: str) -> str:
    return f"RUN --mount=type=secret,id=NAME {command}"


# By the name of the secret that leaks. VALUE and NAME are replaced.
LEAKS: Mapping[str, Leak] = {
    "copied": Leak(run("cp /run/secrets/NAME /srv/copied"), "srv/copied", "content"),
    "packed": Leak(run("gzip -c /run/secrets/NAME > /srv/packed.gz"), "srv/packed.gz", "content"),
    "encoded": Leak(run("base64 /run/secrets/NAME > /srv/encoded"), "srv/encoded", "content", "base64"),
    "archived": Leak(run("tar -czf /srv/archived.tgz -C /run/secrets NAME"), "srv/archived.tgz", "content"),
    "as_name": Leak(run('touch "/srv/$(cat /run/secrets/NAME)"'), "srv/***", "name"),
    "as_link": Leak(run('ln -s "$(cat /run/secrets/NAME)" /srv/as_link'), "srv/as_link", "link target"),
    "as_attribute": Leak(
        "COPY attribute /srv/as_attribute", "srv/as_attribute", "attribute SCHILY.xattr.user.note"
    ),
    "overwritten": Leak(run("cp /run/secrets/NAME /srv/overwritten"), "srv/overwritten", "content"),
    "removed": Leak(run("cp /run/secrets/NAME /srv/removed"), "srv/removed", "content"),
    "in_copy": Leak("COPY in_copy /srv/in_copy", "srv/in_copy", "content"),
    "as_variable": Leak("ENV API_KEY=VALUE", "", "environment variable API_KEY"),
    "as_label": Leak("LABEL note=VALUE", "", "label note"),
    "in_history": Leak("RUN echo VALUE > /dev/null", "", "history, entry "),
}
LATER = "RUN rm /srv/removed && echo clean > /srv/overwritten"


def value_of(name: str) -> str:
    return f"hf_{base64.b32encode(hashlib.sha256(name.encode()).digest()).decode()[:30]}-9q"


@dataclass(frozen=True)
class Built:
    """The image with all leaks; `secrets` is a folder with their values, `has_attributes` whether one is in one."""

    secrets: Path
    has_attributes: bool


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """An image with nothing but busybox."""
    skip_if("these tests build images, which needs root" if os.getuid() != 0 else None)
    skip_if(missing_programs("podman", "runc", "busybox"))
    program = shutil.which("busybox") or ""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder in ("bin", "srv", "dev", "proc", "run", "tmp"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        archive.add(program, "bin/busybox")
        for name in ("sh", "cp", "cat", "gzip", "tar", "base64", "touch", "ln", "rm", "echo"):
            info = tarfile.TarInfo(f"bin/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(info)
    podman("import", "-", BASE, input=packed.getvalue())
    podman("tag", BASE, CLEAN)
    yield BASE
    for image in (LEAKY, CLEAN, BASE):
        podman.remove_image(image)


@pytest.fixture(scope="module")
def built(base: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The image with all leaks, each in a layer of its own."""
    folder = tmp_path_factory.mktemp("context")
    secrets = tmp_path_factory.mktemp("values")
    for name in LEAKS:
        (secrets / name).write_text(value_of(name))
    shutil.copy(secrets / "in_copy", folder / "in_copy")
    (folder / "attribute").write_text("clean")
    try:
        os.setxattr(folder / "attribute", "user.note", value_of("as_attribute").encode())
        has_attributes = True
    except OSError:  # the file system has none
        has_attributes = False
    lines = [each.line.replace("VALUE", value_of(name)).replace("NAME", name) for name, each in LEAKS.items()]
    recipe = "\n".join([f"FROM {base}", *lines, LATER])
    given = [word for name in LEAKS for word in ("--secret", f"id={name},src={secrets / name}")]
    podman(
        "build",
        "-q",
        "--layers",
        "--no-cache",
        "-t",
        LEAKY,
        *given,
        "-f",
        "-",
        str(folder),
        input=recipe.encode(),
    )
    return Built(secrets, has_attributes)


def scan(
    gusset: Cli, image: str, secrets: Path, status: int, **extra: str
) -> dict[str, list[dict[str, object]]]:
    done = gusset("scan", image, "--secrets-dir", str(secrets), "--output", "json", status=status, **extra)
    for name in LEAKS:
        assert value_of(name).encode() not in done.stdout + done.stderr
    report: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return report


def check(report: dict[str, list[dict[str, object]]], built: Built) -> None:
    """Each leak is reported where it is, with the instruction that made it."""
    assert report["errors"] == []
    for name, leak in LEAKS.items():
        if name == "as_attribute" and not built.has_attributes:
            continue
        found = [each for each in report["findings"] if each["secret"] == name]
        wanted = [
            each for each in found if each["file"] == leak.file and str(each["part"]).startswith(leak.part)
        ]
        assert wanted, [(each["file"], each["part"], each["form"]) for each in found]
        assert wanted[0]["form"] == leak.form
        if leak.file:
            assert wanted[0]["layer"] and str(wanted[0]["digest"]).startswith("sha256:")
        if leak.line.startswith("RUN --mount"):
            command = leak.line.partition("id=NAME ")[2].replace("NAME", name)
            assert command.partition("VALUE")[0] in str(wanted[0]["instruction"])
    layers = [each["layer"] for each in report["findings"] if each["secret"] in ("copied", "removed")]
    assert len(set(layers)) == 2


def test_each_kind_of_leak_in_an_image_of_podman_is_found(gusset: Cli, built: Built) -> None:
    """By the engine's API, in layers, config and history; what a later layer removed or overwrote, too."""
    check(scan(gusset, LEAKY, built.secrets, 4), built)


@pytest.mark.parametrize("format", ["docker-archive", "oci-archive", "oci-dir"])
def test_each_kind_of_leak_in_a_saved_image_is_found(
    gusset: Cli, built: Built, tmp_path: Path, format: str
) -> None:
    """In the formats in which Podman saves images."""
    saved = tmp_path / "saved"
    podman("save", "-q", "--format", format, "-o", str(saved), LEAKY)
    check(scan(gusset, str(saved), built.secrets, 4), built)


def test_an_image_from_a_pipe_is_searched(gusset: Cli, built: Built) -> None:
    """`podman save | gusset scan -`."""
    saved = subprocess.run(["podman", "save", "-q", LEAKY], capture_output=True, check=True).stdout
    done = gusset("scan", "-", "--secrets-dir", str(built.secrets), input=saved, status=4)
    assert b"srv/packed.gz" in done.stderr


def test_a_clean_image_is_clean_and_stays(gusset: Cli, built: Built) -> None:
    """The scan removes nothing."""
    assert scan(gusset, CLEAN, built.secrets, 0)["clean"]
    assert podman("image", "exists", CLEAN) == ""


def test_an_image_that_the_engine_lacks_is_not_pulled(gusset: Cli, built: Built) -> None:
    """It is an error with status 5, and no value is read."""
    done = gusset("scan", "localhost/gusset-none:1", "--secrets-dir", str(built.secrets), status=5)
    assert b"the engine has no image localhost/gusset-none:1" in done.stderr


def test_no_engine_is_an_error_with_a_reason(gusset: Cli, built: Built, tmp_path: Path) -> None:
    """With status 11."""
    done = gusset(
        "scan", LEAKY, "--secrets-dir", str(built.secrets), status=11, DOCKER_HOST=f"unix://{tmp_path}/none"
    )
    assert b"no container engine responds" in done.stderr


def test_each_kind_of_leak_in_an_image_of_docker_is_found(gusset: Cli, docker: Path, built: Built) -> None:
    """By Docker's API."""
    with subprocess.Popen(["podman", "save", "-q", LEAKY], stdout=subprocess.PIPE) as saved:
        subprocess.run(["docker", "--host", f"unix://{docker}", "load", "-q"], stdin=saved.stdout, check=True)
    check(scan(gusset, LEAKY, built.secrets, 4, DOCKER_HOST=f"unix://{docker}"), built)
