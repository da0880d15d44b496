"""`gusset serve` with environments of models' own: the real command, packages from an index on loopback.

What gusset's worker needs comes from the machine's own index or uv's cache.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import predict, served
from tests.conftest import Cli, seconds_since
from tests.environments.conftest import Index
from tests.environments.packages import project, source_archive, wheel
from tests.ports import free_port
from tests.serving.conftest import eventually

pytestmark = [pytest.mark.server, pytest.mark.slow]

MODEL = """
import alpha, sys

class Model:
    def predict(self, inputs):
        return {"alpha": alpha.version, "python": sys.executable}
"""
PASSWORD = "hunter22-of-the-index"


@pytest.fixture
def folder(tmp_path: Path, index: Index) -> Path:
    """A model that needs a package of the index."""
    index.add(wheel(tmp_path, "alpha", "1.0"))
    index.add(wheel(tmp_path, "alpha", "2.0"))
    folder = tmp_path / "a-model"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.py").write_text(MODEL)
    write(folder, index, "alpha==1.0")
    return folder


def write(folder: Path, index: Index, *lines: str, more: str = "") -> None:
    listed = "".join(f"- {line}\n" for line in (f"--extra-index-url {index.url}", *lines))
    (folder / "config.yaml").write_text(f"requirements:\n{listed}{more}")


def environments(gusset: Cli) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(gusset("env", "list", "--output", "json").stdout)[
        "environments"
    ]
    return found


def test_a_folder_is_enough(gusset: Cli, folder: Path, index: Index, tmp_path: Path) -> None:
    """The first start makes the environment, the next uses it without any index; then it can be removed."""
    key = json.loads(gusset("check", str(folder), "--output", "json").stdout)["environment"]
    assert (key["made"], [each["message"] for each in key["reasons"]]) == (
        False,
        ["alpha==1.0: it is not installed"],
    )
    gusset("env", "path", str(folder), status=5)
    assert environments(gusset) == [] == index.requests

    errors = tmp_path / "errors"
    with served(gusset, str(folder), errors=errors) as (address, _):
        result = predict(address).json()
    assert result["alpha"] == "1.0"
    assert result["python"].startswith(str(tmp_path / "cache"))
    assert "making a Python environment for a-model" in errors.read_text()
    path = gusset("env", "path", str(folder)).stdout.decode()
    assert result["python"] == f"{path.strip()}/bin/python"

    index.requests.clear()
    with served(gusset, str(folder), errors=errors) as (address, process):
        assert predict(address).json() == result
        assert environments(gusset)[0]["in_use"] is True
        gusset("env", "remove", str(folder), status=6)
        process.terminate()
        process.wait()
    assert index.requests == []
    assert "making" not in errors.read_text()

    gusset("env", "prune", "--days", "1")
    assert len(environments(gusset)) == 1
    gusset("env", "remove", str(folder))
    assert environments(gusset) == []


def test_changed_requirements_are_served_after_a_reload(
    gusset: Cli, folder: Path, index: Index, tmp_path: Path
) -> None:
    """`--reload` makes the new environment first; one that cannot be made leaves the model as it is."""
    errors = tmp_path / "errors"
    with served(gusset, str(folder), "--reload", errors=errors) as (address, _):
        first = predict(address).json()
        assert first["alpha"] == "1.0"

        write(folder, index, "alpha==3.0")
        eventually(lambda: "The change is not served" in errors.read_text())
        assert predict(address).json() == first

        write(folder, index, "alpha==2.0")
        eventually(lambda: predict(address).json()["alpha"] == "2.0")
        assert predict(address).json()["python"] != first["python"]
    assert "there is no version of alpha==3.0" in errors.read_text()


def test_a_stop_does_not_wait_for_an_installation(
    gusset: Cli, folder: Path, index: Index, tmp_path: Path
) -> None:
    """SIGTERM while a changed requirement is being built: the server ends, and so does the build."""
    body = (
        f"import os, time; open({str(tmp_path / 'building')!r}, 'w').write(str(os.getpid())); time.sleep(120)"
    )
    index.add(source_archive(tmp_path, "slow", body=body))
    with served(gusset, str(folder), "--reload", errors=tmp_path / "errors") as (_, process):
        write(folder, index, "alpha==1.0", "slow")
        eventually((tmp_path / "building").exists)
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert seconds_since(began) < 20
    build = Path("/proc", (tmp_path / "building").read_text(), "exe")
    eventually(lambda: not build.exists())
    assert len(environments(gusset)) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_first_installation_can_be_interrupted(
    gusset: Cli, folder: Path, index: Index, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C or SIGTERM during a build: gusset ends at once, the build too, and the next start begins anew."""
    body = (
        f"import os, time; open({str(tmp_path / 'building')!r}, 'w').write(str(os.getpid())); time.sleep(120)"
    )
    index.add(source_archive(tmp_path, "slow", body=body))
    write(folder, index, "slow")
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, env=gusset.environ, stdout=-3, stderr=-3) as process:
        eventually(lambda: (tmp_path / "building").exists() and (tmp_path / "building").read_text() != "")
        process.send_signal(number)
        assert process.wait(30) == status
    build = Path("/proc", (tmp_path / "building").read_text(), "exe")
    eventually(lambda: not build.exists())
    assert environments(gusset) == []


