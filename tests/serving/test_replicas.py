"""`gusset serve --workers N` and `--reload`: several workers on one port, and new ones for new code."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

import httpx
import pytest
from watchfiles import awatch

from gusset.serving.supervisor.reload_watcher import changes, is_source
from tests.conftest import as_ordinary_process, clean_environ
from tests.serving.conftest import PATIENCE, children, eventually, no_descriptors

WHO = """\
import os
class Model:
    def __init__(self, secrets):
        self.secrets = secrets
    def predict(self, model_input):
        if model_input == "die":
            os._exit(3)
        return {"pid": os.getpid(), "code": 1, "secrets": {name: len(self.secrets[name]) for name in self.secrets}}
"""


class Project:
    """A model folder that a test can change, and one `gusset serve` of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "project"
        self.secrets = tmp_path / "secrets"
        self.secrets.mkdir()
        self._tmp = tmp_path
        self.process: subprocess.Popen[bytes] | None = None
        self.write("config.yaml", "secrets: {first: null}\n")
        self.write("model/model.py", WHO)
        self.secret("first", "12345678")

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_text(textwrap.dedent(text))
        temporary.rename(file)

    def secret(self, name: str, value: str) -> None:
        temporary = self._tmp / f".{name}"
        temporary.write_text(value)
        temporary.rename(self.secrets / name)

    def serve(self, *options: str, prefix: Sequence[str] = ()) -> Project:
        command = [*prefix, sys.executable, "-m", "gusset", "serve", str(self.folder), "--port", "0"]
        with (self._tmp / "out").open("wb") as out, (self._tmp / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*command, "--secrets-dir", str(self.secrets), *options],
                stdout=out,
                stderr=err,
                env=clean_environ(self._tmp / "home", self._tmp / "settings.toml"),
            )
        eventually(lambda: "ready at" in self.output, "ready")
        return self

    @property
    def output(self) -> str:
        return (self._tmp / "out").read_text() + (self._tmp / "err").read_text()

    @property
    def port(self) -> int:
        found = re.search(r"ready at \S+:(\d+)", self.output)
        assert found
        return int(found[1])

    def predict(self, value: object = None) -> dict[str, object]:
        response = httpx.post(f"http://127.0.0.1:{self.port}/predict", content=json.dumps(value), timeout=30)
        assert response.status_code == 200, response.text
        result: dict[str, object] = response.json()
        return result

    def pids(self, connections: int) -> list[int]:
        """The worker that responds on each of so many simultaneous connections."""
        found = []
        opened = [http.client.HTTPConnection("127.0.0.1", self.port, timeout=30) for _ in range(connections)]
        for connection in opened:
            connection.connect()
        for connection in opened:
            connection.request("POST", "/predict", b"null")
            found.append(json.loads(connection.getresponse().read())["pid"])
        for connection in opened:
            connection.close()
        return found

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    if made.process and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def becomes(project: Project, condition: Callable[[dict[str, object]], bool]) -> None:
    """Wait for a prediction that meets the condition; none may fail meanwhile."""
    eventually(lambda: condition(project.predict()), "a prediction of the new model")


def test_connections_are_spread_over_all_workers(project: Project) -> None:
    """Each of four workers gets some of 32 connections, unless the machine is too busy to let one run at all."""
    project.serve("--workers", "4")
    eventually(lambda: len(set(project.pids(32))) == 4, "connections at all workers")
    assert project.stop() == 0


def test_a_dead_worker_is_replaced_while_others_serve(project: Project) -> None:
    """The port stays open, and the log names the worker that ended."""
    project.serve("--workers", "2")
    before: set[int] = set()

    def reaches_both() -> bool:
        before.update(project.pids(16))
        return len(before) == 2

    eventually(reaches_both, "connections at both workers")
    with pytest.raises(httpx.RemoteProtocolError):
        project.predict("die")
    for _ in range(20):
        project.predict()
    eventually(lambda: "is ready again." in project.output, "replaced")
    assert re.search(r"The process of replica \d of 2 ended \(exit status 3\)", project.output)
    eventually(lambda: len(set(project.pids(16)) - before) == 1, "connections at the new worker")


