"""`gusset agent`: a deployment's secrets as files, at the start, on changes and at the end, and when things fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.agent.conftest import DEPLOYMENT, Agent, contents, delete, put, replicas
from tests.conftest import Cli, leaks_in
from tests.manager.conftest import Manager
from tests.manager.issuer import Key, running_issuer
from tests.serving.conftest import eventually

OLD, NEW = b"s3cr3t-v4lue-before", b"an0ther-v4lue-after"
Start = Callable[..., Agent]
TokenFile = Callable[..., Path]


@pytest.fixture
def secrets(admin: httpx.Client, token_file: TokenFile) -> Path:
    """Two secrets, and a file with a token that reads them."""
    put(admin, token=OLD, key=b"the-key")
    return token_file("token", "key")


# --- the life of the folder


def test_the_folder_has_the_declared_secrets_until_the_agent_ends(
    secrets: Path, admin: httpx.Client, start: Start, memory: Path
) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    agent.logged("Ready: 2 secrets of my-app")

    put(admin, token=NEW)
    agent.has(token=NEW, key=b"the-key")
    eventually(lambda: [each["versions"] for each in replicas(admin)] == [{"key": 1, "token": 2}])

    assert agent.stop() == 0
    assert list(memory.iterdir()) == []
    assert [each["live"] for each in replicas(admin)] == [False]
    assert not leaks_in(agent.log.encode() + agent.output.encode(), OLD, NEW, secrets.read_bytes())


def test_once_ends_with_the_files_in_place(
    secrets: Path, admin: httpx.Client, start: Start, memory: Path
) -> None:
    agent = start("--once", "--output", "json")

    assert agent.process.wait(30) == 0
    assert contents(memory) == {"token": OLD, "key": b"the-key"}
    assert json.loads(agent.output) == {"dir": str(memory), "secrets": ["key", "token"]}
    assert [each["live"] for each in replicas(admin)] == [False]


def test_an_agent_takes_over_the_files_of_the_one_before(secrets: Path, start: Start, memory: Path) -> None:
    """Files that are current stay untouched, so that whoever reads them notices nothing."""
    assert start("--once").process.wait(30) == 0
    generation = (memory / "..data").readlink()

    agent = start("--keep-files")
    agent.logged("Ready")
    assert (memory / "..data").readlink() == generation

    assert agent.stop() == 0
    assert contents(memory) == {"token": OLD, "key": b"the-key"}


def test_the_files_of_a_killed_agent_stay_and_the_next_one_removes_what_is_too_much(
    secrets: Path, admin: httpx.Client, start: Start, memory: Path
) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    agent.stop(signal.SIGKILL)
    assert contents(memory) == {"token": OLD, "key": b"the-key"}

    delete(admin, "key")
    agent = start("--allow-missing", "key")
    agent.has(token=OLD)
    assert agent.stop() == 0
    assert list(memory.iterdir()) == []


def test_two_agents_cannot_use_one_folder(secrets: Path, start: Start) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")

    second = start()
    assert second.process.wait(30) == 6
    assert "another agent uses" in second.log
    agent.has(token=OLD, key=b"the-key")


def test_a_folder_that_is_not_in_memory_is_refused(secrets: Path, start: Start, tmp_path: Path) -> None:
    if subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True).stdout == b"tmpfs\n":
        pytest.skip("the folder of temporary files is in memory")
    agent = start(folder=tmp_path / "secrets")

    assert agent.process.wait(30) == 11
    assert "is not in memory" in agent.log
    assert not (tmp_path / "secrets").exists()


def test_values_of_64_kib_any_bytes_and_empty_ones_are_exact(
    admin: httpx.Client, token_file: TokenFile, start: Start
) -> None:
    values = {"binary": os.urandom(65_536), "zeros": bytes(65_536), "empty": b"", "lines": b"\r\na\n\n"}
    put(admin, **values)
    token_file(*values)

    start().has(**values)


def test_a_change_of_several_secrets_is_one_change_of_the_folder(
    admin: httpx.Client, token_file: TokenFile, start: Start, memory: Path
) -> None:
    """A reader of one generation never sees secrets of two, while they are rotated all the time."""
    names = ["a", "b", "c"]
    put(admin, **dict.fromkeys(names, b"version-0"))
    token_file(*names)
    agent = start()
    agent.logged("Ready")
    seen = set()
    for number in range(1, 20):
        batch = [{"name": name, "value": f"version-{number}"} for name in names]
        assert admin.post("/v1/secrets:batch", json={"secrets": batch}).status_code == 200
        for _ in range(300):
            generation = memory / (memory / "..data").readlink()
            try:
                [value] = {(generation / name).read_bytes() for name in names}
            except FileNotFoundError:  # it was replaced while it was read
                continue
            seen.add(value)
    agent.has(**dict.fromkeys(names, b"version-19"))
    assert len(seen) > 2


def test_the_value_before_is_beside_the_new_one_during_an_overlap(
    secrets: Path, admin: httpx.Client, start: Start, memory: Path, tmp_path: Path
) -> None:
    """Its end is no change: nothing is run for it."""
    agent = start("--on-change", f"sh -c 'echo ran >> {tmp_path}/ran'")
    agent.has(token=OLD, key=b"the-key")
    body = {"name": "token", "value": NEW.decode(), "overlap": 10}
    assert admin.post("/v1/secrets", json=body).status_code == 200
    agent.has(token=NEW, key=b"the-key")
    assert {path.name: path.read_bytes() for path in (memory / "..previous").iterdir()} == {"token": OLD}

    eventually(lambda: not (memory / "..previous").is_symlink(), "the overlap ends")
    agent.has(token=NEW, key=b"the-key")
    agent.logged("--on-change command has run")
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert not leaks_in(agent.log.encode(), OLD, NEW)


def test_a_version_is_acknowledged_when_its_file_is_in_place_and_not_before(
    secrets: Path, admin: httpx.Client, start: Start, tmp_path: Path
) -> None:
    """In a folder without room for the new value, which the agent has fetched."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", mounted]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this account cannot mount a tmpfs")
    try:
        agent = start(folder=mounted)
        agent.has(token=OLD, key=b"the-key")
        eventually(lambda: [each["versions"] for each in replicas(admin)] == [{"key": 1, "token": 1}])

        put(admin, token=os.urandom(65_536))
        agent.logged("no space left")
        assert [each["versions"] for each in replicas(admin)] == [{"key": 1, "token": 1}]
        agent.has(token=OLD, key=b"the-key")

        put(admin, token=NEW)
        agent.has(token=NEW, key=b"the-key")
        eventually(lambda: [each["versions"] for each in replicas(admin)] == [{"key": 1, "token": 3}])
        assert agent.stop() == 0
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_rotation_that_waits_ends_when_the_agent_has_the_file(
    secrets: Path, manager: Manager, elsewhere: Cli, start: Start
) -> None:
    """And with status 12 while the agent cannot replace it."""
    elsewhere("login", manager.address, input=manager.key.encode(), GUSSET_TOKEN_FILE="")
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    agent.logged("Ready")

    elsewhere("secret", "set", "token", "--wait", input=NEW, GUSSET_TOKEN_FILE="")
    assert contents(agent.folder) == {"token": NEW, "key": b"the-key"}

    agent.process.send_signal(signal.SIGSTOP)
    options = ("--wait", "--timeout", "2")
    elsewhere("secret", "set", "token", *options, input=OLD, status=12, GUSSET_TOKEN_FILE="")
    agent.process.send_signal(signal.SIGCONT)
    agent.has(token=OLD, key=b"the-key")
    assert agent.stop() == 0