def test_the_port_responds_while_the_environment_is_being_made(
    gusset: Cli, folder: Path, index: Index, tmp_path: Path
) -> None:
    """It is alive and not ready, and says why; then the same port serves the model."""
    building, go_on, port = tmp_path / "building", tmp_path / "go-on", free_port()
    body = (
        f"import os, time; open({str(building)!r}, 'w').close()\n"
        f"while not os.path.exists({str(go_on)!r}): time.sleep(0.05)"
    )
    index.add(source_archive(tmp_path, "slow", body=body))
    write(folder, index, "alpha==1.0", "slow")
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", str(port)]
    with subprocess.Popen(command, env=gusset.environ, stdout=-3, stderr=-3) as process:
        try:
            eventually(building.exists)
            assert httpx.get(address, timeout=20).status_code == 200
            for response in (httpx.get(f"{address}/v1/models/model"), predict(address)):
                assert response.status_code == 503
                assert "Python environment is being made" in response.text
            go_on.touch()
            eventually(lambda: is_served(address))
            assert predict(address).json()["alpha"] == "1.0"
        finally:
            go_on.touch()
            process.terminate()


def is_served(address: str) -> bool:
    """Whether a prediction succeeds; a slow request may meet the end of the server that stood in."""
    try:
        return predict(address).status_code == 200
    except httpx.TransportError:
        return False


