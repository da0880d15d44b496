"""What commands must not import: each would add more to the time of a command than the command itself takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection

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


def imported_by(gusset: Cli, *words: str, input: bytes = b"") -> set[str]:
    """The modules that a command has imported when it ends."""
    script = (
        "import sys\n"
        "from gusset.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('\\nimported:', *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        input=input,
        capture_output=True,
        env=gusset.environ,
        check=True,
    )
    return set(done.stderr.decode().rpartition("imported:")[2].split())


def check_not_imported(imported: Collection[str], unwanted: Collection[str]) -> None:
    assert sorted(set(imported) & set(unwanted)) == []


def test_parsing_a_command_line_imports_no_slow_module() -> None:
    """What every command imports, but for its own module."""
    script = "import sys, gusset.cli.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    check_not_imported(done.stdout.split(), LIBRARIES | PARTS_OF_PYTHON | {"cryptography", "sqlite3"})


def test_a_secret_is_set_and_listed_without_slow_modules(gusset: Cli) -> None:
    """In an embedded vault that exists already."""
    gusset("secret", "set", "token", input=b"a-value-worth-hiding")

    imported = imported_by(gusset, "secret", "set", "token", input=b"another-value-worth-hiding")
    check_not_imported(imported, LIBRARIES | PARTS_OF_PYTHON | {"argon2", "greenlet", "psycopg"})

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