# --- secrets that are missing, deleted, or not allowed


def test_a_missing_secret_ends_the_start_with_status_5_until_it_is_added(
    secrets: Path, admin: httpx.Client, token_file: TokenFile, start: Start, memory: Path
) -> None:
    token_file("token", "absent", "also_absent")
    agent = start("--once")
    assert agent.process.wait(30) == 5
    assert "gusset secret set absent" in agent.log and "gusset secret set also_absent" in agent.log
    assert list(memory.iterdir()) == []

    put(admin, absent=b"one", also_absent=b"two")
    assert start("--once").process.wait(30) == 0
    assert contents(memory) == {"token": OLD, "absent": b"one", "also_absent": b"two"}


def test_a_secret_that_may_be_missing_appears_when_it_is_added(
    secrets: Path, admin: httpx.Client, token_file: TokenFile, start: Start
) -> None:
    token_file("token", "later")
    agent = start("--allow-missing", "all")
    agent.logged("Ready")
    agent.has(token=OLD)

    put(admin, later=b"now")
    agent.has(token=OLD, later=b"now")


def test_a_secret_that_is_deleted_loses_its_file_and_a_restored_one_gets_it_back(
    secrets: Path, admin: httpx.Client, start: Start
) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")

    delete(admin, "key")
    agent.has(token=OLD)
    agent.logged("gusset secret restore key")

    put(admin, key=b"another")
    agent.has(token=OLD, key=b"another")


