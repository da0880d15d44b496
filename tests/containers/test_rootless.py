"""Custom images without root: in the rootless Podman, and the rootless Docker, of an ordinary account."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.conftest import REPO, Ship, Way, lacks, unless
from tests.serving.conftest import eventually

pytestmark = pytest.mark.xdist_group("rootless")

TOKEN = b"hf_cHVibGljIHRva2Vu-1717"
DOCKER = "/usr/share/docker.io/contrib/dockerd-rootless.sh"  # as Debian has it
NEEDED = ("newuidmap", "slirp4netns", "setpriv", "docker", "rootlesskit")
# The tests' own Python may lie where that account cannot read.
PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def account(worker_id: str) -> Iterator[pwd.struct_passwd]:
    """The account that GUSSET_TEST_ACCOUNT names; in CI one that is made, and removed again."""
    unless(lacks(*NEEDED, PYTHON, DOCKER))
    if name := os.environ.get("GUSSET_TEST_ACCOUNT"):
        yield pwd.getpwnam(name)
        return
    if os.environ.get("CI") != "1":
        pytest.skip("set GUSSET_TEST_ACCOUNT to an ordinary account with subordinate ids (/etc/subuid)")
    name = f"gusset-{worker_id}"
    subprocess.run(["useradd", "--create-home", name], check=True)
    Path("/dev/net/tun").chmod(0o666)  # as it is wherever udev makes it
    try:
        made = pwd.getpwnam(name)
        storage = Path(made.pw_dir, ".config/containers/storage.conf")
        storage.parent.mkdir(parents=True)
        storage.write_text('[storage]\ndriver = "overlay"\n')  # else each container is a copy of its image
        subprocess.run(["chown", "-R", f"{name}:", made.pw_dir], check=True)
        yield made
    finally:
        eventually(lambda: _removed(name), "the account has gone")


def _removed(name: str) -> bool:
    """With all that it still runs, as Podman's own process that holds its namespaces."""
    subprocess.run(["pkill", "-KILL", "-u", name], check=False)
    subprocess.run(["userdel", "--remove", name], capture_output=True, check=False)
    return name not in [each.pw_name for each in pwd.getpwall()]


@pytest.fixture(scope="module")
def prefix(account: pwd.struct_passwd) -> Iterator[list[str]]:
    """What makes a command that account's."""
    runtime = Path(f"/run/user/{account.pw_uid}")
    is_new = not runtime.exists()
    if is_new:
        runtime.mkdir(mode=0o700, parents=True)
        os.chown(runtime, account.pw_uid, account.pw_gid)
    python_path = os.pathsep.join(
        [str(REPO / "src"), *(path for path in sys.path if "site-packages" in path)]
    )
    yield [
        *("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups"),
        *("env", "-C", "/", f"HOME={account.pw_dir}", f"XDG_RUNTIME_DIR={runtime}"),
        *("PATH=/usr/bin:/bin:/usr/sbin:/sbin", f"PYTHONPATH={python_path}"),
    ]
    if is_new:
        subprocess.run(["umount", "-R", runtime], capture_output=True, check=False)  # Podman's own network
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(scope="module", params=["podman", "docker"])
def way(
    request: pytest.FixtureRequest, prefix: list[str], images: dict[str, str], busybox: str
) -> Iterator[Way]:
    """To an engine of its own, which is found by itself and has some of the images."""
    made = Way([*prefix, request.param], prefix, python=PYTHON)
    names = [images[each] for each in ("root", "user", "number")]
    with contextlib.ExitStack() as stack:
        if request.param == "docker":
            names.append(busybox)
            made = stack.enter_context(_rootless_docker(prefix))
        with subprocess.Popen(
            ["podman", "save", "--multi-image-archive", *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as saved:
            subprocess.run([*made.command, "load", "-q"], stdin=saved.stdout, capture_output=True, check=True)
        yield made
        made("rmi", "--force", *names)


@contextlib.contextmanager
def _rootless_docker(prefix: list[str]) -> Iterator[Way]:
    address = next(
        f"unix://{word[16:]}/docker.sock" for word in prefix if word.startswith("XDG_RUNTIME_DIR=")
    )
    way = Way([*prefix, "docker", "--host", address], prefix, python=PYTHON)
    daemon = subprocess.Popen(
        [*prefix, "sh", DOCKER, "--iptables=false", "--ip6tables=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(way.answers, "Docker answers")
        yield way
    finally:
        daemon.terminate()
        daemon.wait(60)


@pytest.fixture
def ship(tmp_path: Path, account: pwd.struct_passwd, way: Way) -> Iterator[Ship]:
    """An image that this account serves."""
    made = Ship(tmp_path, way)
    (tmp_path / "home").mkdir()
    for path in (made.folder, made.secrets, tmp_path, *tmp_path.parents):
        if Path("/tmp") in path.parents:
            path.chmod(path.stat().st_mode | 0o055)
    for path in (tmp_path / "home", tmp_path):
        os.chown(path, account.pw_uid, account.pw_gid)
    yield made
    if made.process and made.process.poll() is None:
        made.stop()


@pytest.mark.parametrize(("image", "user"), [("root", 0), ("user", 4321), ("number", 4321)])
def test_what_is_seen_from_inside(ship: Ship, launch: Callable[..., Ship], image: str, user: int) -> None:
    """The same as with root, also a server on 127.0.0.1 alone and a rotation; and nothing is left."""
    ship.secret("hf_access_token", TOKEN)
    launch(image)
    seen = ship.ask("see", name="hf_access_token")
    assert isinstance(seen, dict)
    assert base64.b64decode(seen["value"]) == TOKEN
    assert (seen["mode"], seen["type"], seen["owner"], seen["me"]) == ("0o100400", "tmpfs", user, user)
    assert "ro" in seen["options"].split(",")
    ship.secret("hf_access_token", TOKEN + b"-next")
    eventually(lambda: ship.content("hf_access_token") == TOKEN + b"-next", "the new value")
    assert ship.stop() == 0
    assert not ship.left_behind()


def test_nothing_is_left_after_a_kill(ship: Ship, launch: Callable[..., Ship]) -> None:
    """`kill -9` of gusset: containers, folder or volume, and Podman's service go."""
    ship.secret("hf_access_token", TOKEN)
    launch("user")
    assert ship.left_behind()
    ship.running.kill()
    ship.running.wait()
    eventually(lambda: not ship.left_behind(), "all is gone")
