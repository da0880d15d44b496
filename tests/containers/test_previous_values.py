"""The values before the current ones, as files for containers and commands."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest

from gusset.containers.secrets.memory_folder import PREVIOUS, ContainerFolder
from gusset.secrets.value import SecretValue
from tests.conftest import leaks_in
from tests.containers.conftest import BASE, REPO, ServedImage, podman
from tests.manager.conftest import Manager
from tests.serving.conftest import eventually

OLD, NEW, NEWEST = (
    b"the-value-before-Zx81QqLmN4v",
    b"the-value-of-now-7GhTrW2bNpQ",
    b"the-newest-value-x5LkMvC9sTt",
)
OLD_FILE = f"/secrets/{PREVIOUS}/token"


def test_values_before_are_files_of_a_folder_while_an_overlap_lasts() -> None:
    """Byte-exact, with the mode of the others; the folder is gone when the last overlap is over."""
    with closing(ContainerFolder.create("1-1-1", None)) as folder:
        new, old = SecretValue(b"new\0value\n"), SecretValue(b"old\0value\n")
        folder.replace({"token": new, "other": new}, {"token": old, "other": old})
        kept = folder.path / PREVIOUS
        assert (kept / "token").read_bytes() == old.reveal()
        assert (folder.path / "token").read_bytes() == new.reveal()
        assert os.stat(kept / "token").st_mode & 0o777 == 0o400 and os.stat(kept).st_mode & 0o777 == 0o755
        folder.replace({"token": new, "other": new}, {"other": old})
        assert [file.name for file in kept.iterdir()] == ["other"]
        folder.replace({"token": new})
        assert [file.name for file in folder.path.iterdir()] == ["token"]


@pytest.mark.parametrize("image", [pytest.param("root", marks=pytest.mark.matrix), "user"])
def test_a_container_has_the_value_before_as_a_file_while_an_overlap_lasts(
    served: ServedImage, images: dict[str, str], manager: Manager, image: str
) -> None:
    """Its own user can read it; it is gone when the version is destroyed, and when the time is over."""
    gusset = manager.gusset
    gusset("login", manager.address, input=manager.key.encode())
    gusset("secret", "set", "token", input=OLD)
    served.configure(images[image], secrets={"token": None})
    served.start(from_folder=False).ready()
    assert served.call("names") == ["token"]
    gusset("secret", "set", "token", "--overlap", "1h", "--wait", input=NEW)
    assert (served.content("token"), served.call("file", path=OLD_FILE)) == (NEW, OLD.decode())
    assert podman("exec", served.container, "cat", OLD_FILE) == OLD.decode()
    gusset("secret", "destroy", "token", "--version", "1", "--yes")
    eventually(lambda: served.call("names") == ["token"], "the end of the overlap")
    gusset("secret", "set", "token", "--overlap", "20s", "--wait", input=NEWEST)
    assert served.call("file", path=OLD_FILE) == NEW.decode()
    eventually(lambda: served.call("names") == ["token"], "the end of the overlap")
    assert served.content("token") == NEWEST
    assert served.stop() == 0
    assert not leaks_in(served.output.encode(), OLD, NEW, NEWEST)
    assert not served.left_behind()


@pytest.fixture
def memory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gusset-test-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def test_the_agent_in_a_sidecar_gives_another_container_the_value_before(
    images: dict[str, str], manager: Manager, memory: Path, tmp_path: Path
) -> None:
    """The container sees only the shared folder. The sidecar runs this gusset on the Python of its image."""
    person = manager.laptop(tmp_path / "person")
    person("secret", "set", "token", input=OLD)
    with manager.client() as admin:
        made = admin.post("/v1/deployments", json={"name": "app", "secrets": ["token"]}).json()
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(made["token"])
    name, packages = f"gusset-test-{secrets.token_hex(4)}", Path(click.__file__).parents[1]
    volumes = [
        f"{memory}:/secrets",
        f"{REPO}/src:/gusset:ro",
        f"{packages}:/packages:ro",
        f"{token}:/token:ro",
    ]
    environ = {
        "PYTHONPATH": "/gusset:/packages",
        "GUSSET_MANAGER": manager.address,
        "GUSSET_TOKEN_FILE": "/token",
    }
    options = [f"--volume={each}" for each in volumes] + [f"--env={key}={environ[key]}" for key in environ]
    agent = ["python3", "-m", "gusset", "agent", "--deployment", "app", "--dir", "/secrets"]
    try:
        podman("run", "-d", "--name", f"{name}-agent", "--network=host", *options, BASE, *agent)
        shared = [f"--volume={memory}:/secrets:ro", "--network=none"]
        podman("run", "-d", "--name", name, *shared, BASE, "sleep", "600")

        def sees(value: bytes, before: bytes | None) -> None:
            script = f"cat /secrets/token; echo; cat {OLD_FILE} 2>/dev/null || true"
            wanted = f"{value.decode()}\n{(before or b'').decode()}".strip()
            eventually(lambda: podman("exec", name, "sh", "-c", script).strip() == wanted, wanted)

        sees(OLD, None)
        person("secret", "set", "token", "--overlap", "1h", "--wait", input=NEW)
        sees(NEW, OLD)
        person("secret", "destroy", "token", "--version", "1", "--yes")
        sees(NEW, None)
        person("secret", "set", "token", "--overlap", "20s", "--wait", input=NEWEST)
        sees(NEWEST, NEW)
        sees(NEWEST, None)
        assert not leaks_in(podman("logs", f"{name}-agent").encode(), OLD, NEW, NEWEST)
    finally:
        podman("rm", "-f", "-t", "2", name, f"{name}-agent")
