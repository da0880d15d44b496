"""Other ways to an engine than root's to Podman: Docker, engines that take no file of ours, and far ones."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import as_ordinary_process, leaks_in
from tests.containers.between import engine_with
from tests.containers.conftest import SERVER, Ship, Way, lacks, unless
from tests.serving.conftest import PATIENCE, eventually

pytestmark = pytest.mark.xdist_group("engines")

TOKEN = b"hf_cHVibGljIHRva2Vu-0815"


@pytest.fixture(scope="session")
def far(docker: Path) -> Iterator[dict[str, str]]:
    """The environment in which that Docker is reached by ssh, on a real server of it with keys of its own."""
    unless(lacks("sshd", "ssh"))
    place = Path(tempfile.mkdtemp(prefix="gusset-ssh-"))
    for name in ("host", "ours"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kind, key, *_ = (place / "host.pub").read_text().split()
    (place / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (place / "server").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {place}/ours.pub\nStrictModes no\nPermitRootLogin prohibit-password\n"
    )
    (place / "client").write_text(f"IdentityFile {place}/ours\nUserKnownHostsFile {place}/known\n")
    ssh = place / "ssh"  # reads our configuration in place of the account's
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {place}/client "$@"\n')
    ssh.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [shutil.which("sshd") or "sshd", "-D", "-e", "-f", place / "server"], stderr=subprocess.DEVNULL
    )
    try:
        yield {
            "DOCKER_HOST": f"ssh://root@127.0.0.1:{port}{docker}",
            "PATH": f"{place}:{os.environ['PATH']}",
        }
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(place)


@pytest.fixture
def rootful(busybox: str, tmp_path: Path) -> Iterator[str]:
    """The address of a Podman that runs as root's service."""
    place = Path(tempfile.mkdtemp(prefix="gusset-p-"))
    address = f"unix://{place}/podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", address])
    try:
        eventually(lambda: (place / "podman.sock").exists(), "it listens")
        yield address
    finally:
        service.terminate()
        service.wait()
        shutil.rmtree(place)


WAYS = ("docker", "docker-unprivileged", "docker-by-ssh", "podman-unprivileged")
BY_SIDECAR = WAYS[1:]


@pytest.fixture
def ship(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ship]:
    """An image that is served by one of the ways to an engine."""
    name = request.param
    before = as_ordinary_process() if name.endswith("unprivileged") else []
    environ = {"MARK": str(tmp_path)}  # our processes and those they start are known by it
    if name.startswith("podman"):
        way = Way(before=before, environ=environ | {"DOCKER_HOST": request.getfixturevalue("rootful")})
    else:
        address = f"unix://{request.getfixturevalue('docker')}"
        to = request.getfixturevalue("far") if name == "docker-by-ssh" else {"DOCKER_HOST": address}
        way = Way(("docker", "--host", address), before, environ | to)
    made = Ship(tmp_path, way)
    yield made
    if made.process and made.process.poll() is None:
        made.stop()


every_way = pytest.mark.parametrize("ship", WAYS, indirect=True)
by_sidecar = pytest.mark.parametrize("ship", BY_SIDECAR, indirect=True)


@every_way
@pytest.mark.parametrize(
    ("image", "more", "user"),
    [
        ("root", {}, 0),
        ("user", {}, 4321),
        ("shell-less", {"docker_server": {"run_as_user_id": 5678}}, 5678),
        ("own-secrets", {}, 0),
    ],
    ids=["root", "user", "run-as", "own-secrets"],
)
def test_what_is_seen_from_inside(
    ship: Ship, launch: Callable[..., Ship], image: str, more: dict[str, object], user: int
) -> None:
    """As with Podman and root: exact bytes, 0400, of the server's user, in memory, read-only; nothing else."""
    value = os.urandom(64 * 1024)
    ship.secret("hf_access_token", TOKEN)
    ship.secret("binary", value)
    launch(image, **more)
    seen = ship.ask("see", name="binary")
    assert isinstance(seen, dict)
    assert base64.b64decode(seen["value"]) == value
    assert seen["mode"] == "0o100400"
    assert seen["owner"] == seen["me"] == user
    assert seen["type"] == "tmpfs"
    assert "ro" in seen["options"].split(",")
    assert seen["names"] == ["binary", "hf_access_token"]
    assert ship.content("hf_access_token") == TOKEN
    assert ship.stop() == 0
    assert not ship.left_behind()


