"""What commands must not import: each would add more to the time of a command than the command itself takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.conftest import Cli

LIBRARIES = {
    "sqlalchemy",
    "alembic",
    "pydantic",
    "httpx",
    "yaml",
    "uvloop",
    "starlette",
    "uvicorn",
    "platformdirs",
}
PARTS_OF_PYTHON = {
    "asyncio",
    "email",
    "logging",
    "shutil",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "unittest",
}


# Runs a command, and names on standard error what it has imported when it ends, and each process that opens config.yaml.
SCRIPT = """\
import os, sys

def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/config.yaml"):
        os.write(2, b"\\nread by: %d\\n" % os.getpid())

sys.addaudithook(note)
from gusset.cli.main import main
try: main(sys.argv[1:])
finally: print("\\nimported:", *sys.modules, file=sys.stderr)
"""


def imported_by(gusset: Cli, *words: str, input: bytes = b"") -> set[str]:
    """The modules that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        input=input,
        capture_output=True,
        env=gusset.environ,
        check=True,
    )
    return modules_in(done.stderr)


def modules_in(printed: bytes) -> set[str]:
    return set(printed.decode().rpartition("imported:")[2].split())


@pytest.fixture
def folder(gusset: Cli, tmp_path: Path) -> Path:
    """A model folder as `gusset init` makes it, and the secret that it declares."""
    gusset("init", str(tmp_path / "my-model"))
    gusset("secret", "set", "api_key", input=b"a-value-worth-hiding")
    return tmp_path / "my-model"


def check_not_imported(imported: Collection[str], unwanted: Collection[str]) -> None:
    assert sorted(set(imported) & set(unwanted)) == []


def test_parsing_a_command_line_imports_no_slow_module() -> None:
    """What every command imports, but for its own module."""
    script = "import sys, gusset.cli.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    check_not_imported(done.stdout.split(), LIBRARIES | PARTS_OF_PYTHON | {"cryptography", "sqlite3"})


def test_a_secret_is_set_and_listed_without_slow_modules(gusset: Cli) -> None:
    """Also by the first command, which creates the vault: an older one is migrated, a new one is not."""
    unwanted = LIBRARIES | {"argon2", "greenlet", "psycopg"}
    imported = imported_by(gusset, "secret", "set", "token", input=b"a-value-worth-hiding")
    check_not_imported(imported, unwanted)

    imported = imported_by(gusset, "secret", "set", "token", input=b"another-value-worth-hiding")
    check_not_imported(imported, unwanted | PARTS_OF_PYTHON)

    imported = imported_by(gusset, "secret", "list")
    check_not_imported(imported, LIBRARIES | PARTS_OF_PYTHON | {"cryptography", "gusset.vault.wiring"})


def test_a_server_of_models_starts_without_slow_modules() -> None:
    """No process imports what only the config's check, few models, or another of the processes need."""
    for module, unwanted in (
        (
            "supervisor.supervisor",
            {"pydantic", "yaml", "email", "starlette", "uvloop", "tempfile", "shutil", "sqlalchemy"},
        ),
        (
            "worker.worker",
            {"pydantic", "yaml", "email", "starlette", "tempfile", "shutil", "click", "msgpack"},
        ),
        ("worker.shim", {"pathlib", "urllib.parse", "ipaddress", "asyncio", "logging", "typing"}),
    ):
        script = f"import sys, gusset.serving.{module}; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        check_not_imported(done.stdout.split(), unwanted)


def test_a_model_folder_is_checked_without_what_few_folders_have(gusset: Cli, folder: Path) -> None:
    """Nor what only serving needs, nor the migrations of the vault."""
    imported = imported_by(gusset, "check", str(folder))
    assert "gusset.package.schema" in imported
    check_not_imported(imported, {"gusset.package.trt_llm", "gusset.package.json_schema"})
    check_not_imported(imported, {"sqlalchemy", "httpx", "starlette", "uvloop", "asyncio"})

    (folder / "config.yaml").write_text("model_name: m\ntrt_llm:\n  build: {base_model: llama}\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "check", str(folder)], env=gusset.environ, capture_output=True
    )
    assert "gusset.package.trt_llm" in modules_in(done.stderr)


def test_a_running_supervisor_has_neither_slow_modules_nor_the_models_code(gusset: Cli, folder: Path) -> None:
    """Another process checks config.yaml, once; the supervisor only looks whether it is one of a custom image."""
    command = [sys.executable, "-c", SCRIPT, "serve", str(folder), "--port", "0", "--output", "json"]
    with subprocess.Popen(
        command, env=gusset.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["address"]
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors

    imported = modules_in(errors)
    assert "gusset.serving.supervisor.supervisor" in imported
    check_not_imported(imported, (LIBRARIES | {"alembic", "argon2", "greenlet", "psycopg", "model.model"}))
    check_not_imported(imported, {"email", "shutil", "tempfile", "unittest"})
    assert [name for name in imported if name.startswith(("gusset.package.", "gusset.manager."))] == []

    readers = re.findall(rb"read by: (\d+)", errors)
    assert len(readers) == len(set(readers)) == 2
    assert str(process.pid).encode() in readers
