"""Custom images on a real engine: their secrets, seen from inside, and what is left of them outside."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import Cli, as_ordinary_process, leaks_in
from tests.containers.conftest import SERVER, Ship, forget, podman
from tests.manager.conftest import Manager
from tests.serving.conftest import children, eventually, is_running

pytestmark = pytest.mark.xdist_group("containers")

TOKEN = b"hf_cHVibGljIHRva2Vu-4711"
FORMS = {
    "substituted": 'sh -c "HF_TOKEN=$(cat /secrets/hf_access_token) exec python3 /app/inside.py 8000"',
    "read by the application": "python3 /app/inside.py 8000 from-file",
    "over several lines": "python3\n  /app/inside.py\n  8000 from-file",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_that_people_use(ship: Ship, launch: Callable[..., Ship], form: str) -> None:
    """The server has its token, is called through the proxy, and its output is masked."""
    ship.secret("hf_access_token", TOKEN)
    launch("root", FORMS[form])
    assert ship.ask("token") == TOKEN.decode()
    assert f"started with a token of {len(TOKEN)} characters: ***" in ship.output
    assert not leaks_in(ship.output.encode(), TOKEN)
    assert httpx.get(ship.address).json() == {"path": "/health"}
    assert httpx.get(f"{ship.address}/v1/models/model").json() == {"path": "/ready"}
    assert httpx.get(f"{ship.address}/other?q=1").status_code == 404
    assert ship.stop() == 0
    assert not ship.left_behind()


@pytest.mark.parametrize(
    ("image", "more", "user"),
    [
        ("root", {}, 0),
        ("user", {}, 4321),
        ("number", {}, 4321),
        ("root", {"docker_server": {"run_as_user_id": 5678}}, 5678),
        ("user", {"docker_server": {"run_as_user_id": 5678}}, 5678),
        ("shell-less", {}, 4321),
        ("passwd-less", {}, 0),
        ("own-secrets", {}, 0),
    ],
    ids=["root", "user", "number", "run-as", "run-as-other", "no-shell", "no-passwd", "own-secrets"],
)
def test_what_is_seen_from_inside(
    ship: Ship, launch: Callable[..., Ship], image: str, more: dict[str, object], user: int
) -> None:
    """A regular file 0400 of the server's user, in memory, read-only, with the exact bytes; nothing else."""
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


def test_nobody_else_inside_can_read_it(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Nor can the server write to it."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    assert ship.ask("refused", name="hf_access_token") == ["Read-only file system", 77]


def test_a_rotation_is_seen_whole(ship: Ship, launch: Callable[..., Ship]) -> None:
    """10,000 reads during 200 rotations see one value or another, never a part."""
    values = [bytes([65 + n % 26]) * 5000 + b"%03d" % n for n in range(200)]
    ship.secret("rotated", values[0])
    launch()
    found: list[str] = []
    body = {"do": "reads", "name": "rotated", "count": 10_000}
    with httpx.Client(timeout=60) as client:
        import threading

        def read() -> None:
            found.extend(client.post(f"{ship.address}/predict", json=body).json())

        thread = threading.Thread(target=read)
        thread.start()
        for value in values:
            ship.secret("rotated", value)
            time.sleep(0.01)
        thread.join()
    assert {base64.b64decode(each) for each in found} <= set(values)

    def sees_the_last() -> bool:
        seen = ship.ask("see", name="rotated")
        return isinstance(seen, dict) and base64.b64decode(seen["value"]) == values[-1]

    eventually(sees_the_last, "the last one is seen")
    assert ship.ask("print", name="rotated") == "printed"
    time.sleep(0.5)
    assert not leaks_in(ship.output.encode(), values[-1])


def test_a_secret_of_the_vault_is_followed(ship: Ship, images: dict[str, str], gusset: Cli) -> None:
    """Set, rotated, removed by force: the file follows within moments."""
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN)
    ship.configure(images["root"], secrets={"hf_access_token": None})
    ship.start(from_folder=False).ready()
    assert ship.content("hf_access_token") == TOKEN
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN + b"-next")
    eventually(lambda: ship.content("hf_access_token") == TOKEN + b"-next", "the new value")
    gusset("secret", "delete", "hf_access_token", "--force")
    eventually(lambda: ship.ask("names") == [], "it is gone")
    assert ship.stop() == 0
    assert not ship.left_behind()