def test_a_worker_serves_on_while_no_other_can_be_started(project: Project) -> None:
    """As when the supervisor may open no more files."""
    project.serve("--workers", "2")
    with no_descriptors(project.process.pid):
        with pytest.raises(httpx.RemoteProtocolError):
            project.predict("die")
        eventually(lambda: project.output.count("cannot be started again") > 1, "attempts")
        survivors = set(project.pids(16))
        assert len(survivors) == 1
    eventually(lambda: "is ready again." in project.output, "replaced")
    eventually(lambda: len(set(project.pids(16)) - survivors) == 1, "connections at the new worker")
    assert project.stop() == 0


def test_a_rotation_reaches_all_workers(project: Project) -> None:
    project.serve("--workers", "3")
    project.secret("first", "123456789012")

    def all_have_it() -> bool:
        results = [project.predict() for _ in range(12)]
        return all(result["secrets"] == {"first": 12} for result in results)

    eventually(all_have_it, "all workers have the new value")


def test_a_model_that_cannot_start_ends_all_workers(project: Project) -> None:
    """The command fails with the reason; no worker is left."""
    project.write("model/model.py", "class Model:\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "gusset", "serve", str(project.folder), "--port", "0", "--workers", "3"],
        capture_output=True,
        env=clean_environ(project.folder.parent / "home", project.folder.parent / "settings.toml"),
        timeout=60,
    )
    assert done.returncode != 0
    assert b"predict" in done.stderr


def test_reload_serves_new_code_without_a_failed_request(project: Project) -> None:
    """The old process ends afterwards."""
    project.serve("--reload")
    old = project.predict()["pid"]
    project.write("model/model.py", WHO.replace('"code": 1', '"code": 2'))
    becomes(project, lambda result: result["code"] == 2)
    assert project.predict()["pid"] != old
    eventually(lambda: not Path(f"/proc/{old}").exists(), "the old one has ended")
    assert project.stop() == 0


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("model/model.py", "class Model:\n    def predict(self\n", "it is not valid Python"),
        ("model/model.py", WHO + "raise OSError('at import')\n", "OSError: at import"),
        ("config.yaml", "secrets: [\n", "config.yaml"),
        ("config.yaml", "secrets: {first: null, unknown: null}\n", "unknown"),
    ],
    ids=["syntax", "import", "config", "secret"],
)
def test_reload_keeps_the_old_model_after_a_broken_edit(
    project: Project, path: str, text: str, reason: str
) -> None:
    """The log has the reason; the next good edit is served."""
    project.serve("--reload")
    old = project.predict()["pid"]
    good = (project.folder / path).read_text()
    project.write(path, text)
    eventually(
        lambda: "The change is not served" in project.output and reason in project.output, "the log says why"
    )
    assert project.predict()["pid"] == old
    project.write("model/model.py", WHO.replace('"code": 1', '"code": 3'))
    if path == "config.yaml":
        project.write(path, good)
    becomes(project, lambda result: result["code"] == 3)


def test_reload_goes_on_after_a_change_that_could_not_be_read(project: Project) -> None:
    """As when no more files may be opened. The log says so; the next edit is served."""
    project.serve("--reload")
    with no_descriptors(project.process.pid):
        project.write("model/model.py", WHO.replace('"code": 1', '"code": 2'))
        eventually(lambda: "The change is not served" in project.output, "the log says so")
        assert project.predict()["code"] == 1
    project.write("model/model.py", WHO.replace('"code": 1', '"code": 3'))
    becomes(project, lambda result: result["code"] == 3)
    assert project.stop() == 0


def test_reload_ignores_the_data_folder_that_gusset_makes(project: Project) -> None:
    """A model always has one. What a person puts there is a change."""
    project.serve("--reload")
    assert (project.folder / "data").is_dir()
    project.write("model/model.py", WHO.replace('"code": 1', '"code": 2'))
    becomes(project, lambda result: result["code"] == 2)
    project.write("data/words.txt", "one")
    eventually(lambda: "'data/words.txt' has changed" in project.output, "a reload")
    reloads = re.findall("again: '(.*)' has changed", project.output)
    assert reloads == ["model/model.py", "data/words.txt"]


