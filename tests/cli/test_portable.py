"""Commands that do not serve run without the modules of Linux and POSIX; the others name a container to use."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gusset.cli.commands import COMMANDS
from gusset.vault.audit.checkpoints import Checkpoint, WitnessFile
from tests.cli.test_serve import served, write_model
from tests.conftest import Cli, leaks_in
from tests.manager.conftest import Manager, manager, set_up  # noqa: F401  # fixtures

pytestmark = pytest.mark.slow

SYSTEMS = ["darwin", "win32"]
# Run before gusset is imported: hides modules and functions that the system SYSTEM lacks. `msvcrt` is part of Windows.
# Other libraries are imported before: they do what their own system needs.
ELSEWHERE = """
import asyncio, click, getpass, sqlite3, ssl, subprocess, shutil, tempfile, urllib.request, webbrowser, zoneinfo
import httpx, platformdirs
import importlib.abc, os, sys, types

POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "uvloop"}
MISSING = {"gusset.secrets.sources.inotify"} | (POSIX if SYSTEM == "win32" else set())

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in MISSING:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
lacking = ["memfd_create", "pidfd_open", "posix_fadvise", "sched_getaffinity", "splice", "O_PATH", "O_TMPFILE"]
if SYSTEM == "win32":
    lacking += ["fork", "geteuid", "getuid", "fchmod", "register_at_fork", "pread", "pwrite", "killpg", "setsid"]
    lacking += ["O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK"]
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_LOCK=1, locking=lambda fd, mode, count: None)
    os.getlogin = lambda: "somebody"
for name in lacking:
    delattr(os, name)
sys.platform = SYSTEM
from gusset.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    """What `sys.platform` says."""
    name: str = request.param
    return name


