"""Commands that do not serve run where Linux's and POSIX's own modules are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.test_serve import served, write_model
from tests.conftest import Cli
from tests.manager.conftest import Manager, manager, set_up  # noqa: F401  # fixtures

# Run before gusset is imported: a system without these modules and functions. `msvcrt` is Windows's own.
ELSEWHERE = """
import importlib.abc, os, sys, types

MISSING = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "uvloop"}

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import click, getpass, subprocess, shutil, sqlite3, tempfile, webbrowser  # the standard library knows its systems
for name in MISSING:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
sys.modules["msvcrt"] = types.SimpleNamespace(LK_LOCK=1, locking=lambda fd, mode, count: None)
for name in ("fork", "geteuid", "getuid", "fchmod", "register_at_fork", "pread", "pwrite", "killpg", "setsid"):
    delattr(os, name)
for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK"):
    delattr(os, name)
os.getlogin = lambda: "somebody"
from gusset.cli.main import main
sys.platform = SYSTEM
main(sys.argv[1:])
"""


def elsewhere(
    gusset: Cli, *args: str, input: bytes = b"", status: int = 0, system: str = "linux"
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as on another system."""
    code = ELSEWHERE.replace("SYSTEM", repr(system))
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        input=input,
        capture_output=True,
        env=gusset.environ,
        timeout=60,
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"
    return done


def test_secrets_are_stored_and_listed_in_an_embedded_vault(gusset: Cli) -> None:
    elsewhere(gusset, "secret", "set", "a_token", input=b"a-value-of-some-length")
    elsewhere(gusset, "secret", "set", "a_token", input=b"another-value-of-some-length")
    listed = json.loads(elsewhere(gusset, "secret", "list", "--output", "json").stdout)
    history = elsewhere(gusset, "secret", "history", "a_token").stdout

    assert [secret["name"] for secret in listed["secrets"]] == ["a_token"]
    assert b"1" in history and b"2" in history and b"value" not in history


def test_a_model_folder_is_checked(gusset: Cli, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert b"hf_access_token" in elsewhere(gusset, "check", str(folder), status=4).stderr
    elsewhere(gusset, "secret", "set", "hf_access_token", input=b"hf_" + b"a" * 34)
    elsewhere(gusset, "check", str(folder))


def test_a_managers_secrets_are_set_after_a_login(manager: Manager, gusset: Cli) -> None:  # noqa: F811
    elsewhere(gusset, "login", manager.address, input=manager.key.encode())
    elsewhere(gusset, "secret", "set", "a_token", input=b"a-value-of-some-length")
    with manager.client() as client:
        assert client.get("/v1/secrets/a_token").json()["version"] == 1


def test_a_login_is_used_where_files_have_no_modes(manager: Manager, gusset: Cli) -> None:  # noqa: F811
    """Windows reports mode 0666 for every file that can be written."""
    elsewhere(gusset, "login", manager.address, input=manager.key.encode())
    Path(gusset.environ["GUSSET_SETTINGS"]).chmod(0o666)
    elsewhere(gusset, "secret", "list")


def test_doctor_reports_where_there_are_no_accounts(gusset: Cli) -> None:
    elsewhere(gusset, "secret", "set", "a_token", input=b"a-value-of-some-length")
    elsewhere(gusset, "doctor")


def test_a_served_model_is_called(gusset: Cli, tmp_path: Path) -> None:
    gusset("secret", "set", "hf_access_token", input=b"a-value-of-some-length")
    with served(gusset, str(write_model(tmp_path / "model")), errors=tmp_path / "errors") as (address, _):
        assert b"sha" in elsewhere(gusset, "predict", address, "--data", "{}").stdout


def test_serve_says_where_it_runs_and_how_to_run_it_in_a_container(gusset: Cli, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    done = elsewhere(gusset, "serve", str(folder), "--port", "8123", status=11, system="darwin")
    message = done.stderr.decode()
    assert "serve needs Linux" in message
    assert f"-v {folder.resolve()}:/model:ro" in message and "127.0.0.1:8123:8123" in message