def test_a_managers_secret_is_followed(ship: Ship, images: dict[str, str], manager: Manager) -> None:
    """The same from a manager, which one is logged in to."""
    gusset = manager.gusset
    gusset("login", manager.address, input=manager.key.encode())
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN)
    ship.configure(images["root"], secrets={"hf_access_token": None})
    ship.start(from_folder=False).ready()
    assert ship.content("hf_access_token") == TOKEN
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN + b"-next")
    eventually(lambda: ship.content("hf_access_token") == TOKEN + b"-next", "the new value")
    assert ship.stop() == 0
    assert not leaks_in(ship.output.encode(), TOKEN)


def test_a_value_from_the_environment_goes_no_further(ship: Ship, images: dict[str, str]) -> None:
    """Neither to the engine's service, nor to what cleans up, nor into the container's environment."""
    ship.configure(images["root"], secrets={"hf_access_token": None})
    ship.start(TRUSS_SECRET_hf_access_token=TOKEN.decode()).ready()
    assert ship.content("hf_access_token") == TOKEN
    assert not leaks_in(json.dumps(ship.ask("environment")).encode(), TOKEN)
    helpers = children(ship.running.pid)
    assert len(helpers) == 2
    for pid in helpers:
        assert TOKEN not in Path(f"/proc/{pid}/environ").read_bytes()