def test_secrets_can_be_chosen_by_name(secrets: Path, start: Start, memory: Path) -> None:
    assert start("--once", "--secret", "key").process.wait(30) == 0
    assert contents(memory) == {"key": b"the-key"}


def test_a_secret_that_the_token_does_not_allow_is_denied(
    secrets: Path, admin: httpx.Client, start: Start, memory: Path
) -> None:
    put(admin, other=b"value-of-another")
    agent = start("--once", "--secret", "other")

    assert agent.process.wait(30) == 7
    assert "does not allow other" in agent.log
    assert list(memory.iterdir()) == []


def test_the_token_of_another_deployment_is_refused(secrets: Path, elsewhere: Cli, memory: Path) -> None:
    done = elsewhere("agent", "--deployment", "other-app", "--dir", str(memory), "--once", status=7)
    assert b"the deployment my-app, not to other-app" in done.stderr


def test_a_deployment_without_secrets_has_an_empty_folder(
    token_file: TokenFile, start: Start, memory: Path
) -> None:
    token_file()
    agent = start()
    agent.logged("Ready: 0 secrets")
    assert contents(memory) == {}
    assert agent.stop() == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--secret", "../token"], b"a secret's name cannot"),
        (["--once", "--exec", "true"], b"cannot be used together"),
        (["--once", "--on-change", "true"], b"cannot be used together"),
        (["--signal", "HUP"], b"--exec"),
        (["--exec", "true", "--signal", "KILL"], b"such as HUP"),
        (["--exec", "sh -c 'unbalanced"], b"balanced quotes"),
        (["--on-change", "no-such-command-anywhere"], b"there is no command"),
    ],
)
def test_a_wrong_call_ends_with_status_2(
    elsewhere: Cli, memory: Path, options: list[str], text: bytes
) -> None:
    done = elsewhere("agent", "--deployment", DEPLOYMENT, "--dir", str(memory), *options, status=2)
    assert text in done.stderr


def test_without_a_manager_the_agent_says_that_it_needs_one(gusset: Cli, memory: Path) -> None:
    done = gusset("agent", "--deployment", DEPLOYMENT, "--dir", str(memory), status=2)
    assert b"GUSSET_MANAGER" in done.stderr


# --- a person's key


def test_a_person_registers_the_deployment_and_the_key_leaves_the_process(
    secrets: Path, manager: Manager, admin: httpx.Client, elsewhere: Cli, start: Start, memory: Path
) -> None:
    """The declared names come from the manager; the token is revoked at the end."""
    del elsewhere.environ["GUSSET_TOKEN_FILE"]
    elsewhere("login", manager.address, input=manager.key.encode())
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    agent.logged("Ready")

    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text()
    assert children == ""
    if os.getuid() == 0:
        assert manager.key.encode() not in _memory_of(agent.process.pid)

    assert agent.stop() == 0
    tokens = admin.get(f"/v1/deployments/{DEPLOYMENT}/tokens").json()["tokens"]
    assert [token["revoked_at"] is not None for token in tokens].count(True) == 1
    assert list(memory.iterdir()) == []