def elsewhere(
    gusset: Cli, *args: str, input: bytes = b"", status: int = 0, system: str = "win32"
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as on another system."""
    code = f"SYSTEM = {system!r}\n{ELSEWHERE}"
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        input=input,
        capture_output=True,
        env=gusset.environ,
        timeout=60,
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"
    return done


def test_secrets_are_stored_and_listed_in_an_embedded_vault(gusset: Cli, system: str) -> None:
    elsewhere(gusset, "secret", "set", "a_token", input=b"a-value-of-some-length", system=system)
    elsewhere(gusset, "secret", "set", "a_token", input=b"another-value-of-some-length", system=system)
    listed = json.loads(elsewhere(gusset, "secret", "list", "--output", "json", system=system).stdout)
    history = elsewhere(gusset, "secret", "history", "a_token", system=system).stdout

    assert [secret["name"] for secret in listed["secrets"]] == ["a_token"]
    assert b"1" in history and b"2" in history and b"value" not in history


def test_a_model_folder_is_checked(gusset: Cli, tmp_path: Path, system: str) -> None:
    folder = write_model(tmp_path / "model")
    assert b"hf_access_token" in elsewhere(gusset, "check", str(folder), status=4, system=system).stderr
    elsewhere(gusset, "secret", "set", "hf_access_token", input=b"hf_" + b"a" * 34, system=system)
    elsewhere(gusset, "check", str(folder), system=system)


def test_a_managers_secrets_are_set_after_a_login(manager: Manager, gusset: Cli, system: str) -> None:  # noqa: F811
    elsewhere(gusset, "login", manager.address, input=manager.key.encode(), system=system)
    elsewhere(gusset, "secret", "set", "a_token", input=b"a-value-of-some-length", system=system)
    with manager.client() as client:
        assert client.get("/v1/secrets/a_token").json()["version"] == 1


def test_a_login_is_used_where_files_have_no_modes(manager: Manager, gusset: Cli) -> None:  # noqa: F811
    """Windows reports mode 0666 for every file that can be written."""
    elsewhere(gusset, "login", manager.address, input=manager.key.encode())
    Path(gusset.environ["GUSSET_SETTINGS"]).chmod(0o666)
    elsewhere(gusset, "secret", "list")


def test_doctor_reports_what_the_system_can_tell(gusset: Cli, system: str) -> None:
    elsewhere(gusset, "secret", "set", "a_token", input=b"a-value-of-some-length", system=system)
    elsewhere(gusset, "doctor", system=system)


def test_a_served_model_is_called(gusset: Cli, tmp_path: Path, system: str) -> None:
    gusset("secret", "set", "hf_access_token", input=b"a-value-of-some-length")
    with served(gusset, str(write_model(tmp_path / "model")), errors=tmp_path / "errors") as (address, _):
        assert b"sha" in elsewhere(gusset, "predict", address, "--data", "{}", system=system).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(gusset: Cli, command: str) -> None:
    assert b"Usage: gusset " in elsewhere(gusset, command, "--help").stdout


def test_a_managers_secrets_are_listed_with_their_history(manager: Manager, gusset: Cli, system: str) -> None:  # noqa: F811
    elsewhere(gusset, "login", manager.address, input=manager.key.encode(), system=system)
    for value in (b"a-value-of-some-length", b"another-value-of-some-length"):
        elsewhere(gusset, "secret", "set", "a_token", input=value, system=system)
    listed = json.loads(elsewhere(gusset, "secret", "list", "--output", "json", system=system).stdout)[
        "secrets"
    ]
    history = json.loads(
        elsewhere(gusset, "secret", "history", "a_token", "--output", "json", system=system).stdout
    )["versions"]

    assert [(secret["name"], secret["version"]) for secret in listed] == [("a_token", 2)]
    assert sorted(version["version"] for version in history) == [1, 2]


def in_container(gusset: Cli, *args: str, system: str = "darwin", **environ: str) -> tuple[list[str], str]:
    """The words of the container command that `args` end with on another system, and the whole message."""
    gusset.environ.update(environ)
    message = elsewhere(gusset, *args, status=11, system=system).stderr.decode()
    assert "needs Linux" in message
    [line, *_] = [line.strip() for line in message.splitlines() if line.strip().startswith("docker run")]
    return shlex.split(line), message


@pytest.mark.parametrize(
    ("args", "end"),
    [
        (
            ["serve", "my-model"],
            ["serve", "/model", "--host", "0.0.0.0", "--port", "8080", "--allowed-host", "localhost"],
        ),
        (["predict", "my-model", "--data", "{}"], ["predict", "/model", "<", "input.json"]),
        (["manager"], ["manager", "--host", "0.0.0.0", "--insecure-http"]),
        (["demo"], ["demo", "--once"]),
        (
            ["exec", "--env", "T=a_token", "--all", "--watch", "restart", "--", "psql"],
            ["exec", "--all", "--env", "T=a_token", "--watch", "restart", "--", "COMMAND"],
        ),
    ],
    ids=lambda words: words[0],
)
def test_what_needs_linux_ends_with_a_container_command(
    gusset: Cli, args: list[str], end: list[str], system: str
) -> None:
    words, _ = in_container(gusset, *args, system=system)
    assert words[-len(end) :] == end
    assert "gusset:/data" in words


def test_the_container_command_of_the_agent_has_its_options_but_not_its_commands(
    gusset: Cli, system: str
) -> None:
    """Such a command may hold a value."""
    words, message = in_container(
        gusset,
        *(
            "agent",
            "--deployment",
            "app",
            "--dir",
            "anywhere",
            "--secret",
            "a_token",
            "--allow-missing",
            "all",
        ),
        *("--exec", "app --login=a-value-of-some-length", "--signal", "HUP", "--keep-files"),
        *("--on-change", "sh -c 'echo a-value-of-some-length'"),
        system=system,
        GUSSET_MANAGER="https://secrets.example.com",
    )
    assert words[words.index("agent") :] == [
        *(
            "agent",
            "--deployment",
            "app",
            "--dir",
            "/secrets",
            "--secret",
            "a_token",
            "--allow-missing",
            "all",
        ),
        *("--keep-files", "--exec", "COMMAND", "--on-change", "COMMAND", "--signal", "HUP"),
    ]
    assert "type=tmpfs,destination=/secrets" in words
    assert not leaks_in(message.encode(), b"a-value-of-some-length")
    words, _ = in_container(gusset, "agent", "--deployment", "app", "--dir", "x", "--once", system=system)
    assert words[-1] == "--once"


def test_the_container_command_of_serve_has_the_options_of_serve(gusset: Cli, tmp_path: Path) -> None:
    folder, secrets = write_model(tmp_path / "my model"), tmp_path / "secrets"
    words, _ = in_container(
        gusset,
        *("serve", str(folder), "--host", "0.0.0.0", "--port", "8123", "--secrets-dir", str(secrets)),
        *("--workers", "2", "--allow-missing", "a_token", "--reload", "--debuggable"),
    )
    assert words[words.index("-p") + 1] == "0.0.0.0:8123:8123"
    assert f"{folder}:/model:ro" in words and f"{secrets}:/secrets:ro" in words
    assert words[words.index("serve") :] == [
        *("serve", "/model", "--host", "0.0.0.0", "--port", "8123", "--secrets-dir", "/secrets"),
        *("--allow-missing", "a_token", "--workers", "2", "--reload", "--debuggable"),
    ]


def test_the_container_command_names_the_manager_and_the_token_file(gusset: Cli, tmp_path: Path) -> None:
    token, url = tmp_path / "token", "https://secrets.example.com"
    words, message = in_container(gusset, "serve", "my-model", "--manager", url)
    assert f"GUSSET_MANAGER={url}" in words
    assert f"gusset login {url}" in message

    words, message = in_container(gusset, "serve", "my-model", "--manager", url, GUSSET_TOKEN_FILE=str(token))
    assert f"{token}:/run/gusset-token:ro" in words
    assert "login" not in message


def test_the_container_command_has_names_of_variables_but_no_values(gusset: Cli) -> None:
    value = b"a-value-of-some-length"
    words, message = in_container(gusset, "serve", "my-model", TRUSS_SECRET_a_token=value.decode())
    assert words[words.index("TRUSS_SECRET_a_token") - 1] == "-e"
    assert not leaks_in(message.encode(), value)


def test_a_command_is_not_repeated_in_the_message_of_exec(gusset: Cli) -> None:
    """Its arguments may hold a value."""
    _, message = in_container(gusset, "exec", "--secret", "a_token", "--", "psql", "password=hunter2")
    assert "hunter2" not in message


def test_a_custom_image_is_served_from_linux(gusset: Cli, tmp_path: Path) -> None:
    config = (
        "base_image: {image: busybox}\n"
        "docker_server: {start_command: serve, server_port: 8000, predict_endpoint: /predict,"
        " readiness_endpoint: /ready, liveness_endpoint: /alive}\n"
    )
    folder = write_model(tmp_path / "image", config=config)
    message = elsewhere(gusset, "serve", str(folder), status=11, system="darwin").stderr
    assert b"serve a custom image from Linux" in message


def test_a_long_witness_file_is_kept_where_an_open_file_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On Windows, replacing the file would fail: the new checkpoint is appended all the same."""
    monkeypatch.setattr("gusset.vault.audit.checkpoints.CAN_REPLACE_OPEN_FILES", False)
    witness = WitnessFile(tmp_path / "audit.witness")
    checkpoint = Checkpoint(vault="v", seq=1, at="2031-01-31T12:00:00Z", hash=b"h", signature=b"s")
    witness.path.write_bytes(checkpoint.line() * 3000)

    witness.add(checkpoint)

    assert len(witness.checkpoints()) == 3001
    assert not caplog.records