def test_reload_serves_edits_beside_a_data_folder_that_it_may_not_read(project: Project) -> None:
    """As one that a container of root has made."""
    data = project.folder / "data"
    data.mkdir(mode=0)
    project.serve("--reload", prefix=as_ordinary_process())
    project.write("model/model.py", WHO.replace('"code": 1', '"code": 2'))
    becomes(project, lambda result: result["code"] == 2)
    data.chmod(0o700)
    assert project.stop() == 0


def test_reload_reads_a_newly_declared_secret(project: Project) -> None:
    """Its rotations are followed from then on."""
    project.secret("second", "1234567890")
    project.serve("--reload", "--workers", "2")
    project.write("config.yaml", "secrets: {first: null, second: null}\n")
    becomes(project, lambda result: result["secrets"] == {"first": 8, "second": 10})
    project.secret("second", "12345678901234")
    becomes(project, lambda result: result["secrets"] == {"first": 8, "second": 14})


def test_reload_serves_a_good_edit_while_a_bad_one_hangs(project: Project) -> None:
    """A model that never becomes ready does not delay the next change."""
    project.serve("--reload")
    project.write(
        "model/model.py", WHO + f"open({str(project.folder.parent / 'reached')!r}, 'w')\nwhile True: pass\n"
    )
    eventually((project.folder.parent / "reached").exists, "the bad one starts")
    project.write("model/model.py", WHO.replace('"code": 1', '"code": 4'))
    becomes(project, lambda result: result["code"] == 4)
    assert project.process
    supervisor = project.process.pid
    eventually(lambda: len(children(supervisor)) == 1, "the bad one has ended")


def test_a_rotation_while_a_reload_loads_is_not_lost(project: Project) -> None:
    """This holds for a secret that was declared before and for a new one."""
    project.secret("second", "1234567890")
    project.serve("--reload")
    reached, go = project.folder.parent / "reached", project.folder.parent / "go"
    wait = f"""
import pathlib, time
class Model(Model):
    def load(self):
        pathlib.Path({str(reached)!r}).touch()
        while not pathlib.Path({str(go)!r}).exists():
            time.sleep(0.01)
"""
    project.write("model/model.py", WHO + wait)
    project.write("config.yaml", "secrets: {first: null, second: null}\n")
    eventually(reached.exists, "the new one loads")
    project.secret("first", "123456789")
    project.secret("second", "12345678901")
    eventually(lambda: project.predict()["secrets"] == {"first": 9}, "the old one has the new value")
    go.touch()
    becomes(project, lambda result: result["secrets"] == {"first": 9, "second": 11})


def test_reload_ignores_files_that_tools_write(tmp_path: Path) -> None:
    """Byte code, hidden files and editors' backups are no change of the folder."""
    (tmp_path / "model").mkdir()

    async def watch() -> None:
        change = asyncio.ensure_future(anext(changes(tmp_path, lambda _: False)))
        everything = asyncio.ensure_future(anext(awatch(tmp_path, watch_filter=None)))
        await asyncio.sleep(0)  # both watch from their first step on
        for path in ("x.pyc", ".model.py.swp", "model.py~", "#x#", "4913"):
            (tmp_path / "model" / path).write_text("noise")
        await everything
        assert not change.done()
        (tmp_path / "model" / "model.py").write_text("code")
        assert await asyncio.wait_for(change, PATIENCE) == "model/model.py"

    asyncio.run(watch())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model/__pycache__/x.pyc", False),
        (".git/HEAD", False),
        ("model/.model.py.swp", False),
        ("model/model.py~", False),
        ("model/#x#", False),
        ("model/4913", False),
        ("config.yaml", True),
        ("data/weights.bin", True),
    ],
)
def test_only_files_that_people_write_are_sources(path: str, expected: bool) -> None:
    assert is_source(PurePath(path)) is expected


def test_a_stop_during_a_reload_ends_the_new_worker_too(project: Project) -> None:
    """No process is left."""
    project.serve("--reload")
    assert project.process
    project.write("model/model.py", WHO + "import time\ntime.sleep(60)\n")
    eventually(
        lambda: len(children(project.process.pid)) > 1 if project.process else False, "the new one starts"
    )
    started = children(project.process.pid)
    assert project.stop() == 0
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started), "all have ended")