def test_a_person_who_registers_nothing_gets_the_command_that_does(
    manager: Manager, elsewhere: Cli, memory: Path
) -> None:
    del elsewhere.environ["GUSSET_TOKEN_FILE"]
    elsewhere("login", manager.address, input=manager.key.encode())
    done = elsewhere("agent", "--deployment", "new", "--dir", str(memory), "--once", status=5)
    assert b"--secret NAME" in done.stderr and b"gusset token create --deployment new" in done.stderr


def test_a_person_can_name_the_secrets_of_a_new_deployment(
    secrets: Path, manager: Manager, elsewhere: Cli, memory: Path
) -> None:
    del elsewhere.environ["GUSSET_TOKEN_FILE"]
    elsewhere("login", manager.address, input=manager.key.encode())
    elsewhere("agent", "--deployment", "new", "--dir", str(memory), "--once", "--secret", "key")
    assert contents(memory) == {"key": b"the-key"}


def _memory_of(pid: int) -> bytes:
    found = []
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            if mode.startswith("rw"):
                start, end = (int(each, 16) for each in span.split("-"))
                memory.seek(start)
                with suppress(OSError):  # it was unmapped meanwhile
                    found.append(memory.read(end - start))
    return b"".join(found)


# --- a token of the platform


def test_a_workload_needs_no_token_of_its_own(
    admin: httpx.Client, elsewhere: Cli, manager: Manager, start: Start, memory: Path, tmp_path: Path
) -> None:
    """The agent exchanges the platform's token, also the next ones, and gets what the deployment declares."""
    put(admin, token=OLD, key=b"the-key")
    elsewhere("login", manager.address, input=manager.key.encode(), GUSSET_TOKEN_FILE="")
    with running_issuer(Key.make("k", "EdDSA")) as issuer:
        options = (
            "--deployment",
            DEPLOYMENT,
            "--secrets",
            "token,key",
            "--issuer",
            issuer.url,
            "--subject",
            "s",
        )
        elsewhere("identity", "add", "ranker", *options, GUSSET_TOKEN_FILE="")
        elsewhere("logout")
        del elsewhere.environ["GUSSET_TOKEN_FILE"]
        (tmp_path / "jwt").write_text(issuer.token())
        agent = start("--identity-token-file", str(tmp_path / "jwt"))
        agent.has(token=OLD, key=b"the-key")
        put(admin, token=NEW)
        agent.has(token=NEW, key=b"the-key")
        eventually(lambda: [each["versions"] for each in replicas(admin)] == [{"key": 1, "token": 2}])
        assert agent.stop() == 0

        other = start("--once", GUSSET_IDENTITY_TOKEN_FILE=str(tmp_path / "absent"))
        assert other.process.wait(30) == 2
    assert list(memory.iterdir()) == []


# --- when the manager cannot be reached, or refuses


def test_at_the_start_the_agent_waits_for_the_manager(
    secrets: Path, manager: Manager, start: Start, memory: Path
) -> None:
    manager.kill()
    agent = start()
    agent.logged("Waiting for the manager")
    assert list(memory.iterdir()) == []

    manager.start()
    agent.has(token=OLD, key=b"the-key")
    agent.logged("The manager responds.")
    assert agent.log.count("Waiting for the manager") == 1


def test_a_waiting_agent_ends_on_a_signal(
    secrets: Path, manager: Manager, start: Start, memory: Path
) -> None:
    manager.kill()
    agent = start("--once")
    agent.logged("Waiting for the manager")

    assert agent.stop() == 128 + signal.SIGTERM
    assert list(memory.iterdir()) == []
    manager.start()


def test_while_the_manager_is_down_the_files_stay_and_changes_come_afterwards(
    secrets: Path, manager: Manager, start: Start
) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    manager.kill()
    agent.logged("cannot be followed")
    manager.gusset("secret", "set", "token", input=NEW)
    agent.has(token=OLD, key=b"the-key")

    manager.start()
    agent.has(token=NEW, key=b"the-key")
    agent.logged("responds again")


