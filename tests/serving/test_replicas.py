"""`gusset serve --workers N` and `--reload`: several processes behind one port, and new ones for new code."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import clean_environ
from tests.serving.conftest import children, eventually

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


class Site:
    """One `gusset serve` of a folder that a test may change."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "site"
        self.secrets = tmp_path / "secrets"
        self.secrets.mkdir()
        self._tmp = tmp_path
        self.process: subprocess.Popen[bytes] | None = None
        self.write("config.yaml", "secrets: {first: null}\n")
        self.write("model/model.py", WHO)
        self.secret("first", "12345678")

    def write(self, path: str, text: str) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.new")
        beside.write_text(textwrap.dedent(text))
        beside.rename(place)

    def secret(self, name: str, value: str) -> None:
        beside = self._tmp / f".{name}"
        beside.write_text(value)
        beside.rename(self.secrets / name)

    def serve(self, *options: str) -> Site:
        command = [sys.executable, "-m", "gusset", "serve", str(self.folder), "--port", "0"]
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
        answer = httpx.post(f"http://127.0.0.1:{self.port}/predict", content=json.dumps(value), timeout=30)
        assert answer.status_code == 200, answer.text
        found: dict[str, object] = answer.json()
        return found

    def pids(self, connections: int) -> list[int]:
        """Who answers on each of so many connections that are open at the same time."""
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
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    if made.process and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def becomes(site: Site, wanted: Callable[[dict[str, object]], bool]) -> None:
    """Predictions go on being answered, each of them, until one is as wanted."""
    eventually(lambda: wanted(site.predict()), "the new model answers")


def test_workers_share_the_connections(site: Site) -> None:
    """Each of four replicas gets some of 32."""
    site.serve("--workers", "4")
    assert len(set(site.pids(32))) == 4
    assert site.stop() == 0


def test_a_dead_worker_is_replaced_while_others_serve(site: Site) -> None:
    """The port never goes down, and the log says which one ended."""
    site.serve("--workers", "2")
    before = set(site.pids(16))
    with pytest.raises(httpx.RemoteProtocolError):
        site.predict("die")
    for _ in range(20):
        site.predict()
    eventually(lambda: "is ready again." in site.output, "replaced")
    assert re.search(r"The process of replica \d of 2 ended \(exit status 3\)", site.output)
    assert len(set(site.pids(16)) - before) == 1


def test_a_rotation_reaches_all_workers(site: Site) -> None:
    site.serve("--workers", "3")
    site.secret("first", "123456789012")

    def all_have_it() -> bool:
        connections = [site.predict() for _ in range(12)]
        return all(answer["secrets"] == {"first": 12} for answer in connections)

    eventually(all_have_it, "all have the new value")


def test_a_start_that_fails_fails_for_all(site: Site) -> None:
    """No process of any replica is left."""
    site.write("model/model.py", "class Model:\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "gusset", "serve", str(site.folder), "--port", "0", "--workers", "3"],
        capture_output=True,
        env=clean_environ(site.folder.parent / "home", site.folder.parent / "settings.toml"),
        timeout=60,
    )
    assert done.returncode != 0
    assert b"predict" in done.stderr