@every_way
def test_nobody_else_inside_can_read_it(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Nor can the server write to it."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    assert ship.ask("refused", name="hf_access_token") == ["Read-only file system", 77]


@by_sidecar
def test_a_rotation_is_seen_whole(ship: Ship, launch: Callable[..., Ship]) -> None:
    """One value or another, never a part; a secret that is gone is gone there, too."""
    values = [bytes([65 + n % 26]) * 5000 + b"%03d" % n for n in range(60)]
    ship.secret("rotated", values[0])
    ship.secret("other", TOKEN)
    launch(secrets={"other": None, "rotated": None})
    found: list[str] = []

    def read() -> None:
        body = {"do": "reads", "name": "rotated", "count": 10_000}
        found.extend(httpx.post(f"{ship.address}/predict", json=body, timeout=60).json())

    thread = threading.Thread(target=read)
    thread.start()
    for value in values:
        ship.secret("rotated", value)
        thread.join(0.02)
    thread.join()
    assert {base64.b64decode(each) for each in found} <= set(values)
    eventually(lambda: ship.content("rotated") == values[-1], "the last one is seen")
    (ship.secrets / "other").unlink()
    eventually(lambda: ship.ask("names") == ["rotated"], "it is gone")
    assert ship.ask("print", name="rotated") == "printed"
    assert ship.stop() == 0
    assert not leaks_in(ship.output.encode(), values[-1])


@pytest.mark.parametrize("ship", ["podman-unprivileged"], indirect=True)
def test_names_with_a_dot(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Any name that is allowed is one like others; when gusset has gone, their files go, too."""
    values = {".env": TOKEN + b"-env", ".next": TOKEN + b"-next", "other": TOKEN}
    for name, value in values.items():
        ship.secret(name, value)
    launch()
    assert {name: ship.content(name) for name in values} == values
    ship.secret("other", TOKEN + b"-other")
    eventually(lambda: ship.content("other") == TOKEN + b"-other", "the new value")
    assert ship.ask("names") == [".env", ".next", "other"]
    pid = ship.way("inspect", "--format", "{{.State.Pid}}", ship.container)
    for reaper in [each for each, command in _processes(ship) if b"gusset.containers.reaper" in command]:
        os.kill(reaper, signal.SIGKILL)  # nobody but the sidecar is left for them
    ship.running.kill()
    ship.running.wait()
    eventually(lambda: not os.listdir(Path("/proc", pid, "root", "secrets")), "no file is left")
    for id_ in reversed(ship.left_behind()):
        subprocess.run(["podman", "rm", "-f", id_], capture_output=True, check=False)


@by_sidecar
def test_no_value_lies_anywhere(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Neither in what the engine tells of both containers and the volume, nor in processes, nor on its disk."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    for id_ in ship.left_behind():
        assert not leaks_in(ship.way("inspect", id_).encode(), TOKEN)
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            about = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            assert not leaks_in(about, TOKEN), folder
    _assert_not_on_disk(ship)
    assert ship.stop() == 0
    _assert_not_on_disk(ship)
    assert not leaks_in(ship.output.encode(), TOKEN)


def _assert_not_on_disk(ship: Ship) -> None:
    places = [place for place in Path("/tmp").glob("gusset-*") if place.is_dir()]
    for place in (*places, Path("/var/lib/containers"), Path("/run/containers")):
        for top, folders, names in os.walk(place):
            folders[:] = [
                name for name in folders if not os.path.ismount(Path(top, name))
            ]  # the volume's memory
            for file in (Path(top, name) for name in names):
                with contextlib.suppress(OSError):
                    if file.is_file() and file.stat().st_mtime >= ship.folder.stat().st_mtime:
                        assert not leaks_in(file.read_bytes(), TOKEN), file


@every_way
def test_nothing_is_left_after_a_kill(ship: Ship, launch: Callable[..., Ship]) -> None:
    """`kill -9` of gusset: both containers, the volume, and the way to the engine go."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    assert ship.left_behind()
    assert len(list(_processes(ship))) > 1
    ship.running.kill()
    ship.running.wait()
    eventually(lambda: not ship.left_behind(), "all is gone")
    eventually(lambda: not list(_processes(ship)), "no process is left, either")


def _processes(ship: Ship) -> Iterator[tuple[int, bytes]]:
    """Of this machine, that were started by it: their numbers and command lines."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if b"MARK=" + bytes(ship.tmp) in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_bytes()


@by_sidecar
def test_a_sidecar_that_dies_is_made_anew(ship: Ship, launch: Callable[..., Ship]) -> None:
    """With the container, which is of no use without its secrets and its network."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    first = ship.container
    ship.way("kill", _sidecar(ship))
    eventually(lambda: "The container is ready again." in ship.output, "ready again")
    assert ship.container != first
    assert ship.content("hf_access_token") == TOKEN
    assert ship.stop() == 0
    assert not ship.left_behind()


@pytest.mark.parametrize("ship", ["podman-unprivileged"], indirect=True)
def test_a_sidecar_that_does_not_answer_is_made_anew(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Nor does the container see a part of the value that was on its way to it."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    sidecar = int(ship.way("inspect", "--format", "{{.State.Pid}}", _sidecar(ship)))
    os.kill(sidecar, signal.SIGSTOP)
    ship.secret("hf_access_token", TOKEN + b"-next")
    eventually(lambda: "could not be delivered" in ship.output, "it is given up", 4 * PATIENCE)
    assert ship.content("hf_access_token") == TOKEN
    os.kill(sidecar, signal.SIGCONT)
    eventually(lambda: "The container is ready again." in ship.output, "ready again")
    assert ship.content("hf_access_token") == TOKEN + b"-next"
    assert ship.stop() == 0
    assert not ship.left_behind()


def _sidecar(ship: Ship) -> str:
    there = ship.way.labelled("ps", "--no-trunc")
    return next(id_ for id_, owner, name in there if not name and ship.owns(owner))


@pytest.mark.parametrize("ship", ["docker-unprivileged"], indirect=True)
def test_the_door_asks_for_a_word(ship: Ship, launch: Callable[..., Ship]) -> None:
    """The port that leads to the server is on this machine's loopback, where other accounts may come."""
    launch()
    host, _, port = ship.way("port", _sidecar(ship)).rpartition("-> ")[2].rpartition(":")
    assert host == "127.0.0.1"
    for said in (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"\n", b"$word\n", b"x" * 100_000):
        with socket.create_connection((host, int(port))) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    assert httpx.get(ship.address).json() == {"path": "/health"}


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
        said = repr(sorted(seen)).encode()
        conn.sendall(b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(said) + said)
"""


@pytest.mark.parametrize("ship", ["podman-unprivileged"], indirect=True)  # its containers have ::1
def test_a_server_that_answers_early(ship: Ship, launch: Callable[..., Ship]) -> None:
    """And lets go: what it has not read of the request's body does not become a request of its own."""
    launch(command=f"python3 -c '{BUSY}'")
    sidecar = _sidecar(ship)
    address = ship.way("port", sidecar).rpartition("-> ")[2].split(":")
    body = b"PUT /other HTTP/1.1\r\nhost: x\r\n\r\n" * 5_000
    head = _word(ship, sidecar) + b"\nPOST /predict HTTP/1.1\r\nhost: x\r\n\r\n"
    suppressed = contextlib.suppress(ConnectionError)
    for _ in range(100):
        with socket.create_connection((address[0], int(address[1]))) as sock, suppressed:
            sock.sendall(head + body)
            while sock.recv(1000):
                pass
    assert httpx.get(ship.address).text == "['GET ', 'POST ']"


def _word(ship: Ship, sidecar: str) -> bytes:
    """What its door asks for, as only root can see it."""
    first = ship.way("inspect", "--format", "{{.State.Pid}}", sidecar)
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(folder / "ns/pid") == os.readlink(f"/proc/{first}/ns/pid"):
                environ = (folder / "environ").read_bytes().split(b"\0")
                if found := [each for each in environ if each.startswith(b"word=")]:
                    return found[0].removeprefix(b"word=")
    raise AssertionError("no process has it")


@pytest.mark.parametrize("ship", ["docker-unprivileged"], indirect=True)
def test_the_hosts_network(ship: Ship, images: dict[str, str]) -> None:
    """It is ours, where Docker is on this machine; then no door is needed."""
    ship.secret("hf_access_token", TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = SERVER.replace("8000", str(port))
    ship.configure(images["root"], command, docker_server={"server_port": port})
    ship.start("--network", "host").ready()
    assert ship.content("hf_access_token") == TOKEN
    assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"path": "/health"}


@pytest.mark.parametrize("ship", ["docker-by-ssh"], indirect=True)
def test_the_hosts_network_far_away(ship: Ship, images: dict[str, str]) -> None:
    """It is another machine's: refused."""
    ship.configure(images["root"])
    ship.start("--network", "host").fails(11, "its engine's network, not on this machine's")


@pytest.mark.parametrize("ship", ["docker-by-ssh"], indirect=True)
def test_a_machine_that_cannot_be_reached(ship: Ship, images: dict[str, str]) -> None:
    """By ssh: what it says, and what to try."""
    ship.configure(images["root"])
    elsewhere = ship.way.environ["DOCKER_HOST"].replace("root@", "nobody-known@")
    ship.start(DOCKER_HOST=elsewhere).fails(11, "Permission denied", "log in without asking for a password")
    for url in ("ssh://", "ssh://-oProxyCommand=x", "ssh://host:port", "ssh://user:pass-4711@host"):
        assert "4711" not in ship.start(DOCKER_HOST=url).fails(11, "DOCKER_HOST is no ssh:// address")


def _break(ship: Ship) -> None:
    (tunnel,) = [pid for pid, command in _processes(ship) if b"StreamLocalBindMask" in command]
    os.kill(tunnel, signal.SIGKILL)


@pytest.mark.parametrize("ship", ["docker-by-ssh"], indirect=True)
def test_the_end_while_its_engine_is_away(ship: Ship, images: dict[str, str]) -> None:
    """Stopped while it tries to reach it again, it ends."""
    ours = ship.tmp / "ssh"
    ours.symlink_to(shutil.which("ssh", path=ship.way.environ["PATH"]) or "")
    ship.configure(images["root"])
    ship.start(PATH=f"{ship.tmp}:{ship.way.environ['PATH']}").ready()
    left = ship.left_behind()
    ours.unlink()
    ours.write_text("#!/bin/sh\nsleep 2\necho no such machine >&2\nexit 255\n")
    ours.chmod(0o755)
    _break(ship)
    eventually(lambda: any(b"sleep" in command for _, command in _processes(ship)), "it is tried")
    assert ship.stop() == 0
    assert "Traceback" not in ship.output
    for id_ in left:  # nobody could come to it
        for kind in ("container", "volume"):
            subprocess.run([*ship.way.command, kind, "rm", "-f", id_], capture_output=True, check=False)


@pytest.mark.parametrize("ship", ["docker-by-ssh"], indirect=True)
def test_a_way_that_breaks_is_made_again(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Of the old container nothing stays."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    first = ship.container
    _break(ship)
    eventually(lambda: "The container is ready again." in ship.output, "ready again")
    assert "was restarted" in ship.output
    assert ship.container != first
    assert ship.content("hf_access_token") == TOKEN
    assert ship.stop() == 0
    assert not ship.left_behind()


@pytest.mark.parametrize("ship", ["docker-unprivileged"], indirect=True)
def test_without_the_sidecars_image(ship: Ship, images: dict[str, str]) -> None:
    """It is pulled; where that cannot be, it is said which image is meant and why it is needed."""
    ship.secret("hf_access_token", TOKEN)
    ship.configure(images["root"])
    ship.way("tag", "busybox:stable", "kept")
    ship.way("rmi", "busybox:stable")
    try:
        ship.start().fails(11, "busybox:stable", "cannot be pulled", "holds the secrets")
    finally:
        ship.way("tag", "kept", "busybox:stable")
    assert not ship.left_behind()


@pytest.mark.parametrize("ship", ["docker", "docker-by-ssh"], indirect=True)
def test_what_the_config_asks_for_is_built_in(ship: Ship, images: dict[str, str]) -> None:
    """By Docker's own command."""
    (ship.folder / "data").mkdir()
    (ship.folder / "data" / "weights.txt").write_text("heavy")
    ship.configure(images["user"], build_commands=["id -u > /srv/made"])
    ship.start().ready()
    assert ship.ask("file", path="/app/data/weights.txt") == "heavy"
    assert ship.ask("file", path="/srv/made") == "0\n"


@pytest.mark.parametrize("ship", ["docker", "docker-unprivileged", "podman-unprivileged"], indirect=True)
def test_a_read_only_root(ship: Ship, images: dict[str, str]) -> None:
    """Where the engine makes the file system of each container so: /secrets is there all the same."""
    ship.secret("hf_access_token", TOKEN)
    ship.configure(images["root"])

    def read_only(asked: dict[str, Any]) -> None:
        asked.setdefault("HostConfig", {})["ReadonlyRootfs"] = True

    with engine_with(ship.way.environ["DOCKER_HOST"], read_only) as address:
        ship.start(DOCKER_HOST=address).ready()
        assert ship.ask("names") == ["hf_access_token"]
        assert ship.content("hf_access_token") == TOKEN
        assert json.loads(ship.way("inspect", ship.container))[0]["HostConfig"]["ReadonlyRootfs"] is True
        ship.secret("hf_access_token", TOKEN + b"-next")
        eventually(lambda: ship.content("hf_access_token") == TOKEN + b"-next", "the new value")
        assert ship.stop() == 0
    assert not ship.left_behind()


@pytest.mark.parametrize("ship", ["docker"], indirect=True)
@pytest.mark.parametrize(("option", "count"), [("-1", -1), ("2", 2)])
def test_gpus_are_asked_for(ship: Ship, images: dict[str, str], option: str, count: int) -> None:
    """Of the engine, which says so when it has none."""
    ship.configure(images["root"])
    asked: list[dict[str, Any]] = []
    with engine_with(ship.way.environ["DOCKER_HOST"], asked.append) as address:
        ship.start("--gpus", option, DOCKER_HOST=address).fails(9, "the container does not start", "gpu")
    hosts = [each["HostConfig"] for each in asked if each.get("HostConfig")]
    assert [(gpu["Count"], gpu["Capabilities"]) for gpu in hosts[0]["DeviceRequests"]] == [(count, [["gpu"]])]
    assert not ship.left_behind()