def test_an_agent_whose_requests_are_swallowed_waits_and_then_goes_on(
    secrets: Path, manager: Manager, start: Start
) -> None:
    """The manager accepts connections and never responds, as behind a broken network."""
    manager.process.send_signal(signal.SIGSTOP)
    try:
        agent = start()
        agent.logged("Waiting for the manager")
    finally:
        manager.process.send_signal(signal.SIGCONT)
    agent.has(token=OLD, key=b"the-key")
    agent.stop()


def test_a_partition_that_swallows_packets_does_not_keep_the_agent_from_ending(
    secrets: Path, manager: Manager, start: Start, memory: Path
) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    manager.process.send_signal(signal.SIGSTOP)
    try:
        agent.process.terminate()
        eventually(lambda: list(memory.iterdir()) == [], "the files are removed at once")
        assert agent.process.wait(40) == 0
    finally:
        manager.kill()


def test_a_restarted_manager_is_followed_again(
    secrets: Path, manager: Manager, admin: httpx.Client, start: Start
) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    for number in range(2):
        assert manager.stop() == 0
        manager.start()
        put(admin, token=b"%d-after-the-restart" % number)
        agent.has(token=b"%d-after-the-restart" % number, key=b"the-key")


def test_a_revoked_token_leaves_the_files_and_the_log_says_what_to_do(
    secrets: Path, admin: httpx.Client, start: Start, memory: Path
) -> None:
    agent = start()
    agent.has(token=OLD, key=b"the-key")
    [token] = admin.get(f"/v1/deployments/{DEPLOYMENT}/tokens").json()["tokens"]
    assert admin.delete(f"/v1/tokens/{token['prefix']}").status_code == 200
    put(admin, token=NEW)

    agent.logged("put a valid token into the token file")
    assert contents(memory) == {"token": OLD, "key": b"the-key"}

    second = start("--once", folder=memory / "other")
    assert second.process.wait(30) == 7


# --- readiness and signals


def test_systemd_is_notified_when_the_folder_is_whole(secrets: Path, start: Start, tmp_path: Path) -> None:
    """Commands that the agent starts do not get the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(30)
        agent = start(
            "--exec",
            "sh -c 'echo ${NOTIFY_SOCKET-none}; exec sleep 60'",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        assert listening.recv(100) == b"READY=1"
        assert contents(agent.folder) == {"token": OLD, "key": b"the-key"}
        agent.until(lambda: agent.lines == ["none"])
        agent.process.terminate()
        assert listening.recv(100) == b"STOPPING=1"
    assert agent.process.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGTERM], [signal.SIGHUP]],
    ids=["TERM three times", "INT and TERM", "HUP"],
)
def test_signals_end_the_agent_once_with_an_empty_folder(
    secrets: Path, start: Start, memory: Path, numbers: list[int]
) -> None:
    agent = start()
    agent.logged("Ready")

    assert agent.stop(*numbers) == 0
    assert list(memory.iterdir()) == []


def test_values_are_in_no_argument_environment_or_file_outside_the_folder(
    secrets: Path, admin: httpx.Client, start: Start, tmp_path: Path
) -> None:
    agent = start("--exec", "sleep 60", "--on-change", "true")
    agent.logged("Ready")
    put(admin, token=NEW)
    agent.has(token=NEW, key=b"the-key")
    agent.logged("--on-change command has run")

    about = b""
    for pid in [agent.process.pid, *_children(agent.process.pid)]:
        with suppress(ProcessLookupError, FileNotFoundError):  # the command is restarted
            about += Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert b"gusset" in about and not leaks_in(about, OLD, NEW, secrets.read_bytes())
    vaults = tmp_path / "home"
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and vaults not in path.parents]
    assert [path for path in outside if leaks_in(path.read_bytes(), OLD, NEW)] == []


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
