"""Custom images on a real engine: their secrets in the container, and what remains outside after a run."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import Cli, as_ordinary_process, leaks_in
from tests.containers.conftest import SERVER, ServedImage, files_newer_than, podman
from tests.manager.conftest import Manager
from tests.serving.conftest import children, eventually, is_running

TOKEN = b"hf_cHVibGljIHRva2Vu-4711"
FORMS = {
    "substituted": 'sh -c "HF_TOKEN=$(cat /secrets/hf_access_token) exec python3 /app/inside.py 8000"',
    "read by the application": "python3 /app/inside.py 8000 from-file",
    "over several lines": "python3\n  /app/inside.py\n  8000 from-file",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_server_gets_its_token_in_each_usual_way(
    served: ServedImage, launch: Callable[..., ServedImage], form: str
) -> None:
    """Its start command or its code reads the file; its output is masked, and the proxy routes to it."""
    served.secret("hf_access_token", TOKEN)
    launch("root", FORMS[form])
    assert served.call("token") == TOKEN.decode()
    eventually(lambda: f"started with a token of {len(TOKEN)} characters: ***" in served.output)
    assert not leaks_in(served.output.encode(), TOKEN)
    assert httpx.get(served.address).json() == {"path": "/health"}
    assert httpx.get(f"{served.address}/v1/models/model").json() == {"path": "/ready"}
    assert httpx.get(f"{served.address}/other?q=1").status_code == 404
    assert served.stop() == 0
    assert not served.left_behind()


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
def test_a_secret_is_a_read_only_file_in_memory_with_exact_bytes(
    served: ServedImage, launch: Callable[..., ServedImage], image: str, more: dict[str, object], user: int
) -> None:
    """It is mode 0400 and owned by the server's user, and /secrets contains nothing else."""
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


def test_no_other_user_in_the_container_can_read_a_secret(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """Nor can the server write to its file."""
    served.secret("hf_access_token", TOKEN)
    launch()
    assert served.call("refused", name="hf_access_token") == ["Read-only file system", 77]


def test_a_reader_never_sees_a_part_of_a_new_value(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """10,000 reads during 200 rotations return whole values."""
    values = [bytes([65 + n % 26]) * 5000 + b"%03d" % n for n in range(200)]
    served.secret("rotated", values[0])
    launch()
    found: list[str] = []
    body = {"do": "reads", "name": "rotated", "count": 10_000}
    with httpx.Client(timeout=60) as client:
        import threading

        def read() -> None:
            found.extend(client.post(f"{served.address}/predict", json=body).json())

        thread = threading.Thread(target=read)
        thread.start()
        for value in values:
            served.secret("rotated", value)
            thread.join(0.01)
        thread.join()
    assert {base64.b64decode(each) for each in found} <= set(values)

    def reads_last_value() -> bool:
        described = served.call("describe", name="rotated")
        return isinstance(described, dict) and base64.b64decode(described["value"]) == values[-1]

    eventually(reads_last_value, "the last value is read")
    assert served.call("print", name="rotated") == "printed"
    eventually(lambda: "***" in served.output, "the print is forwarded")
    assert not leaks_in(served.output.encode(), values[-1])


def test_a_change_in_the_vault_reaches_the_container(
    served: ServedImage, images: dict[str, str], gusset: Cli
) -> None:
    """A new value, and the removal by force, within moments."""
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN)
    served.configure(images["root"], secrets={"hf_access_token": None})
    served.start(from_folder=False).ready()
    assert served.content("hf_access_token") == TOKEN
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN + b"-next")
    eventually(lambda: served.content("hf_access_token") == TOKEN + b"-next", "the new value")
    gusset("secret", "delete", "hf_access_token", "--force")
    eventually(lambda: served.call("names") == [], "the file is removed")
    assert served.stop() == 0
    assert not served.left_behind()


def test_a_value_that_a_container_prints_is_in_the_audit_log(
    served: ServedImage, images: dict[str, str], gusset: Cli
) -> None:
    """Evidence that the image leaks, in sums."""
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN)
    command = FORMS["read by the application"]
    served.configure(images["root"], command, secrets={"hf_access_token": None})
    served.start(from_folder=False).ready()
    assert served.stop() == 0
    shown = json.loads(gusset("audit", "show", "--output", "json").stdout)["records"]
    [record] = [each for each in shown if each["action"] == "secret.masked"]
    [found] = record["details"]["times"].values()
    assert list(found) == ["plain, stdout"]


