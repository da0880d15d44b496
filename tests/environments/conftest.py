"""A package index on loopback, and an installer that uses nothing else."""

from __future__ import annotations

import base64
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gusset.environments.installer import Installer
from gusset.environments.plan import EnvironmentPlan, FileLocation, InstallOptions, PythonChoice
from gusset.environments.requirement_lines import Line, Requirement, parse_requirement, read_lines
from gusset.environments.uv import ProgressSink, Uv, find_uv, uv_environment
from gusset.errors import Problem


@dataclass
class Index:
    """A simple index of the packages in a folder, `NAME/FILE`; with a `login` it refuses others."""

    folder: Path
    url: str = ""
    login: str | None = None
    requests: list[str] = field(default_factory=list)

    def add(self, file: Path) -> None:
        name = file.name.split("-")[0].replace("_", "-")
        target = self.folder / "simple" / name
        target.mkdir(parents=True, exist_ok=True)
        file.rename(target / file.name)
        links = "".join(f'<a href="{each.name}">{each.name}</a>' for each in sorted(target.glob("*-*")))
        (target / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, index: Index, *args: object) -> None:
        self._index = index
        super().__init__(*args, directory=str(index.folder))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._index.requests.append(self.path)
        if self._index.login is not None:
            expected = "Basic " + base64.b64encode(self._index.login.encode()).decode()
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="index"')
                self.end_headers()
                return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def serve_index(folder: Path) -> Iterator[Index]:
    index = Index(folder)
    (folder / "simple").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, index))
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield index
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index that is the only one."""
    yield from serve_index(tmp_path / "index")


@pytest.fixture
def private_index(tmp_path: Path) -> Iterator[Index]:
    """An index that wants a login."""
    yield from serve_index(tmp_path / "private")


@dataclass
class Making:
    """Makes environments in a folder, and keeps what was shown."""

    folder: Path
    environ: dict[str, str]
    warnings: list[Problem] = field(default_factory=list)
    shown: bytearray = field(default_factory=bytearray)
    worker: tuple[str, ...] = ()
    truss: tuple[str, ...] = ()
    logins: dict[str, bytes] = field(default_factory=dict)
    program: str = field(default_factory=find_uv)

    def installer(self) -> Installer:
        progress = ProgressSink(write=self.shown.extend)
        return Installer(
            uv=Uv(program=self.program, environ=self.environ, progress=progress),
            python_version=sys.version_info[:2],
            translated=frozenset({"UV_DEFAULT_INDEX"}),
            warn=self.warnings.append,
            logins=self.logins,
            worker=tuple(map(_listed, self.worker)),
            truss=tuple(map(_listed, self.truss)),
        )

    def plan(self, *lines: str, python: PythonChoice | None = None, **changes: object) -> EnvironmentPlan:
        """The plan for these requirements, each on a line of config.yaml of its own."""
        written = [
            Line(
                text=text,
                location=FileLocation(file="config.yaml", line=number, key=f"requirements[{number - 1}]"),
            )
            for number, text in enumerate(lines, 1)
        ]
        read = read_lines(written, self.folder, lambda path: path.read_text(), self.environ)
        assert read.problems == ()
        values: dict[str, object] = {
            "key": "k",
            "name": "m",
            "folder": "/m",
            "python": python or PythonChoice(executable=sys.executable),
            "requirements": tuple(each.text for each in read.requirements),
            "constraints": tuple(each.text for each in read.constraints),
            "options": read.options,
            "locations": {each.name: each.location for each in read.requirements if each.name},
        }
        return EnvironmentPlan(**(values | changes))  # type: ignore[arg-type]

    def __call__(self, *lines: str, **options: object) -> Path:
        """Make the environment of these requirements; the folder of its packages."""
        attempt = self.folder / "environment"
        shutil.rmtree(attempt, ignore_errors=True)
        info = self.installer().make(self.plan(*lines, **options), attempt)  # type: ignore[arg-type]
        [site] = Path(info.path).glob("lib/python*/site-packages")
        return site


def _listed(text: str) -> Requirement:
    return parse_requirement(text, FileLocation(file="list"), Path("/"))


def uv_variables(tmp_path: Path, index_url: str) -> dict[str, str]:
    """The variables of a uv that knows one index and no other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    own = {
        "UV_DEFAULT_INDEX": index_url,
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
        "UV_HTTP_RETRIES": "0",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    return uv_environment(kept | own, {})


@pytest.fixture
def make(tmp_path: Path, index: Index) -> Making:
    return Making(tmp_path, uv_variables(tmp_path, index.url))


__all__ = ["Index", "InstallOptions", "Making"]
