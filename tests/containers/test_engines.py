"""Other engines than root's Podman: Docker, engines that cannot mount gusset's files, and remote ones."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import as_ordinary_process, leaks_in
from tests.containers.conftest import (
    SERVER,
    EngineAccess,
    ServedImage,
    files_newer_than,
    missing_programs,
    skip_if,
)
from tests.containers.engine_proxy import engine_with
from tests.ports import free_port, listens
from tests.serving.conftest import PATIENCE, eventually

TOKEN = b"hf_cHVibGljIHRva2Vu-0815"


@pytest.fixture(scope="session")
def ssh(docker: Path) -> Iterator[dict[str, str]]:
    """The environment for reaching that Docker by ssh, through a real server with its own keys."""
    skip_if(missing_programs("sshd", "ssh"))
    folder = Path(tempfile.mkdtemp(prefix="gusset-ssh-"))
    for name in ("host", "ours"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "server").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/ours.pub\nStrictModes no\nPermitRootLogin prohibit-password\n"
    )
    (folder / "client").write_text(f"IdentityFile {folder}/ours\nUserKnownHostsFile {folder}/known\n")
    client = folder / "ssh"  # uses this configuration in place of the account's
    client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/client "$@"\n')
    client.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [shutil.which("sshd") or "sshd", "-D", "-e", "-f", folder / "server"], stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: listens(port), "the server listens")
        yield {
            "DOCKER_HOST": f"ssh://root@127.0.0.1:{port}{docker}",
            "PATH": f"{folder}:{os.environ['PATH']}",
        }
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


@pytest.fixture
def rootful(busybox: str, tmp_path: Path) -> Iterator[str]:
    """The address of a Podman service that runs as root."""
    folder = Path(tempfile.mkdtemp(prefix="gusset-p-"))
    address = f"unix://{folder}/podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", address])
    try:
        eventually(lambda: (folder / "podman.sock").exists(), "it listens")
        yield address
    finally:
        service.terminate()
        service.wait()
        shutil.rmtree(folder)


# Docker with a sidecar is also reached by ssh.
DOCKER_WITH_SIDECAR = pytest.param("docker-unprivileged", marks=pytest.mark.matrix)
WITH_SIDECAR = (DOCKER_WITH_SIDECAR, "docker-by-ssh", "podman-unprivileged")
ENGINES = ("docker", *WITH_SIDECAR)


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServedImage]:
    """A served image on the engine that the parameter names."""
    name = request.param
    before = as_ordinary_process() if name.endswith("unprivileged") else []
    environ = {"MARK": str(tmp_path)}  # marks gusset's processes and their children
    if name.startswith("podman"):
        engine = EngineAccess(
            before=before, environ=environ | {"DOCKER_HOST": request.getfixturevalue("rootful")}
        )
    else:
        address = f"unix://{request.getfixturevalue('docker')}"
        reach = request.getfixturevalue("ssh") if name == "docker-by-ssh" else {"DOCKER_HOST": address}
        engine = EngineAccess(("docker", "--host", address), before, environ | reach)
    image = ServedImage(tmp_path, engine)
    yield image
    if image.process and image.process.poll() is None:
        image.stop()


on_every_engine = pytest.mark.parametrize("served", ENGINES, indirect=True)
with_sidecar = pytest.mark.parametrize("served", WITH_SIDECAR, indirect=True)


@on_every_engine
@pytest.mark.parametrize(
    ("image", "more", "user"),
    [
        ("root", {}, 0),
        pytest.param("user", {}, 4321, marks=pytest.mark.matrix),
        ("shell-less", {"docker_server": {"run_as_user_id": 5678}}, 5678),
        ("own-secrets", {}, 0),
    ],
    ids=["root", "user", "run-as", "own-secrets"],
)
def test_a_secret_is_a_read_only_file_in_memory_with_exact_bytes(
    served: ServedImage, launch: Callable[..., ServedImage], image: str, more: dict[str, object], user: int
) -> None:
    """It is mode 0400 and owned by the server's user, as with Podman and root; nothing is left afterwards."""
    value = os.urandom(64 * 1024)
    served.secret("hf_access_token", TOKEN)
    served.secret("binary", value)
    launch(image, **more)
    described = served.call("describe", name="binary")
    assert isinstance(described, dict)
    assert base64.b64decode(described["value"]) == value
    assert described["mode"] == "0o100400"
    assert described["owner"] == described["me"] == user
    assert described["type"] == "tmpfs"
    assert "ro" in described["options"].split(",")
    assert described["names"] == ["binary", "hf_access_token"]
    assert served.content("hf_access_token") == TOKEN
    assert served.stop() == 0
    assert not served.left_behind()