def test_reload_takes_up_new_code(site: Site) -> None:
    """Without one request that fails; the old process ends."""
    site.serve("--reload")
    old = site.predict()["pid"]
    site.write("model/model.py", WHO.replace('"code": 1', '"code": 2'))
    becomes(site, lambda answer: answer["code"] == 2)
    assert site.predict()["pid"] != old
    eventually(lambda: not Path(f"/proc/{old}").exists(), "the old one has ended")
    assert site.stop() == 0


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("model/model.py", "class Model:\n    def predict(self\n", "it is not valid Python"),
        ("model/model.py", WHO + "raise OSError('at import')\n", "OSError: at import"),
        ("config.yaml", "secrets: [\n", "config.yaml"),
        ("config.yaml", "secrets: {first: null, unknown: null}\n", "unknown"),
    ],
    ids=["syntax", "import", "config", "secret"],
)
def test_reload_keeps_the_old_one_after_a_broken_edit(site: Site, path: str, text: str, said: str) -> None:
    """The log says what is wrong; the next good edit goes live."""
    site.serve("--reload")
    old = site.predict()["pid"]
    good = (site.folder / path).read_text()
    site.write(path, text)
    eventually(lambda: "The change is not served" in site.output and said in site.output, "the log says why")
    assert site.predict()["pid"] == old
    site.write("model/model.py", WHO.replace('"code": 1', '"code": 3'))
    if path == "config.yaml":
        site.write(path, good)
    becomes(site, lambda answer: answer["code"] == 3)


def test_reload_reads_a_newly_declared_secret(site: Site) -> None:
    """And follows its rotations from then on."""
    site.secret("second", "1234567890")
    site.serve("--reload", "--workers", "2")
    site.write("config.yaml", "secrets: {first: null, second: null}\n")
    becomes(site, lambda answer: answer["secrets"] == {"first": 8, "second": 10})
    site.secret("second", "12345678901234")
    becomes(site, lambda answer: answer["secrets"] == {"first": 8, "second": 14})


def test_reload_takes_up_a_good_edit_while_a_bad_one_hangs(site: Site) -> None:
    """What never gets ready does not keep the next change waiting."""
    site.serve("--reload")
    site.write(
        "model/model.py", WHO + f"open({str(site.folder.parent / 'reached')!r}, 'w')\nwhile True: pass\n"
    )
    eventually((site.folder.parent / "reached").exists, "the bad one is being tried")
    site.write("model/model.py", WHO.replace('"code": 1', '"code": 4'))
    becomes(site, lambda answer: answer["code"] == 4)
    assert site.process
    supervisor = site.process.pid
    eventually(lambda: len(children(supervisor)) == 1, "the bad one has ended")


def test_a_rotation_while_a_reload_loads_is_not_lost(site: Site) -> None:
    """Neither for a secret that was declared before, nor for one that is new."""
    site.secret("second", "1234567890")
    site.serve("--reload")
    reached, go = site.folder.parent / "reached", site.folder.parent / "go"
    wait = f"""
import pathlib, time
class Model(Model):
    def load(self):
        pathlib.Path({str(reached)!r}).touch()
        while not pathlib.Path({str(go)!r}).exists():
            time.sleep(0.01)
"""
    site.write("model/model.py", WHO + wait)
    site.write("config.yaml", "secrets: {first: null, second: null}\n")
    eventually(reached.exists, "the new one loads")
    site.secret("first", "123456789")
    site.secret("second", "12345678901")
    eventually(lambda: site.predict()["secrets"] == {"first": 9}, "the old one has the new value")
    go.touch()
    becomes(site, lambda answer: answer["secrets"] == {"first": 9, "second": 11})


def test_reload_passes_over_what_tools_leave_behind(site: Site) -> None:
    """Byte code, hidden files and editors' backups are no change."""
    site.serve("--reload")
    old = site.predict()["pid"]
    for path in (
        "model/__pycache__/x.pyc",
        ".git/HEAD",
        "model/.model.py.swp",
        "model/model.py~",
        "model/#x#",
    ):
        site.write(path, "noise")
    time.sleep(1)  # long enough for a change to have been taken up
    assert site.predict()["pid"] == old
    assert "ready again" not in site.output


def test_reload_leaves_nothing_behind(site: Site) -> None:
    """A stop in the middle of a reload ends the new replica, too."""
    site.serve("--reload")
    assert site.process
    site.write("model/model.py", WHO + "import time\ntime.sleep(60)\n")
    eventually(lambda: len(children(site.process.pid)) > 1 if site.process else False, "the new one starts")
    started = children(site.process.pid)
    assert site.stop() == 0
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started), "all have ended")