def test_a_change_at_a_manager_reaches_the_container(
    served: ServedImage, images: dict[str, str], manager: Manager
) -> None:
    """As from the vault."""
    gusset = manager.gusset
    gusset("login", manager.address, input=manager.key.encode())
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN)
    served.configure(images["root"], secrets={"hf_access_token": None})
    served.start(from_folder=False).ready()
    assert served.content("hf_access_token") == TOKEN
    gusset("secret", "set", "hf_access_token", "--exact", input=TOKEN + b"-next")
    eventually(lambda: served.content("hf_access_token") == TOKEN + b"-next", "the new value")
    assert served.stop() == 0
    assert not leaks_in(served.output.encode(), TOKEN)


def test_the_secret_of_a_build_is_not_waited_for_once_the_image_is_built(
    served: ServedImage, images: dict[str, str], manager: Manager
) -> None:
    """The process that serves the image neither has it any more nor follows it."""
    gusset = manager.gusset
    gusset("login", manager.address, input=manager.key.encode())
    for name in ("hf_access_token", "build_token"):
        gusset("secret", "set", name, "--exact", input=TOKEN)
    more = {"build": {"secret_to_path_mapping": {"build_token": "/run/token"}}}
    served.configure(
        images["root"],
        build_commands=["sha256sum /run/token > /srv/made"],
        secrets={"hf_access_token": None},
        **more,
    )
    served.start(from_folder=False).ready()
    built = served.image
    for name in ("build_token", "hf_access_token"):
        gusset("secret", "set", name, "--exact", "--wait", input=TOKEN + b"-next")
    assert served.content("hf_access_token") == TOKEN + b"-next"
    assert served.stop() == 0
    podman.remove_image(built)


def test_only_callers_may_use_an_image_and_their_keys_are_rotated_live(
    served: ServedImage, images: dict[str, str]
) -> None:
    """The container gets no key, neither as a file nor with a request; the counts are gusset's own metrics."""
    served.configure(images["root"])
    first, second = "caller-Zx81QqLmN4vTtYbWs93K", "caller-7GhTrW2bNpQx5LkMvC9s"
    served.secret("app", first.encode())
    served.start("--callers", "app").ready()

    def status(key: str | None, path: str = "/predict") -> int:
        headers = {} if key is None else {"authorization": f"Api-Key {key}"}
        body = json.dumps({"do": "describe", "name": "app"})
        if path == "/predict":
            return httpx.post(served.address + path, headers=headers, content=body, timeout=60).status_code
        return httpx.get(served.address + path, headers=headers, timeout=60).status_code

    container = served.container
    assert podman("exec", container, "ls", "/secrets") == ""
    assert [status(None, path) for path in ("/", "/v1/models/model")] == [200, 200]
    assert [status(None), status(second), status(None, "/other")] == [401, 401, 401]
    assert status(first, "/other") == 404
    served.secret("app", second.encode())
    eventually(lambda: status(second, "/other") == 404, "the new key")
    assert status(first, "/other") == 401
    assert served.container == container
    headers = {"authorization": f"Bearer {second}"}
    exposition = httpx.get(f"{served.address}/gusset/metrics", headers=headers).text
    assert re.search(r'gusset_caller_requests_total\{caller="app"\} [3-9]', exposition)
    assert re.search(r"gusset_caller_refused_total [4-9]", exposition)
    assert status(None, "/gusset/metrics") == 401
    assert served.stop() == 0
    assert not leaks_in(served.output.encode(), first.encode())