def test_no_value_lies_anywhere(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Not in what the engine tells or keeps, the image, processes, logs or /tmp; and nothing is left."""
    ship.secret("hf_access_token", TOKEN)
    launch("root", FORMS["read by the application"], environment_variables={"PLAIN": "yes"})
    container = ship.container
    assert container
    told = podman("inspect", container) + podman("history", "--no-trunc", "localhost/gusset-test:root")
    told += podman("image", "inspect", "localhost/gusset-test:root")
    assert not leaks_in(told.encode(), TOKEN)
    environment = ship.ask("environment")
    assert isinstance(environment, dict)
    assert environment["PLAIN"] == "yes"
    assert TOKEN.decode() not in environment.values()
    assert ship.ask("core") == [0, 0]
    assert ship.ask("print", name="hf_access_token") == "printed"
    _assert_nowhere_on_disk(ship)
    assert ship.stop() == 0
    assert not ship.left_behind()
    assert not leaks_in(ship.output.encode(), TOKEN)
    _assert_nowhere_on_disk(ship)


def _assert_nowhere_on_disk(ship: Ship) -> None:
    """The engine keeps no log either, while the container runs or after it. What is older is not read."""
    ours = Path(os.path.commonpath([ship.secrets, ship.tmp])).parents[
        1
    ]  # pytest's own, with the source in it
    for place in ("/var/lib/containers", "/run/containers", "/run/libpod", "/tmp", "/var/tmp"):
        found = subprocess.run(
            [
                "find",
                place,
                "-path",
                str(ours),
                "-prune",
                "-o",
                "-type",
                "f",
                "-newer",
                ship.folder,
                "-print0",
            ],
            capture_output=True,
            check=False,
        ).stdout
        for name in filter(None, found.split(b"\0")):
            with contextlib.suppress(OSError):
                assert not leaks_in(Path(os.fsdecode(name)).read_bytes(), TOKEN), name


def test_nothing_is_left_after_a_kill(ship: Ship, launch: Callable[..., Ship]) -> None:
    """`kill -9` of gusset: container, folder, and a Podman service of its own go."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    assert ship.left_behind()
    helpers = children(ship.running.pid)
    ship.running.kill()
    ship.running.wait()
    eventually(lambda: not ship.left_behind(), "all is gone")
    eventually(lambda: not any(map(is_running, helpers)), "the engine's service and the reaper, too")


def test_a_container_that_ends_is_started_again(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Its end is told, with its last lines; its secrets are there again."""
    ship.secret("hf_access_token", TOKEN)
    launch("root", FORMS["read by the application"])
    first = ship.container
    with pytest.raises((httpx.HTTPError, AssertionError)):
        ship.ask("exit", status=3)
    eventually(lambda: "The container is ready again." in ship.output, "ready again")
    assert "the container ended, with exit status 3" in ship.output
    assert ship.ask("token") == TOKEN.decode()
    assert ship.container != first
    assert ship.stop() == 0
    assert not ship.left_behind()


def test_a_container_that_is_not_alive_is_started_again(ship: Ship, launch: Callable[..., Ship]) -> None:
    """After the threshold, and it is told."""
    launch(runtime={"health_checks": {"restart_threshold_seconds": 1}})
    first = ship.container
    ship.ask("status", path="/health", status=500)
    eventually(lambda: "The container is ready again." in ship.output, "ready again")
    assert "the container was not alive for 1 s" in ship.output
    assert ship.container != first
    assert ship.stop() == 0
    assert not ship.left_behind()


def test_a_container_that_is_not_ready_gets_no_requests(ship: Ship, launch: Callable[..., Ship]) -> None:
    """It lives on, and gets them again when it says so; any status up to 399 is a yes."""
    launch(runtime={"health_checks": {"stop_traffic_threshold_seconds": 1}})
    ship.ask("status", path="/ready", status=503)
    eventually(lambda: httpx.get(f"{ship.address}/other").status_code == 503, "none passes")
    assert httpx.get(f"{ship.address}/other").json()["error"].endswith("Its readiness probe fails.")
    podman("exec", ship.container, "python3", "-c", SAY_READY)
    eventually(lambda: httpx.get(f"{ship.address}/other").status_code == 404, "they pass again")


SAY_READY = """
import json, urllib.request
body = json.dumps(dict(do="status", path="/ready", status=302)).encode()
urllib.request.urlopen("http://127.0.0.1:8000/ask", body)
"""


def test_the_end_while_it_starts(ship: Ship, images: dict[str, str]) -> None:
    """SIGTERM before it is ready: it is stopped and removed as well."""
    ship.secret("hf_access_token", TOKEN)
    ship.configure(images["root"], f"{SERVER} never-ready")
    ship.start()
    eventually(lambda: "thinking about it" in ship.output, "it runs")
    assert ship.stop() == 0
    assert not ship.left_behind()


def test_a_second_signal_kills(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Whoever is in a hurry does not wait for a server that ignores SIGTERM."""
    launch("root", f"{SERVER} stubborn")
    ship.running.send_signal(signal.SIGTERM)
    eventually(lambda: "A second signal stops at once" in ship.output, "it has heard")
    ship.running.send_signal(signal.SIGTERM)
    assert ship.running.wait(60) == 0
    assert not ship.left_behind()


def test_the_next_start_is_the_second_net(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Where all that cleans up was killed as well."""
    ship.secret("hf_access_token", TOKEN)
    launch()
    first = ship.running.pid
    for pid in [*children(first), first]:
        os.kill(pid, signal.SIGKILL)
    ship.running.wait()
    assert len(ship.left_behind()) == 2
    ship.start().ready()
    assert not ship.left_behind(first)
    assert ship.stop() == 0
    assert not ship.left_behind()


def test_an_engine_that_is_started_anew(ship: Ship, images: dict[str, str]) -> None:
    """While it is away it is asked again; then there is one container, the old one is removed."""
    address = f"unix://{ship.tmp}/engine.sock"
    start = ["podman", "system", "service", "--time=0", address]
    service = subprocess.Popen(start)
    try:
        eventually((ship.tmp / "engine.sock").exists, "the engine answers")
        ship.secret("hf_access_token", TOKEN)
        ship.configure(images["root"], FORMS["read by the application"])
        ship.start(DOCKER_HOST=address).ready()
        service.kill()
        service.wait()
        eventually(lambda: "does not answer any more" in ship.output, "it is told")
        (ship.tmp / "engine.sock").unlink(missing_ok=True)
        service = subprocess.Popen(start)
        eventually(lambda: "ready again" in ship.output, "ready again")
        assert ship.ask("token") == TOKEN.decode()
        assert len(ship.left_behind()) == 2  # one container, one folder
        assert ship.stop() == 0
        assert not ship.left_behind()
    finally:
        service.terminate()
        service.wait()


def test_an_engine_by_its_address(ship: Ship, images: dict[str, str]) -> None:
    """DOCKER_HOST names it, whatever it is."""
    socket = f"unix://{ship.tmp}/engine.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", socket])
    try:
        eventually((ship.tmp / "engine.sock").exists, "the engine answers")
        ship.secret("hf_access_token", TOKEN)
        ship.configure(images["root"], FORMS["read by the application"])
        ship.start(DOCKER_HOST=socket).ready()
        assert ship.ask("token") == TOKEN.decode()
        assert ship.stop() == 0
        assert service.poll() is None
        assert not ship.left_behind()
    finally:
        service.terminate()
        service.wait()


def test_a_stubborn_server_is_killed(ship: Ship, launch: Callable[..., Ship]) -> None:
    """One that ignores SIGTERM."""
    launch("root", f"{SERVER} stubborn")
    assert ship.stop() == 0
    assert not ship.left_behind()


def test_resources_are_limits(ship: Ship, launch: Callable[..., Ship]) -> None:
    launch(resources={"cpu": "500m", "memory": "256Mi"})
    about = podman("inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", ship.container)
    assert about == f"{256 * 2**20} 500000000"


# What can be wrong.


def test_a_secret_that_the_command_reads(ship: Ship, images: dict[str, str]) -> None:
    """Undeclared or without a value: it does not start, whatever is allowed to be missing."""
    ship.secret("hf_access_token", TOKEN)
    ship.configure(images["root"], "sh -c 'X=$(cat /secrets/undeclared) Y=$(cat /secrets/absent) server'")
    text = (ship.folder / "config.yaml").read_text().replace("secrets:\n", "secrets:\n  absent: null\n")
    (ship.folder / "config.yaml").write_text(text)
    ship.start("--allow-missing", "all")
    ship.fails(5, "/secrets/undeclared: config.yaml does not declare it", "/secrets/absent: it has no value")


def test_a_missing_secret(ship: Ship, images: dict[str, str]) -> None:
    ship.configure(images["root"], secrets={"absent": None})
    ship.start()
    ship.fails(5, "absent", "gusset secret set absent")


@pytest.mark.parametrize(
    ("image", "command", "texts"),
    [
        (
            "root",
            "sh -c 'cat /secrets/hf_access_token; echo; exit 4'",
            ("before it was ready, with exit status 4", "***"),
        ),
        ("root", "no-such-command", ("no-such-command", "start_command")),
        ("root", f"{SERVER} never-ready", ("was not ready after 3 s", "thinking about it", "server_port")),
        ("stranger", SERVER, ("nobody-knows-me",)),
        ("shell-less", "sh -c 'true'", ("sh", "There may be no shell in it")),
    ],
    ids=["ends-at-once", "no-such-command", "never-ready", "no-such-user", "no-shell"],
)
def test_a_container_that_does_not_become_ready(
    ship: Ship, images: dict[str, str], image: str, command: str, texts: tuple[str, ...]
) -> None:
    """Ends `serve`, with what happened and the last lines, masked; nothing is left."""
    ship.secret("hf_access_token", TOKEN)
    health = {"health_checks": {"startup_threshold_seconds": 3}}
    ship.configure(images[image], command, runtime=health)
    ship.start()
    ship.fails(9, *texts)
    assert not leaks_in(ship.output.encode(), TOKEN)
    assert "Traceback" not in ship.output
    assert not ship.left_behind()


def test_no_such_image(ship: Ship) -> None:
    ship.configure("localhost/gusset-test:nowhere")
    ship.start()
    ship.fails(11, "the image localhost/gusset-test:nowhere", "cannot be pulled")


def test_another_machines_image(ship: Ship, images: dict[str, str]) -> None:
    podman(
        "build",
        "-q",
        "--arch",
        "s390x",
        "-t",
        "localhost/gusset-test:foreign",
        "-f",
        "-",
        input=b"FROM scratch\nENV A=b\n",
    )
    ship.configure("localhost/gusset-test:foreign")
    ship.start()
    ship.fails(11, "is for s390x")


def test_no_engine(ship: Ship, images: dict[str, str]) -> None:
    ship.configure(images["root"])
    ship.start(DOCKER_HOST="unix:///nowhere/docker.sock")
    ship.fails(11, "no container engine responds", "unix:///nowhere/docker.sock")


def test_an_engine_that_one_may_not_use(ship: Ship, images: dict[str, str]) -> None:
    """Root without its privileges is an account like any other."""
    address = ship.tmp / "engine.sock"
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(address))
        closed.listen()
        os.chown(address, 4711, 4711)
        os.chmod(address, 0o600)
        ship.configure(images["root"])
        ship.start(before=as_ordinary_process(), DOCKER_HOST=f"unix://{address}")
        ship.fails(11, "no container engine responds", "Permission denied", "group docker")


def test_an_engine_elsewhere(ship: Ship) -> None:
    """Its memory is not ours to put secrets into."""
    ship.configure("localhost/gusset-test:root")
    ship.start(DOCKER_HOST="tcp://192.0.2.1:2375").fails(11, "an engine on another machine")


def test_a_used_port(ship: Ship, launch: Callable[..., Ship], images: dict[str, str]) -> None:
    """Of ours; and with the host's network, of the container's."""
    launch()
    port = ship.address.rpartition(":")[2]
    done = subprocess.run(["python3", "-c", "pass"], check=False)
    assert done.returncode == 0
    again = Ship.__new__(Ship)
    again.__dict__.update(ship.__dict__, tmp=ship.tmp / "again", process=None)
    again.tmp.mkdir()
    again.start("--port", port).fails(11, f"port {port}")


def test_the_hosts_network(ship: Ship, images: dict[str, str]) -> None:
    """Only when asked, and never on 8080."""
    ship.configure(images["root"], "python3 /app/inside.py 8080", docker_server={"server_port": 8080})
    ship.start("--network", "host").fails(11, "8080 clashes")
    ship.configure(images["root"], "python3 /app/inside.py 18765", docker_server={"server_port": 18765})
    ship.start("--network", "host").ready()
    assert httpx.get("http://127.0.0.1:18765/health").status_code == 200
    assert ship.stop() == 0
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 18765))
        other.listen()
        ship.start("--network", "host").fails(11, "18765 clashes")


def test_every_missing_key_at_once(ship: Ship) -> None:
    (ship.folder / "config.yaml").write_text("base_image: {image: x}\ndocker_server: {start_command: y}\n")
    ship.start()
    ship.fails(3, "server_port", "predict_endpoint", "readiness_endpoint", "liveness_endpoint")


def test_kill_of_the_container_from_outside(ship: Ship, launch: Callable[..., Ship]) -> None:
    """As an out-of-memory kill would: told and restarted."""
    launch()
    pid = int(podman("inspect", "--format", "{{.State.Pid}}", ship.container))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "ready again" in ship.output, "ready again")
    assert "exit status 137" in ship.output


def test_other_folders_called_secrets_are_not_ours(ship: Ship, launch: Callable[..., Ship]) -> None:
    """A command may read /run/secrets/x or ./secrets/x: only /secrets is checked."""
    launch("root", f"sh -c 'cat /run/secrets/x ./secrets/y; exec {SERVER}'")


def test_the_key_may_be_written_otherwise(ship: Ship, launch: Callable[..., Ship]) -> None:
    """YAML has more than one way to write a key, and JSON is YAML."""
    ship.configure("localhost/gusset-test:root")
    file = ship.folder / "config.yaml"
    file.write_text(json.dumps(yaml.safe_load(file.read_text())))
    ship.start().ready()
    assert ship.ask("environment")


def test_options_that_do_not_go_with_an_image(ship: Ship) -> None:
    """They are refused rather than without effect."""
    ship.configure("localhost/gusset-test:root")
    ship.start("--workers", "2").fails(2, "--workers and --reload are for Python models")


def test_check_sees_what_the_command_reads(ship: Ship, gusset: Cli) -> None:
    """Before anything is served."""
    ship.configure("localhost/gusset-test:root", "sh -c 'X=$(cat /secrets/undeclared) server'")
    done = gusset("check", str(ship.folder), status=4)
    assert b"the command reads /secrets/undeclared, which is not declared" in done.stdout + done.stderr


# What is built into an image first.


def test_what_the_config_asks_for_is_built_in(ship: Ship, images: dict[str, str]) -> None:
    """Files of `data` and `packages`, commands of several lines; the user of the base image stays."""
    ship.secret("hf_access_token", TOKEN)
    (ship.folder / "data").mkdir()
    (ship.folder / "data" / "weights.txt").write_text("heavy")
    (ship.folder / "packages").mkdir()
    (ship.folder / "packages" / "ours.py").write_text("NAME = 'ours'")
    commands = [
        "cat > /srv/made <<'END'\nit's \"made\"\nEND",
        "python3 -c 'import ours' && id -u >> /srv/made",
    ]
    ship.configure(images["user"], build_commands=commands)
    ship.start().ready()
    assert ship.ask("file", path="/app/data/weights.txt") == "heavy"
    assert ship.ask("file", path="/packages/ours.py") == "NAME = 'ours'"
    assert ship.ask("file", path="/srv/made") == 'it\'s "made"\n0\n'
    seen = ship.ask("see", name="hf_access_token")
    assert isinstance(seen, dict)
    assert seen["me"] == 4321
    built = ship.image
    assert ship.stop() == 0
    for tell in ("inspect", "history"):
        assert not leaks_in(podman("image", tell, built).encode(), TOKEN)
    forget(built)


def test_models_of_the_same_name_have_images_of_their_own(tmp_path: Path, images: dict[str, str]) -> None:
    """Built at the same time, too."""
    ships = []
    try:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            ships.append(Ship(tmp_path / name))
            ships[-1].configure(images["root"], build_commands=[f"echo {name} > /srv/made"])
            ships[-1].start()
        assert [ship.ready().ask("file", path="/srv/made") for ship in ships] == ["one\n", "other\n"]
        assert all(
            podman("image", "inspect", "--format", "{{len .RepoTags}}", ship.image) == "1" for ship in ships
        )
    finally:
        for ship in ships:
            built = ship.image
            assert ship.stop() == 0
            forget(built)


def test_no_build_runs_the_image_as_it_is(ship: Ship, launch: Callable[..., Ship]) -> None:
    """Whatever else the config asks for; without a command the image's own is run."""
    launch("starts-itself", None, docker_server={"no_build": True}, build_commands=["false"])
    assert ship.ask("environment")


def test_requirements_are_installed(ship: Ship, images: dict[str, str], tmp_path: Path) -> None:
    """By the image's own Python; here from a folder of the model's, so that no registry is needed."""
    package = ship.folder / "packages" / "wheels"
    package.mkdir(parents=True)
    _wheel(package, "tiny_thing", "1.2")
    requirements = ["/packages/wheels/tiny_thing-1.2-py3-none-any.whl"]
    ship.configure(
        images["root"],
        f"sh -c 'python3 -c \"import tiny_thing\" && exec {SERVER}'",
        requirements=requirements,
    )
    built = ship.start().ready().image
    assert ship.stop() == 0
    forget(built)


def test_a_build_that_fails(ship: Ship, images: dict[str, str]) -> None:
    """Ends `serve` with the last lines."""
    ship.configure(images["root"], build_commands=["echo about to fail; exit 3"])
    ship.start().fails(9, "the image cannot be built", "about to fail", "build_commands")
    assert "Traceback" not in ship.output


def test_secrets_of_builds_are_refused(ship: Ship, images: dict[str, str]) -> None:
    ship.configure(images["root"], build={"secret_to_path_mapping": {"hf_access_token": "/token"}})
    ship.start().fails(3, "secret_to_path_mapping", "builds are not given secrets yet")


def _wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with one empty module."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{about}/RECORD", "")
