"""What tests share: the real `gusset` command against a home of its own, and a search for leaks."""

from __future__ import annotations

import base64
import faulthandler
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings

from tests.postgres_server import PostgresServer
from tests.system import missing_programs, skip_if

# A property has no time limit of its own: how fast a machine is says nothing of whether it holds.
settings.register_profile("gusset", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gusset")

# Without byte code, every process that a test starts would compile all of gusset again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# httpx loads the certificates of all authorities for each new client, also for plain HTTP: 15 ms of CPU time.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)

# Where a test gives no time-out of its own, a loaded machine may take longer than httpx's five seconds.
for phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, 60.0)


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Limit what is left of a test after its first failure, such as the end of its fixtures.

    The limits of pytest and pytest-timeout end with a failure, for the sake of debuggers.
    """
    if isinstance(node, pytest.Item) and (limit := float(node.config.getini("faulthandler_timeout"))):
        file = node.config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(limit, file=file, exit=True)


def seconds_since(began: float) -> float:
    """Seconds since a monotonic time; fewer while other work has the processors, in proportion to the load.

    For promises such as "within a second", which hold for a machine with processor time to spare. The
    load is that of the last minute, or what wants to run now: an average shows a burst only later.
    """
    elapsed = time.monotonic() - began
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return elapsed / max(1.0, max(os.getloadavg()[0], running) / (os.cpu_count() or 1))


# What a test needs, derived from its fixtures: `make quick` and CI's jobs select by these marks.
MARK_OF_FIXTURE = {
    "images": "engine",
    "variant": "torch",
    "browser": "browser",
    "manager": "server",
    "postgres_server": "server",
    "serve": "server",
}
STARTS_SERVERS = (
    "cli/test_serve.py",
    "cli/test_exec",
    "cli/test_predict.py",
    "conformance/",
    "containers/test_proxy_limits.py",
    "environments/",
    "examples/",
    "faults/",
    "manager/",
    "serving/",
    "vault/test_postgres.py",
    "weights/",
)

# A shell ignores these in what it starts in the background, and children inherit that: tests send them to commands.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

SOURCE = Path(__file__).parents[1] / "src" / "gusset"


def pytest_report_header() -> str:
    compiled = len(list(SOURCE.rglob("*.so")))
    return f"gusset: {compiled} compiled modules" if compiled else "gusset: interpreted"


def pytest_configure() -> None:
    """Refuse to test compiled modules that are older than their source: Python runs them instead of it."""
    for module in SOURCE.rglob("*.so"):
        source = module.with_name(f"{module.name.partition('.')[0]}.py")
        is_shared = source.stem == "native__mypyc"  # the code of all of them
        if not is_shared and not (source.exists() and source.stat().st_mtime <= module.stat().st_mtime):
            raise pytest.UsageError(
                f"{source} has changed since it was compiled: run `make compiled`, or `make interpreted`"
            )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        marks = {mark for fixture, mark in MARK_OF_FIXTURE.items() if fixture in fixtures}
        if item.nodeid.removeprefix("tests/").startswith(STARTS_SERVERS):
            marks.add("server")
        for mark in sorted(marks):
            item.add_marker(mark)
    # The workers take whole files in this order: no worker may be left with minutes of work at the end.
    takes_minutes = {
        item.path
        for item in items
        if any(item.get_closest_marker(mark) for mark in ("engine", "torch", "slow"))
    }
    items.sort(key=lambda item: item.path not in takes_minutes)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that lacks what its mark `system` names; in CI, where all of it is installed, fail it."""
    for mark in item.iter_markers("system"):
        skip_if(missing_programs(*mark.args))


@dataclass
class Cli:
    """Runs `gusset` as a process, as a person would, with its vault in `home`."""

    home: Path
    environ: dict[str, str]

    def __call__(
        self, *args: str, input: bytes = b"", status: int = 0, **extra: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one command; `status` is the exit status that it must have."""
        done = subprocess.run(
            [sys.executable, "-m", "gusset", *args],
            input=input,
            capture_output=True,
            env=self.environ | extra,
            timeout=120,
        )
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"
        return done


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def clean_environ(home: Path, settings: Path) -> dict[str, str]:
    """An environment in which nothing of the person who runs the tests is used."""
    ours = ("GUSSET_", "TRUSS_SECRET_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    own = {"GUSSET_HOME": str(home), "GUSSET_CACHE": str(home.parent / "cache")}
    return kept | own | {"GUSSET_SETTINGS": str(settings)}


@pytest.fixture
def environ(home: Path, tmp_path: Path) -> dict[str, str]:
    return clean_environ(home, tmp_path / "settings.toml")


@pytest.fixture
def gusset(home: Path, environ: dict[str, str]) -> Cli:
    return Cli(home, environ)


# What tests use of SQLite's SQL to damage rows, and PostgreSQL has under other names.
_FUNCTIONS = (
    "CREATE FUNCTION zeroblob(length int) RETURNS bytea LANGUAGE sql AS "
    "$$ SELECT decode(repeat('00', length), 'hex') $$",
    "CREATE FUNCTION hex(bytes bytea) RETURNS text LANGUAGE sql AS $$ SELECT upper(encode(bytes, 'hex')) $$",
)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server that all tests share. A test that stops or breaks it has one of its own."""
    with PostgresServer.running() as server:
        for function in _FUNCTIONS:
            server.run(function, database="template1")
        yield server


def forms_of(value: bytes) -> list[bytes]:
    """A value as it might lie somewhere unnoticed: raw, base64 at each alignment, hex."""
    forms = [value, value.hex().encode(), value.hex().upper().encode()]
    for shift in range(3):
        inner = base64.b64encode(b"\0" * shift + value)[4 if shift else 0 :]
        forms.append(inner.rstrip(b"=")[: len(inner) - 4] if len(inner) > 8 else inner.rstrip(b"="))
    return [form for form in forms if form]


def leaks_in(data: bytes, *values: bytes) -> list[bytes]:
    """The forms of `values` that stand in `data`."""
    return [form for value in values for form in forms_of(value) if form in data]


@pytest.fixture
def leaking_files() -> Callable[[Iterable[Path], bytes], list[Path]]:
    """Files under the given folders that hold a value in any form."""

    def search(folders: Iterable[Path], value: bytes) -> list[Path]:
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return [path for path in files if leaks_in(path.read_bytes(), value)]

    return search


def as_ordinary_process() -> list[str]:
    """What takes root's privileges from a command, so that it has no more than the account it runs as."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