@on_every_engine
def test_no_other_user_in_the_container_can_read_a_secret(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """Nor can the server write to its file."""
    served.secret("hf_access_token", TOKEN)
    launch()
    assert served.call("refused", name="hf_access_token") == ["Read-only file system", 77]


@with_sidecar
def test_a_reader_never_sees_a_part_of_a_new_value(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """Reads during 60 rotations return whole values; the file of a removed secret is removed."""
    values = [bytes([65 + n % 26]) * 5000 + b"%03d" % n for n in range(60)]
    served.secret("rotated", values[0])
    served.secret("other", TOKEN)
    launch(secrets={"other": None, "rotated": None})
    found: list[str] = []

    def read() -> None:
        body = {"do": "reads", "name": "rotated", "count": 10_000}
        found.extend(httpx.post(f"{served.address}/predict", json=body, timeout=60).json())

    thread = threading.Thread(target=read)
    thread.start()
    for value in values:
        served.secret("rotated", value)
        thread.join(0.02)
    thread.join()
    assert {base64.b64decode(each) for each in found} <= set(values)
    eventually(lambda: served.content("rotated") == values[-1], "the last value is read")
    (served.secrets / "other").unlink()
    eventually(lambda: served.call("names") == ["rotated"], "the file is removed")
    assert served.call("print", name="rotated") == "printed"
    assert served.stop() == 0
    assert not leaks_in(served.output.encode(), values[-1])


@pytest.mark.parametrize("served", ["podman-unprivileged"], indirect=True)
def test_names_that_begin_with_a_dot_are_like_others(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """Their files are removed with the others, even if only the sidecar is left to do it."""
    values = {".env": TOKEN + b"-env", ".next": TOKEN + b"-next", "other": TOKEN}
    for name, value in values.items():
        served.secret(name, value)
    launch()
    assert {name: served.content(name) for name in values} == values
    served.secret("other", TOKEN + b"-other")
    eventually(lambda: served.content("other") == TOKEN + b"-other", "the new value")
    assert served.call("names") == [".env", ".next", "other"]
    pid = served.engine("inspect", "--format", "{{.State.Pid}}", served.container)
    for reaper in [each for each, command in _processes(served) if b"gusset.containers.reaper" in command]:
        os.kill(reaper, signal.SIGKILL)  # so only the sidecar can remove them
    served.running.kill()
    served.running.wait()
    mounted = Path("/proc", pid, "root", "secrets")
    # The container itself may be removed meanwhile, by another start of gusset that finds it ownerless.
    eventually(lambda: not mounted.exists() or not os.listdir(mounted), "no file is left")
    for id_ in reversed(served.left_behind()):
        subprocess.run(["podman", "rm", "-f", id_], capture_output=True, check=False)


@with_sidecar
def test_no_value_is_stored_outside_of_secrets(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """Neither in what the engine reports of both containers and the volume, nor in processes, nor on disk."""
    served.secret("hf_access_token", TOKEN)
    launch()
    for id_ in served.left_behind():
        assert not leaks_in(served.engine("inspect", id_).encode(), TOKEN)
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            about = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            assert not leaks_in(about, TOKEN), folder
    _assert_not_on_disk(served)
    assert served.stop() == 0
    _assert_not_on_disk(served)
    assert not leaks_in(served.output.encode(), TOKEN)


def _assert_not_on_disk(served: ServedImage) -> None:
    roots = [path for path in Path("/tmp").glob("gusset-*") if path.is_dir()]
    outside_mounts = ("-xdev",)  # the volume in memory is one
    for file in files_newer_than(
        served.folder, *roots, "/var/lib/containers", "/run/containers", tests=outside_mounts
    ):
        with contextlib.suppress(OSError):
            assert not leaks_in(file.read_bytes(), TOKEN), file


@on_every_engine
def test_nothing_is_left_after_a_kill(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """`kill -9` of gusset: both containers, the volume, and the connection to the engine are removed."""
    served.secret("hf_access_token", TOKEN)
    launch()
    assert served.left_behind()
    assert len(list(_processes(served))) > 1
    served.running.kill()
    served.running.wait()
    eventually(lambda: not served.left_behind(), "nothing is left")
    eventually(lambda: not list(_processes(served)), "no process is left, either")


def _processes(served: ServedImage) -> Iterator[tuple[int, bytes]]:
    """The process ids and command lines of its processes on this machine."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if b"MARK=" + bytes(served.tmp) in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_bytes()


@with_sidecar
def test_a_sidecar_that_dies_is_replaced_with_its_container(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """The container is useless without its secrets and its network."""
    served.secret("hf_access_token", TOKEN)
    launch()
    first = served.container
    served.engine("kill", _sidecar(served))
    eventually(lambda: "The container is ready again." in served.output, "ready again")
    assert served.container != first
    assert served.content("hf_access_token") == TOKEN
    assert served.stop() == 0
    assert not served.left_behind()


@pytest.mark.parametrize("served", ["podman-unprivileged"], indirect=True)
def test_a_sidecar_that_does_not_respond_is_replaced(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """With its container, which never sees a part of the value that was being written."""
    served.secret("hf_access_token", TOKEN)
    launch()
    sidecar = int(served.engine("inspect", "--format", "{{.State.Pid}}", _sidecar(served)))
    os.kill(sidecar, signal.SIGSTOP)
    served.secret("hf_access_token", TOKEN + b"-next")
    seen = set()

    def is_ready_again() -> bool:
        with contextlib.suppress(httpx.HTTPError, AssertionError):  # while the container is replaced
            seen.add(served.content("hf_access_token"))
        return "The container is ready again." in served.output

    eventually(is_ready_again, "ready again", 4 * PATIENCE)
    assert "could not be delivered" in served.output
    assert TOKEN in seen and seen <= {TOKEN, TOKEN + b"-next"}
    assert served.content("hf_access_token") == TOKEN + b"-next"
    assert served.stop() == 0
    assert not served.left_behind()


def _sidecar(served: ServedImage) -> str:
    """The id of its sidecar."""
    found = served.engine.labelled("ps", "--no-trunc")
    return next(id_ for id_, run_id, name in found if not name and served.is_its_run(run_id))


@pytest.mark.parametrize("served", ["docker-unprivileged"], indirect=True)
def test_the_published_port_requires_the_password(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """It is on this machine's loopback, to which other accounts can connect."""
    launch()
    host, _, port = served.engine("port", _sidecar(served)).rpartition("-> ")[2].rpartition(":")
    assert host == "127.0.0.1"
    for first_bytes in (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"\n", b"$password\n", b"x" * 100_000):
        with socket.create_connection((host, int(port))) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(first_bytes)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    assert httpx.get(served.address).json() == {"path": "/health"}


@pytest.mark.parametrize("served", [DOCKER_WITH_SIDECAR, "podman-unprivileged"], indirect=True)
def test_a_server_that_can_be_called_past_the_sidecar_is_warned_about_if_it_has_callers(
    served: ServedImage, images: dict[str, str]
) -> None:
    at_root = dict.fromkeys(("predict_endpoint", "readiness_endpoint", "liveness_endpoint"), "/")
    served.configure(
        images["root"], "python3 -m http.server 8000 --bind 0.0.0.0 --directory /srv", docker_server=at_root
    )
    served.secret("app", b"caller-Zx81QqLmN4vTtYbWs93K")
    served.start("--callers", "app").ready()
    assert httpx.get(f"{served.address}/other").status_code == 401
    eventually(lambda: "Let it listen on 127.0.0.1 only" in served.output, "the warning")


BUSY = """
import os, signal, socket
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = socket.create_server(("::", 8000), family=socket.AF_INET6, dualstack_ipv6=True)
seen = set()
while True:
    conn, _ = server.accept()
    with conn:
        first = conn.recv(200).decode("ascii", "replace")
        seen.add(first.partition("/")[0])
        body = repr(sorted(seen)).encode()
        conn.sendall(b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body)
"""


@pytest.mark.parametrize("served", ["podman-unprivileged"], indirect=True)  # its containers have ::1
def test_the_rest_of_a_request_never_becomes_a_request(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """When the server responds and closes before it has read the body: the sidecar does not connect again."""
    launch(command=f"python3 -c '{BUSY}'")
    sidecar = _sidecar(served)
    address = served.engine("port", sidecar).rpartition("-> ")[2].split(":")
    body = b"PUT /other HTTP/1.1\r\nhost: x\r\n\r\n" * 5_000
    head = _password(served, sidecar) + b"\nPOST /predict HTTP/1.1\r\nhost: x\r\n\r\n"
    suppressed = contextlib.suppress(ConnectionError)
    for _ in range(100):
        with socket.create_connection((address[0], int(address[1]))) as sock, suppressed:
            sock.sendall(head + body)
            while sock.recv(1000):
                pass
    assert httpx.get(served.address).text == "['GET ', 'POST ']"


def _password(served: ServedImage, sidecar: str) -> bytes:
    """The password of its published port, which only root can read."""
    first = served.engine("inspect", "--format", "{{.State.Pid}}", sidecar)
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(folder / "ns/pid") == os.readlink(f"/proc/{first}/ns/pid"):
                environ = (folder / "environ").read_bytes().split(b"\0")
                if found := [each for each in environ if each.startswith(b"password=")]:
                    return found[0].removeprefix(b"password=")
    raise AssertionError("no process has the password")


@pytest.mark.parametrize("served", ["docker-unprivileged"], indirect=True)
def test_docker_on_this_machine_can_use_the_host_network(served: ServedImage, images: dict[str, str]) -> None:
    """It is gusset's network too, so the sidecar publishes no port."""
    served.secret("hf_access_token", TOKEN)
    port = free_port()
    command = SERVER.replace("8000", str(port))
    served.configure(images["root"], command, docker_server={"server_port": port})
    served.start("--network", "host").ready()
    assert served.content("hf_access_token") == TOKEN
    assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"path": "/health"}


@pytest.mark.parametrize("served", ["docker-by-ssh"], indirect=True)
def test_the_host_network_of_another_machine_is_refused(served: ServedImage, images: dict[str, str]) -> None:
    """gusset could not connect to the server there."""
    served.configure(images["root"])
    served.start("--network", "host").fails(11, "its engine's network, not on this machine's")


@pytest.mark.parametrize("served", ["docker-by-ssh"], indirect=True)
def test_a_machine_that_cannot_be_reached_is_reported(served: ServedImage, images: dict[str, str]) -> None:
    """With the error of ssh, and what to try; a URL with a password is not quoted."""
    served.configure(images["root"])
    wrong_user = served.engine.environ["DOCKER_HOST"].replace("root@", "nobody-known@")
    served.start(DOCKER_HOST=wrong_user).fails(
        11, "Permission denied", "log in without asking for a password"
    )
    for url in ("ssh://", "ssh://-oProxyCommand=x", "ssh://host:port", "ssh://user:pass-4711@host"):
        assert "4711" not in served.start(DOCKER_HOST=url).fails(11, "DOCKER_HOST is not an ssh:// address")


def _break(served: ServedImage) -> None:
    """Kill its ssh connection."""
    (tunnel,) = [pid for pid, command in _processes(served) if b"StreamLocalBindMask" in command]
    os.kill(tunnel, signal.SIGKILL)


@pytest.mark.parametrize("served", ["docker-by-ssh"], indirect=True)
def test_sigterm_ends_serve_while_its_engine_is_unreachable(
    served: ServedImage, images: dict[str, str]
) -> None:
    """While it tries to connect again."""
    ours = served.tmp / "ssh"
    ours.symlink_to(shutil.which("ssh", path=served.engine.environ["PATH"]) or "")
    served.configure(images["root"])
    served.start(PATH=f"{served.tmp}:{served.engine.environ['PATH']}").ready()
    left = served.left_behind()
    ours.unlink()
    ours.write_text("#!/bin/sh\nsleep 2\necho no such machine >&2\nexit 255\n")
    ours.chmod(0o755)
    _break(served)
    eventually(lambda: any(b"sleep" in command for _, command in _processes(served)), "it tries to connect")
    assert served.stop() == 0
    assert "Traceback" not in served.output
    for id_ in left:  # gusset could not reach them
        for kind in ("container", "volume"):
            subprocess.run([*served.engine.command, kind, "rm", "-f", id_], capture_output=True, check=False)


@pytest.mark.parametrize("served", ["docker-by-ssh"], indirect=True)
def test_a_broken_ssh_connection_is_restored(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """With a new container; nothing is left of the old one."""
    served.secret("hf_access_token", TOKEN)
    launch()
    first = served.container
    _break(served)
    eventually(lambda: "The container is ready again." in served.output, "ready again")
    assert "was restarted" in served.output
    assert served.container != first
    assert served.content("hf_access_token") == TOKEN
    assert served.stop() == 0
    assert not served.left_behind()


@pytest.mark.parametrize("served", ["docker-unprivileged"], indirect=True)
def test_a_missing_image_of_the_sidecar_is_reported(served: ServedImage, images: dict[str, str]) -> None:
    """If it cannot be pulled: which image is meant, and why it is needed."""
    served.secret("hf_access_token", TOKEN)
    served.configure(images["root"])
    served.engine("tag", "busybox:stable", "kept")
    served.engine("rmi", "busybox:stable")
    try:
        served.start().fails(11, "busybox:stable", "cannot be pulled", "holds the secrets")
    finally:
        served.engine("tag", "kept", "busybox:stable")
    assert not served.left_behind()


@pytest.mark.parametrize(
    "served", ["docker", pytest.param("docker-by-ssh", marks=pytest.mark.matrix)], indirect=True
)
def test_what_the_config_adds_is_built_into_the_image(served: ServedImage, images: dict[str, str]) -> None:
    """By Docker's own command, as root."""
    (served.folder / "data").mkdir()
    (served.folder / "data" / "weights.txt").write_text("heavy")
    served.configure(images["user"], build_commands=["id -u > /srv/made"])
    served.start().ready()
    assert served.call("file", path="/app/data/weights.txt") == "heavy"
    assert served.call("file", path="/srv/made") == "0\n"


@pytest.mark.parametrize("served", ["docker", DOCKER_WITH_SIDECAR, "podman-unprivileged"], indirect=True)
def test_secrets_are_mounted_on_a_read_only_root(served: ServedImage, images: dict[str, str]) -> None:
    """When the engine's configuration makes the file systems of containers read-only."""
    served.secret("hf_access_token", TOKEN)
    served.configure(images["root"])

    def read_only(description: dict[str, Any]) -> None:
        description.setdefault("HostConfig", {})["ReadonlyRootfs"] = True

    with engine_with(served.engine.environ["DOCKER_HOST"], read_only) as address:
        served.start(DOCKER_HOST=address).ready()
        assert served.call("names") == ["hf_access_token"]
        assert served.content("hf_access_token") == TOKEN
        assert (
            json.loads(served.engine("inspect", served.container))[0]["HostConfig"]["ReadonlyRootfs"] is True
        )
        served.secret("hf_access_token", TOKEN + b"-next")
        eventually(lambda: served.content("hf_access_token") == TOKEN + b"-next", "the new value")
        assert served.stop() == 0
    assert not served.left_behind()


@pytest.mark.parametrize("served", ["docker", "docker-unprivileged"], indirect=True)
def test_a_container_that_is_made_after_gusset_is_killed_is_removed(
    served: ServedImage, images: dict[str, str]
) -> None:
    """An engine under load needs a while, and finishes a request whose client has ended."""
    served.secret("hf_access_token", TOKEN)
    served.configure(images["root"])
    is_asked, is_killed = threading.Event(), threading.Event()

    def create_late(description: dict[str, Any]) -> None:
        if not is_asked.is_set():
            is_asked.set()
            is_killed.wait(PATIENCE)
            time.sleep(5)  # how late the engine is

    with engine_with(served.engine.environ["DOCKER_HOST"], create_late) as address:
        served.start(DOCKER_HOST=address)
        assert is_asked.wait(PATIENCE), served.output
        served.running.kill()
        served.running.wait(60)
        is_killed.set()
        eventually(lambda: served.running.pid in pids_of_created(served.engine), "the engine has made it")
        eventually(lambda: not served.left_behind(), "nothing is left")


def pids_of_created(engine: EngineAccess) -> set[int]:
    """The process ids of those who have created containers at that Docker, also of removed ones."""
    line = '{{index .Actor.Attributes "gusset.owner"}}'
    events = ("events", "--since", "0", "--until", str(int(time.time()) + 1))
    run_ids = engine(*events, "--filter", "event=create", "--filter", "type=container", "--format", line)
    return {int(run_id.partition("-")[0]) for run_id in run_ids.split() if "-" in run_id}


NOT_KNOWN = json.dumps({"message": "locating image with ID 4711: image not known"}).encode()
SERVER_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(NOT_KNOWN), NOT_KNOWN)
)


@pytest.mark.parametrize("served", ["docker"], indirect=True)
@pytest.mark.parametrize("errors", [2, 1000])
def test_an_image_is_inspected_again_after_an_error_of_the_engine(
    served: ServedImage, images: dict[str, str], errors: int
) -> None:
    """Podman has one where another image is removed at that moment. One that stays is reported."""
    served.configure(images["root"])
    inspections = 0

    def respond(request: bytes) -> bytes | None:
        nonlocal inspections
        if b"/images/" not in request or b"/json " not in request:
            return None
        inspections += 1
        return SERVER_ERROR if inspections <= errors else None

    with engine_with(served.engine.environ["DOCKER_HOST"], respond=respond) as address:
        served.start(DOCKER_HOST=address)
        if errors > 2:
            served.fails(9, f"the image {images['root']} cannot be inspected: locating image with ID 4711")
            assert "bug" not in served.output
        else:
            served.ready()
            assert inspections > errors
            assert served.stop() == 0
    assert not served.left_behind()


@pytest.mark.parametrize("served", ["docker"], indirect=True)
@pytest.mark.parametrize("what", [b"/containers/json?", b"/volumes?"])
def test_a_container_starts_though_the_engine_cannot_list_what_is_left(
    served: ServedImage, images: dict[str, str], what: bytes
) -> None:
    """Podman cannot where another container or volume is removed at that moment."""
    served.configure(images["root"])
    listings = 0

    def respond(request: bytes) -> bytes | None:
        nonlocal listings
        if what not in request:
            return None
        listings += 1
        return SERVER_ERROR if listings % 3 else None

    with engine_with(served.engine.environ["DOCKER_HOST"], respond=respond) as address:
        served.start(DOCKER_HOST=address).ready()
        assert listings >= 3
        assert served.stop() == 0
    assert not served.left_behind()


@pytest.mark.parametrize("served", ["podman-unprivileged"], indirect=True)
def test_no_request_waits_for_a_container_that_runs(served: ServedImage, images: dict[str, str]) -> None:
    """Podman before 4.6 needs a core for one; a container's end is noticed by that of its output."""
    served.configure(images["root"])
    requests: list[bytes] = []
    with engine_with(served.engine.environ["DOCKER_HOST"], respond=requests.append) as address:
        served.start(DOCKER_HOST=address).ready()
        assert requests and not [each for each in requests if b"/wait" in each]
        served.engine("kill", served.container)
        eventually(lambda: "The container is ready again." in served.output, "ready again")
        assert "the container ended, with exit status 137" in served.output
        assert served.stop() == 0


@pytest.mark.parametrize("served", ["docker"], indirect=True)
@pytest.mark.parametrize(("option", "count"), [("-1", -1), ("2", 2)])
def test_gpus_are_requested_from_the_engine(
    served: ServedImage, images: dict[str, str], option: str, count: int
) -> None:
    """With shared memory for processes that use several. Its error is reported if it has none."""
    served.configure(images["root"])
    descriptions: list[dict[str, Any]] = []
    with engine_with(served.engine.environ["DOCKER_HOST"], descriptions.append) as address:
        served.start("--gpus", option, DOCKER_HOST=address).fails(9, "the container does not start", "gpu")
    hosts = [each["HostConfig"] for each in descriptions if each.get("HostConfig")]
    assert [(gpu["Count"], gpu["Capabilities"]) for gpu in hosts[0]["DeviceRequests"]] == [(count, [["gpu"]])]
    assert hosts[0]["ShmSize"] == 16 * 2**30
    assert not served.left_behind()