@pytest.mark.parametrize(("host", "is_exposed"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_server_that_can_be_called_past_gusset_is_warned_about_if_it_has_callers(
    served: ServedImage, images: dict[str, str], host: str, is_exposed: bool
) -> None:
    command = f"python3 -m http.server 8000 --bind {host} --directory /srv"
    at_root = dict.fromkeys(("predict_endpoint", "readiness_endpoint", "liveness_endpoint"), "/")
    served.configure(images["root"], command, docker_server=at_root)
    served.secret("app", b"caller-Zx81QqLmN4vTtYbWs93K")
    served.start("--callers", "app").ready()
    assert httpx.get(f"{served.address}/other").status_code == 401
    if is_exposed:
        eventually(lambda: "Let it listen on 127.0.0.1 only" in served.output, "the warning")
        found = re.search(r"without a key, at (\S+:8000)\.", served.output)
        assert found
        assert httpx.get(f"http://{found[1]}/").status_code == 200
    assert served.stop() == 0
    assert ("without a key, at" in served.output) is is_exposed


def test_a_value_from_the_environment_is_not_inherited(served: ServedImage, images: dict[str, str]) -> None:
    """Neither by the engine's service, nor by the reaper, nor by the container's environment."""
    served.configure(images["root"], secrets={"hf_access_token": None})
    served.start(TRUSS_SECRET_hf_access_token=TOKEN.decode()).ready()
    assert served.content("hf_access_token") == TOKEN
    assert not leaks_in(json.dumps(served.call("environment")).encode(), TOKEN)
    helpers = children(served.running.pid)
    assert len(helpers) == 2
    for pid in helpers:
        assert TOKEN not in Path(f"/proc/{pid}/environ").read_bytes()


def test_no_value_is_stored_outside_of_secrets(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """Not in what the engine reports or stores, nor in the image, processes, logs or /tmp."""
    served.secret("hf_access_token", TOKEN)
    launch("root", FORMS["read by the application"], environment_variables={"PLAIN": "yes"})
    container = served.container
    assert container
    reported = podman("inspect", container) + podman("history", "--no-trunc", "localhost/gusset-test:root")
    reported += podman("image", "inspect", "localhost/gusset-test:root")
    assert not leaks_in(reported.encode(), TOKEN)
    environment = served.call("environment")
    assert isinstance(environment, dict)
    assert environment["PLAIN"] == "yes"
    assert TOKEN.decode() not in environment.values()
    assert served.call("core") == [0, 0]
    assert served.call("print", name="hf_access_token") == "printed"
    _assert_nowhere_on_disk(served)
    assert served.stop() == 0
    assert not served.left_behind()
    assert not leaks_in(served.output.encode(), TOKEN)
    _assert_nowhere_on_disk(served)


def _assert_nowhere_on_disk(served: ServedImage) -> None:
    """Search all files that are newer than the run, which include the engine's logs."""
    excluded = served.tmp.parents[1]  # pytest's folder, which contains the source
    roots = ("/var/lib/containers", "/run/containers", "/run/libpod", "/tmp", "/var/tmp")
    for file in files_newer_than(served.folder, *roots, tests=("-path", str(excluded), "-prune", "-o")):
        with contextlib.suppress(OSError):
            assert not leaks_in(file.read_bytes(), TOKEN), file


def test_nothing_is_left_after_a_kill(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """`kill -9` of gusset: the container, the folder and its Podman service are removed."""
    served.secret("hf_access_token", TOKEN)
    launch()
    assert served.left_behind()
    helpers = children(served.running.pid)
    served.running.kill()
    served.running.wait()
    eventually(lambda: not served.left_behind(), "nothing is left")
    eventually(lambda: not any(map(is_running, helpers)), "the engine's service and the reaper end")


def test_a_container_that_ends_is_restarted(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """Its end is reported, and the new container has its secrets."""
    served.secret("hf_access_token", TOKEN)
    launch("root", FORMS["read by the application"])
    first = served.container
    with pytest.raises((httpx.HTTPError, AssertionError)):
        served.call("exit", status=3)
    eventually(lambda: "The container is ready again." in served.output, "ready again")
    assert "the container ended, with exit status 3" in served.output
    assert served.call("token") == TOKEN.decode()
    assert served.container != first
    assert served.stop() == 0
    assert not served.left_behind()


def test_the_end_of_a_container_that_closed_its_output_is_noticed(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """It is served as before, for its output tells nothing about the server."""
    launch("root", f"sh -c 'exec {SERVER} >&- 2>&-'")
    first = served.container
    with pytest.raises((httpx.HTTPError, AssertionError)):
        served.call("exit", status=3)
    eventually(lambda: "The container is ready again." in served.output, "ready again")
    assert "the container ended, with exit status 3" in served.output
    assert served.container != first


def test_the_end_of_a_container_is_noticed_though_nobody_reads_the_output(
    served: ServedImage, images: dict[str, str]
) -> None:
    """As when a program that collects logs hangs: what the container printed is forwarded when it goes on."""
    served.secret("text", b"a-word-that-is-printed " * 1000)
    served.configure(images["root"])
    sink = served.tmp / "sink"
    os.mkfifo(sink)
    reader = os.open(sink, os.O_RDWR | os.O_NONBLOCK)
    try:
        served.start(before=["sh", "-c", f'exec "$@" >{sink}', "sh"]).ready()
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(reader, bytes(4096))
        assert served.call("print", name="text") == "printed"
        with pytest.raises((httpx.HTTPError, AssertionError)):
            served.call("exit", status=3)
        eventually(lambda: "with exit status 3" in served.output, "the end is noticed")
    finally:
        os.close(reader)
        served.running.kill()
        served.running.wait()
    eventually(lambda: not served.left_behind(), "nothing is left")


def test_a_container_without_liveness_is_restarted(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """After the threshold, and it is reported."""
    launch(runtime={"health_checks": {"restart_threshold_seconds": 1}})
    first = served.container
    served.call("status", path="/health", status=500)
    eventually(lambda: "The container is ready again." in served.output, "ready again")
    assert "the container was not alive for 1 s" in served.output
    assert served.container != first
    assert served.stop() == 0
    assert not served.left_behind()


def test_a_container_that_is_not_ready_gets_no_requests(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """It is not restarted, and gets requests again when it is ready; any status below 400 means ready."""
    launch(runtime={"health_checks": {"stop_traffic_threshold_seconds": 1}})
    served.call("status", path="/ready", status=503)
    eventually(lambda: httpx.get(f"{served.address}/other").status_code == 503, "no request is forwarded")
    assert httpx.get(f"{served.address}/other").json()["error"].endswith("Its readiness probe fails.")
    podman("exec", served.container, "python3", "-c", BECOME_READY)
    eventually(
        lambda: httpx.get(f"{served.address}/other").status_code == 404, "requests are forwarded again"
    )


BECOME_READY = """
import json, urllib.request
body = json.dumps(dict(do="status", path="/ready", status=302)).encode()
urllib.request.urlopen("http://127.0.0.1:8000/command", body)
"""


def test_sigterm_before_readiness_removes_the_container(served: ServedImage, images: dict[str, str]) -> None:
    """SIGTERM stops it as it stops a container that is ready."""
    served.secret("hf_access_token", TOKEN)
    served.configure(images["root"], f"{SERVER} never-ready")
    served.start()
    eventually(lambda: "thinking about it" in served.output, "it runs")
    assert served.stop() == 0
    assert not served.left_behind()


def test_a_second_signal_kills_the_container_at_once(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """Without waiting for a server that ignores SIGTERM."""
    launch("root", f"{SERVER} stubborn")
    served.running.send_signal(signal.SIGTERM)
    eventually(lambda: "A second signal stops at once" in served.output, "the first signal is handled")
    served.running.send_signal(signal.SIGTERM)
    assert served.running.wait(60) == 0
    assert not served.left_behind()


def test_the_next_start_removes_what_a_killed_run_has_left(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """When the reaper was killed as well."""
    served.secret("hf_access_token", TOKEN)
    launch()
    first = served.running.pid
    assert len(served.left_behind()) == 2  # once it is killed, another test's start may remove them, too
    for pid in [*children(first), first]:
        os.kill(pid, signal.SIGKILL)
    served.running.wait()
    served.start().ready()
    assert not served.left_behind(first)
    assert served.stop() == 0
    assert not served.left_behind()


def test_an_engine_that_restarts_gets_one_new_container(served: ServedImage, images: dict[str, str]) -> None:
    """gusset retries while it is away, then removes the old container and starts one."""
    address = f"unix://{served.tmp}/engine.sock"
    start = ["podman", "system", "service", "--time=0", address]
    service = subprocess.Popen(start)
    try:
        eventually((served.tmp / "engine.sock").exists, "the engine listens")
        served.secret("hf_access_token", TOKEN)
        served.configure(images["root"], FORMS["read by the application"])
        served.start(DOCKER_HOST=address).ready()
        service.kill()
        service.wait()
        eventually(lambda: "the container engine does not respond" in served.output, "it is reported")
        (served.tmp / "engine.sock").unlink(missing_ok=True)
        service = subprocess.Popen(start)
        eventually(lambda: "ready again" in served.output, "ready again")
        assert served.call("token") == TOKEN.decode()
        assert len(served.left_behind()) == 2  # one container, one folder
        assert served.stop() == 0
        assert not served.left_behind()
    finally:
        service.terminate()
        service.wait()


def test_docker_host_names_the_engine(served: ServedImage, images: dict[str, str]) -> None:
    """It is used, and it is not stopped with gusset."""
    socket = f"unix://{served.tmp}/engine.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", socket])
    try:
        eventually((served.tmp / "engine.sock").exists, "the engine listens")
        served.secret("hf_access_token", TOKEN)
        served.configure(images["root"], FORMS["read by the application"])
        served.start(DOCKER_HOST=socket).ready()
        assert served.call("token") == TOKEN.decode()
        assert served.stop() == 0
        assert service.poll() is None
        assert not served.left_behind()
    finally:
        service.terminate()
        service.wait()


def test_a_server_that_ignores_sigterm_is_killed(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """After the grace period, so that `serve` ends."""
    launch("root", f"{SERVER} stubborn")
    assert served.stop() == 0
    assert not served.left_behind()


def test_resources_are_limits(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """`resources.cpu` and `resources.memory` of the config."""
    launch(resources={"cpu": "500m", "memory": "256Mi"})
    about = podman("inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", served.container)
    assert about == f"{256 * 2**20} 500000000"


# Errors.


def test_a_command_that_reads_a_missing_secret_is_refused(
    served: ServedImage, images: dict[str, str]
) -> None:
    """Undeclared or without a value; `--allow-missing` does not change that."""
    served.secret("hf_access_token", TOKEN)
    served.configure(images["root"], "sh -c 'X=$(cat /secrets/undeclared) Y=$(cat /secrets/absent) server'")
    text = (served.folder / "config.yaml").read_text().replace("secrets:\n", "secrets:\n  absent: null\n")
    (served.folder / "config.yaml").write_text(text)
    served.start("--allow-missing", "all")
    served.fails(
        5, "/secrets/undeclared: config.yaml does not declare it", "/secrets/absent: it has no value"
    )


def test_a_missing_secret_is_refused(served: ServedImage, images: dict[str, str]) -> None:
    """The message says how to set it."""
    served.configure(images["root"], secrets={"absent": None})
    served.start()
    served.fails(5, "absent", "gusset secret set absent")


@pytest.mark.parametrize(
    ("image", "command", "texts"),
    [
        (
            "root",
            "sh -c 'cat /secrets/hf_access_token; echo; exit 4'",
            ("before it was ready, with exit status 4", "***"),
        ),
        ("root", "no-such-command", ("no-such-command", "start_command")),
        ("root", f"{SERVER} never-ready", ("was not ready after 15 s", "thinking about it", "server_port")),
        ("unknown-user", SERVER, ("nobody-knows-me",)),
        ("shell-less", "sh -c 'true'", ("sh", "There may be no shell in it")),
    ],
    ids=["ends-at-once", "no-such-command", "never-ready", "no-such-user", "no-shell"],
)
def test_a_container_that_does_not_become_ready_ends_serve(
    served: ServedImage, images: dict[str, str], image: str, command: str, texts: tuple[str, ...]
) -> None:
    """The message says what happened, with the last lines, masked; nothing is left."""
    served.secret("hf_access_token", TOKEN)
    health = {"health_checks": {"startup_threshold_seconds": 15}}
    served.configure(images[image], command, runtime=health)
    served.start()
    served.fails(9, *texts)
    assert not leaks_in(served.output.encode(), TOKEN)
    assert "Traceback" not in served.output
    assert not served.left_behind()


def test_an_image_that_does_not_exist_is_reported(served: ServedImage) -> None:
    """With the reason why it cannot be pulled."""
    served.configure("localhost/gusset-test:nowhere")
    served.start()
    served.fails(11, "the image localhost/gusset-test:nowhere", "cannot be pulled")


def test_an_image_for_another_architecture_is_refused(served: ServedImage, images: dict[str, str]) -> None:
    """Rather than to fail with an exec format error."""
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
    served.configure("localhost/gusset-test:foreign")
    served.start()
    served.fails(11, "is for s390x")


def test_an_engine_that_does_not_respond_is_reported(served: ServedImage, images: dict[str, str]) -> None:
    """With the address that was tried."""
    served.configure(images["root"])
    served.start(DOCKER_HOST="unix:///nowhere/docker.sock")
    served.fails(11, "no container engine responds", "unix:///nowhere/docker.sock")


def test_an_engine_without_permission_is_reported(served: ServedImage, images: dict[str, str]) -> None:
    """With what to do about it. Root without its capabilities stands for an ordinary account."""
    address = served.tmp / "engine.sock"
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(address))
        closed.listen()
        os.chown(address, 4711, 4711)
        os.chmod(address, 0o600)
        served.configure(images["root"])
        served.start(before=as_ordinary_process(), DOCKER_HOST=f"unix://{address}")
        served.fails(11, "no container engine responds", "Permission denied", "group docker")


def test_an_engine_over_tcp_is_refused(served: ServedImage) -> None:
    """It has no encryption; the message names ssh."""
    served.configure("localhost/gusset-test:root")
    served.start(DOCKER_HOST="tcp://192.0.2.1:2375").fails(11, "an engine on another machine")


def test_a_port_in_use_is_refused(
    served: ServedImage, launch: Callable[..., ServedImage], images: dict[str, str]
) -> None:
    """It is gusset's own port here."""
    launch()
    port = served.address.rpartition(":")[2]
    (served.tmp / "second").mkdir()
    second = ServedImage(served.tmp / "second")
    second.configure(images["root"])
    second.start("--port", port).fails(11, f"port {port}")


def test_the_host_network_is_refused_for_a_port_in_use(served: ServedImage, images: dict[str, str]) -> None:
    """Also for 8080, which is gusset's default; with a free port the container is reached there."""
    served.configure(images["root"], "python3 /app/inside.py 8080", docker_server={"server_port": 8080})
    served.start("--network", "host").fails(11, "8080 clashes")
    served.configure(images["root"], "python3 /app/inside.py 18765", docker_server={"server_port": 18765})
    served.start("--network", "host").ready()
    assert httpx.get("http://127.0.0.1:18765/health").status_code == 200
    assert served.stop() == 0
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 18765))
        other.listen()
        served.start("--network", "host").fails(11, "18765 clashes")


def test_all_missing_keys_are_reported_together(served: ServedImage) -> None:
    """All four keys that `docker_server` needs."""
    (served.folder / "config.yaml").write_text("base_image: {image: x}\ndocker_server: {start_command: y}\n")
    served.start()
    served.fails(3, "server_port", "predict_endpoint", "readiness_endpoint", "liveness_endpoint")


def test_a_container_killed_from_outside_is_restarted(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """As by the kernel when memory runs out; the exit status is reported."""
    launch()
    pid = int(podman("inspect", "--format", "{{.State.Pid}}", served.container))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "ready again" in served.output, "ready again")
    assert "exit status 137" in served.output


def test_only_the_folder_secrets_at_the_root_is_checked(
    served: ServedImage, launch: Callable[..., ServedImage]
) -> None:
    """A command may read /run/secrets/x or ./secrets/x."""
    launch("root", f"sh -c 'cat /run/secrets/x ./secrets/y; exec {SERVER}'")


def test_a_config_in_json_is_served(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """JSON is YAML too, with other spellings of the keys."""
    served.configure("localhost/gusset-test:root")
    file = served.folder / "config.yaml"
    file.write_text(json.dumps(yaml.safe_load(file.read_text())))
    served.start().ready()
    assert served.call("environment")


def test_options_for_models_are_refused(served: ServedImage) -> None:
    """Rather than ignored."""
    served.configure("localhost/gusset-test:root")
    served.start("--workers", "2").fails(
        2, "--workers, --reload, --mask-responses and --env are for Python models"
    )


def test_check_reports_undeclared_secrets_in_the_command(served: ServedImage, gusset: Cli) -> None:
    """Before anything is served."""
    served.configure("localhost/gusset-test:root", "sh -c 'X=$(cat /secrets/undeclared) server'")
    done = gusset("check", str(served.folder), status=4)
    assert b"the command reads /secrets/undeclared, which is not declared" in done.stdout + done.stderr


# Builds.


def test_what_the_config_adds_is_built_into_the_image(served: ServedImage, images: dict[str, str]) -> None:
    """Files of `data` and `packages`, and commands of several lines; the base image's user is kept."""
    served.secret("hf_access_token", TOKEN)
    (served.folder / "data").mkdir()
    (served.folder / "data" / "weights.txt").write_text("heavy")
    (served.folder / "packages").mkdir()
    (served.folder / "packages" / "ours.py").write_text("NAME = 'ours'")
    commands = [
        "cat > /srv/made <<'END'\nit's \"made\"\nEND",
        "python3 -c 'import ours' && id -u >> /srv/made",
    ]
    served.configure(images["user"], build_commands=commands)
    served.start().ready()
    assert served.call("file", path="/app/data/weights.txt") == "heavy"
    assert served.call("file", path="/packages/ours.py") == "NAME = 'ours'"
    assert served.call("file", path="/srv/made") == 'it\'s "made"\n0\n'
    described = served.call("describe", name="hf_access_token")
    assert isinstance(described, dict)
    assert described["me"] == 4321
    built = served.image
    assert served.stop() == 0
    for command in ("inspect", "history"):
        assert not leaks_in(podman("image", command, built).encode(), TOKEN)
    podman.remove_image(built)


def test_models_of_the_same_name_have_images_of_their_own(tmp_path: Path, images: dict[str, str]) -> None:
    """Also when they are built at the same time."""
    both = []
    try:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            both.append(ServedImage(tmp_path / name))
            both[-1].configure(images["root"], build_commands=[f"echo {name} > /srv/made"])
            both[-1].start()
        assert [served.ready().call("file", path="/srv/made") for served in both] == ["one\n", "other\n"]
        names = [podman("image", "inspect", "--format", "{{.RepoTags}}", served.image) for served in both]
        assert [len(each.split()) for each in names] == [1, 1], names
    finally:
        for served in both:
            built = served.image
            assert served.stop() == 0
            podman.remove_image(built)


def test_no_build_runs_the_image_as_it_is(served: ServedImage, launch: Callable[..., ServedImage]) -> None:
    """Whatever the config adds; without a start_command, with the image's own command."""
    launch("starts-itself", None, docker_server={"no_build": True}, build_commands=["false"])
    assert served.call("environment")


def test_requirements_are_installed(served: ServedImage, images: dict[str, str], tmp_path: Path) -> None:
    """By the image's own Python; here from a folder of the model, so that no index is needed."""
    package = served.folder / "packages" / "wheels"
    package.mkdir(parents=True)
    _wheel(package, "tiny_thing", "1.2")
    requirements = ["/packages/wheels/tiny_thing-1.2-py3-none-any.whl"]
    served.configure(
        images["root"],
        f"sh -c 'python3 -c \"import tiny_thing\" && exec {SERVER}'",
        requirements=requirements,
    )
    built = served.start().ready().image
    assert served.stop() == 0
    podman.remove_image(built)


def test_a_failing_build_ends_serve(served: ServedImage, images: dict[str, str]) -> None:
    """The message has the last lines."""
    served.configure(images["root"], build_commands=["echo about to fail; exit 3"])
    served.start().fails(9, "the image cannot be built", "about to fail", "build_commands")
    assert "Traceback" not in served.output


def test_a_build_gets_secrets_that_no_layer_has(served: ServedImage, images: dict[str, str]) -> None:
    """A command reads the file; a new value runs it again, and a value in the image ends `serve`."""
    served.secret("build_token", TOKEN)
    read = "sha256sum /run/token | cut -d' ' -f1 > /srv/made"
    more = {"build": {"secret_to_path_mapping": {"build_token": "/run/token"}}, "secrets": {}}
    served.configure(images["root"], build_commands=[read], **more)
    for value in (TOKEN, TOKEN + b"-next"):
        served.secret("build_token", value)
        served.start().ready()
        assert served.call("file", path="/srv/made") == hashlib.sha256(value).hexdigest() + "\n"
        built = served.image
        assert served.stop() == 0
    podman.remove_image(built)
    served.configure(images["root"], build_commands=["base64 /run/token > /srv/made"], **more)
    output = served.start().fails(4, "build_token (base64) is in the content", "srv/made")
    assert not leaks_in(output.encode(), TOKEN)


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