def test_several_starts_at_once_make_one_environment(
    gusset: Cli, folder: Path, index: Index, tmp_path: Path
) -> None:
    """All of them serve, and only one has installed anything."""
    results: list[object] = []

    def serve(number: int) -> None:
        with served(gusset, str(folder), errors=tmp_path / f"errors{number}") as (address, _):
            results.append(predict(address).json()["python"])

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    assert len(results) == 3
    assert len(set(results)) == 1
    texts = [(tmp_path / f"errors{number}").read_text() for number in range(3)]
    assert sum("making a Python environment" in text for text in texts) == 1


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6])
def test_a_start_that_is_killed_leaves_no_half_environment(
    gusset: Cli, folder: Path, tmp_path: Path, delay: float
) -> None:
    """Killed while it installs, nothing is left that the next start would use."""
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0"]
    errors = tmp_path / "killed"
    with (
        errors.open("wb") as log,
        subprocess.Popen(command, env=gusset.environ, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        eventually(lambda: b"making" in errors.read_bytes())
        time.sleep(delay)  # the kill comes at several moments
        process.kill()
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        assert predict(address).json()["alpha"] == "1.0"
    assert len(environments(gusset)) == 1


def test_local_code_that_changed_is_installed_anew(
    gusset: Cli, folder: Path, index: Index, tmp_path: Path
) -> None:
    """A local path is part of the environment's key by its content."""
    project(folder / "lib", "alpha", "5.0")
    write(folder, index, "./lib")
    for version in ("5.0", "6.0"):
        project(folder / "lib", "alpha", version)
        done = gusset("predict", str(folder), "-d", "{}")
        assert json.loads(done.stdout)["alpha"] == version


def test_local_code_is_built_anew_when_its_metadata_is_the_same(
    gusset: Cli, folder: Path, index: Index
) -> None:
    """In a folder with a space, an umlaut and a condition, too: uv's older build is not used."""
    lib = project(folder / "lib ä", "alpha", "5.0")
    write(folder, index, "\"alpha @ ./lib%20ä ; python_version > '3'\"")
    for version in ("5.0", "of the new code"):
        backend = (lib / "backend.py").read_text()
        (lib / "backend.py").write_text(backend.replace("version = '5.0'", f"version = '{version}'"))
        assert json.loads(gusset("predict", str(folder), "-d", "{}").stdout)["alpha"] == version


def old_httptools(folder: Path, index: Index) -> None:
    index.add(wheel(folder, "httptools", "0.1.0"))
    write(folder, index, "httptools==0.1.0")


Prepare = Callable[[Path, Index], object]


@pytest.mark.parametrize(
    ("prepare", "options", "status", "words"),
    [
        (lambda folder, index: write(folder, index, "alpha==9"), (), 3, "config.yaml:3:3"),
        (lambda folder, index: write(folder, index, "alpha==1", "not one"), (), 3, "not a requirement"),
        (lambda folder, index: write(folder, index, "-r none.txt"), (), 3, "cannot be read"),
        (
            lambda folder, index: old_httptools(folder, index),
            (),
            3,
            "but gusset's worker needs httptools>=0.6",
        ),
        (lambda folder, index: None, ("--env", "current"), 9, "alpha==1.0: it is not installed"),
        (
            lambda folder, index: write(folder, index, more="python_version: py39\n"),
            ("--python", "exact"),
            3,
            "does not run on Python 3.9",
        ),
    ],
)
def test_a_start_that_cannot_succeed_says_why(
    gusset: Cli,
    folder: Path,
    index: Index,
    prepare: Prepare,
    options: tuple[str, ...],
    status: int,
    words: str,
) -> None:
    """The exit status, and the line of config.yaml."""
    prepare(folder, index)
    done = gusset("serve", str(folder), "--port", "0", *options, status=status)
    assert words in done.stderr.decode()
    assert environments(gusset) == []


def test_a_cache_that_others_can_write_is_refused(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """Status 11, before anything is installed there."""
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    done = gusset("serve", str(folder), "--port", "0", status=11)
    assert "can be written by others" in done.stderr.decode()


def test_a_private_index_gets_its_login_from_a_secret(
    gusset: Cli, folder: Path, index: Index, private_index: Index, tmp_path: Path
) -> None:
    """Read from the vault with an audit record, used for the installation, and kept nowhere."""
    private_index.login = f"user:{PASSWORD}"
    private_index.add(wheel(tmp_path, "alpha", "7.0"))
    mapping = "build:\n  secret_to_path_mapping:\n    index-login: /app/.netrc\n"
    write(folder, private_index, "alpha==7.0", more=mapping)
    [missing] = json.loads(gusset("check", str(folder), "--output", "json", status=4).stdout)["problems"]
    assert missing["message"] == "the secret index-login does not exist"
    done = gusset("serve", str(folder), "--port", "0", status=5)
    assert "index-login" in done.stderr.decode()

    netrc = f"machine 127.0.0.1 login user password {PASSWORD}\n"
    gusset("secret", "set", "index-login", "--exact", input=netrc.encode())
    done = gusset("predict", str(folder), "-d", "{}")

    assert json.loads(done.stdout)["alpha"] == "7.0"
    records = gusset("audit", "show", "--output", "json").stdout.decode()
    assert "index-login" in records
    for file in tmp_path.rglob("*"):
        with suppress(OSError):
            if file.is_file() and not file.is_symlink():
                assert PASSWORD.encode() not in file.read_bytes(), file
    assert PASSWORD not in (done.stderr + done.stdout).decode()
    index.requests.clear()


def test_predict_shows_what_is_wrong_with_the_requirements(gusset: Cli, folder: Path, index: Index) -> None:
    """The folder is served in another process, whose problems are printed with their lines."""
    write(folder, index, "alpha==9")
    done = gusset("predict", str(folder), "-d", "{}", status=3)
    assert "config.yaml:3:3: error: requirements[1]: No solution found" in done.stderr.decode()


def test_system_packages_that_are_missing_are_named(gusset: Cli, folder: Path, index: Index) -> None:
    """With the one command that installs them."""
    write(folder, index, more="system_packages:\n- no-such-package-1\n- no-such-package-2=1.0\n")
    done = gusset("check", str(folder))
    text = done.stderr.decode()
    if "there is no dpkg-query" not in text:
        assert "apt-get install no-such-package-1 no-such-package-2=1.0" in text


def test_the_guess_of_the_next_start_may_be_wrong(
    gusset: Cli, folder: Path, index: Index, tmp_path: Path
) -> None:
    """The worker that was started on the last environment is replaced when another one is right."""
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        first = predict(address).json()
    write(folder, index, "alpha==2.0")
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        second = predict(address).json()
    assert (first["alpha"], second["alpha"]) == ("1.0", "2.0")
    (folder / "config.yaml").write_text("")
    (folder / "model" / "model.py").write_text(
        "import sys\nclass Model:\n    def predict(self, inputs):\n        return sys.executable\n"
    )
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        assert predict(address).json() == sys.executable
        assert httpx.get(address).status_code == 200
