"""Custom images without root, in the rootless Podman and the rootless Docker of an ordinary account."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.conftest import REPO, EngineAccess, ServedImage, missing_programs, skip_if
from tests.killed_runs import ACCOUNT, own_name, remove_account, remove_left_accounts
from tests.serving.conftest import eventually

TOKEN = b"hf_cHVibGljIHRva2Vu-1717"
DOCKER = "/usr/share/docker.io/contrib/dockerd-rootless.sh"  # as Debian has it
NEEDED = ("newuidmap", "slirp4netns", "setpriv", "docker", "rootlesskit")
# The account may not be able to read the Python that runs the tests.
PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def account() -> Iterator[pwd.struct_passwd]:
    """The account that GUSSET_TEST_ACCOUNT names; in CI, one that is created for the tests."""
    skip_if(missing_programs(*NEEDED, PYTHON, DOCKER))
    if name := os.environ.get("GUSSET_TEST_ACCOUNT"):
        yield pwd.getpwnam(name)
        return
    if os.environ.get("CI") != "1":
        pytest.skip("set GUSSET_TEST_ACCOUNT to an ordinary account with subordinate ids (/etc/subuid)")
    remove_left_accounts()
    name = own_name(ACCOUNT)
    subprocess.run(["useradd", "--create-home", name], check=True)
    Path("/dev/net/tun").chmod(0o666)  # as udev sets it
    try:
        made = pwd.getpwnam(name)
        storage = Path(made.pw_dir, ".config/containers/storage.conf")
        storage.parent.mkdir(parents=True)
        storage.write_text('[storage]\ndriver = "overlay"\n')  # else each container is a copy of its image
        subprocess.run(["chown", "-R", f"{name}:", made.pw_dir], check=True)
        yield made
    finally:
        eventually(lambda: remove_account(name), "the account is removed")


@pytest.fixture(scope="module")
def prefix(account: pwd.struct_passwd) -> Iterator[list[str]]:
    """The words before a command that run it as that account."""
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
def engine(
    request: pytest.FixtureRequest, prefix: list[str], images: dict[str, str], busybox: str
) -> Iterator[EngineAccess]:
    """An engine of that account, which gusset finds by itself and which has some of the images."""
    made = EngineAccess([*prefix, request.param], prefix, python=PYTHON)
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
        made.remove_image(*names)


@contextlib.contextmanager
def _rootless_docker(prefix: list[str]) -> Iterator[EngineAccess]:
    address = next(
        f"unix://{word[16:]}/docker.sock" for word in prefix if word.startswith("XDG_RUNTIME_DIR=")
    )
    engine = EngineAccess([*prefix, "docker", "--host", address], prefix, python=PYTHON)
    daemon = subprocess.Popen(
        [*prefix, "sh", DOCKER, "--iptables=false", "--ip6tables=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(engine.responds, "Docker responds")
        yield engine
    finally:
        daemon.terminate()
        daemon.wait(60)


@pytest.fixture
def served(account: pwd.struct_passwd, engine: EngineAccess) -> Iterator[ServedImage]:
    """A served image, by that account. Other runs of pytest close pytest's own folder to other accounts."""
    with tempfile.TemporaryDirectory(prefix="rootless-") as name:
        folder = Path(name)
        image = ServedImage(folder, engine)
        (folder / "home").mkdir()
        for path in (folder, image.folder, image.secrets):
            path.chmod(0o755)
        for path in (folder, folder / "home"):
            os.chown(path, account.pw_uid, account.pw_gid)
        yield image
        if image.process and image.process.poll() is None:
            image.stop()


@pytest.mark.parametrize(
    ("image", "user"), [("root", 0), ("user", 4321), pytest.param("number", 4321, marks=pytest.mark.matrix)]
)
def test_a_secret_is_a_read_only_file_in_memory_with_exact_bytes(
    served: ServedImage, launch: Callable[..., ServedImage], image: str, user: int
) -> None:
    """As with root, also after a rotation and for a server on 127.0.0.1; nothing is left afterwards."""
    served.secret("hf_access_token", TOKEN)
    launch(image)
    described = served.call("describe", name="hf_access_token")
    assert isinstance(described, dict)
    assert base64.b64decode(described["value"]) == TOKEN
    assert (described["mode"], described["type"], described["owner"], described["me"]) == (
        "0o100400",
        "tmpfs",
        user,
        user,
    )
    assert "ro" in described["options"].split(",")
    served.secret("hf_access_token", TOKEN + b"-next")
    eventually(lambda: served.content("hf_access_token") == TOKEN + b"-next", "the new value")
    assert served.stop() == 0
    assert not served.left_behind()


def test_nothing_is_left_after_a_kill(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """`kill -9` of gusset: containers, the folder or volume, and Podman's service are removed."""
    served.secret("hf_access_token", TOKEN)
    launch("user")
    assert served.left_behind()
    served.running.kill()
    served.running.wait()
    eventually(lambda: not served.left_behind(), "nothing is left")


def test_an_image_is_built_searched_and_served(
    served: ServedImage, engine: EngineAccess, images: dict[str, str]
) -> None:
    """With a secret of the build. One that writes it into a file is removed."""
    if "docker" in engine.command:
        pytest.skip("Debian's docker command has no BuildKit")
    served.secret("build_token", TOKEN)
    secret = "/run/build/token"
    more = {"secrets": {}, "build": {"secret_to_path_mapping": {"build_token": secret}}}
    served.configure(images["root"], build_commands=[f"sha256sum {secret} > /srv/made"], **more)
    tag = "localhost/gusset-rootless:built"

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        words = [*served.engine.before, *environ, PYTHON, "-m", "gusset", command, *arguments]
        done = subprocess.run(
            [*words, "--secrets-dir", str(served.secrets)], capture_output=True, text=True, check=False
        )
        assert TOKEN.decode() not in done.stdout + done.stderr
        return done

    environ = [f"GUSSET_HOME={served.tmp}/home", f"GUSSET_CACHE={served.tmp}/cache"]
    environ = ["env", *environ, f"GUSSET_SETTINGS={served.tmp}/settings.toml"]
    built = run("build", str(served.folder), "--tag", tag)
    assert built.returncode == 0, built.stderr
    scanned = run("scan", tag)
    assert scanned.returncode == 0, scanned.stderr
    assert "searched" in scanned.stdout + scanned.stderr
    assert served.start().ready().stop() == 0
    served.configure(images["root"], build_commands=[f"cp {secret} /srv/made"], **more)
    leaking = run("build", str(served.folder), "--tag", tag)
    assert leaking.returncode == 4, leaking.stderr
    assert "srv/made" in leaking.stderr
    engine.remove_image(tag)
