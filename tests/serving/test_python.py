"""Models that run on the Python of another environment, with gusset's code and none of its libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import ModelProject, eventually

WORKER_LIST = Path(__file__).parents[2] / "src" / "gusset" / "environments" / "worker.txt"
VALUE = b"value-of-the-token-1"
UV = str(Path(sys.executable).parent / "uv")


def environment(folder: Path, python: str, *requirements: str) -> str:
    """The Python of a new environment; skips the test if this machine has no such Python."""
    base = python if python == sys.executable else installed(python)
    if base is None:
        pytest.skip(f"there is no Python {python} on this machine")
    run = [UV, "venv", "-q", "--python", base, str(folder)]
    subprocess.run(run, check=True, cwd=folder.parent)
    found = str(folder / "bin" / "python")
    if requirements:
        subprocess.run([UV, "pip", "install", "-q", "--python", found, *requirements], check=True, cwd=folder)
    return found


def installed(version: str) -> str | None:
    """The program of this version of Python, which pyenv may hide."""
    found = subprocess.run(
        [UV, "python", "find", "--no-python-downloads", version], capture_output=True, text=True
    )
    if found.returncode == 0:
        return found.stdout.strip()
    hidden = sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
    )
    return str(hidden[-1]) if hidden else None


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_a_model_runs_on_another_python(serve: ModelProject, tmp_path: Path, version: str) -> None:
    """It has gusset's code and the worker's libraries, nothing else of gusset's environment."""
    serve.secret("token", VALUE)
    served = serve(
        """
        import importlib.util, os, shutil, sys
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, name):
                print("the token is", self.secrets["token"], flush=True)
                return {
                    "prefix": sys.prefix,
                    "version": sys.version_info[:2],
                    "found": importlib.util.find_spec(name) is not None,
                    "python": shutil.which("python"),
                    "paths": sys.path,
                    "length": len(self.secrets["token"]),
                }
        """,
        python=environment(tmp_path / "own", version, "-r", str(WORKER_LIST)),
    ).ready()
    result = served.predict("sqlalchemy").json()
    assert result["prefix"] == str(tmp_path / "own")
    assert result["version"] == [int(part) for part in version.split(".")]
    assert not result["found"]
    assert served.predict("orjson").json()["found"]
    assert result["python"] == str(tmp_path / "own" / "bin" / "python")
    assert not any(path.startswith(sys.prefix + os.sep) for path in result["paths"])
    serve.secret("token", VALUE + b"-rotated")
    eventually(lambda: served.predict("x").json()["length"] == len(VALUE) + 8, "the rotated value")
    eventually(lambda: "the token is ***" in served.stdout, "the model's output")
    assert VALUE.decode() not in served.output
    assert served.stop() == 0


@pytest.mark.parametrize("kind", ["spawn", "forkserver"])
def test_processes_of_multiprocessing_are_protected_there_too(
    serve: ModelProject, tmp_path: Path, kind: str
) -> None:
    """Children and their children are non-dumpable, though gusset is not installed beside them."""
    served = serve(
        """
        import ctypes, multiprocessing
        def run(kind, pipe, depth):
            if depth:
                context = multiprocessing.get_context(kind)
                child = context.Process(target=run, args=(kind, pipe, depth - 1))
                child.start()
                child.join()
            pipe.send(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
        class Model:
            def predict(self, kind):
                ours, theirs = multiprocessing.Pipe()
                context = multiprocessing.get_context(kind)
                child = context.Process(target=run, args=(kind, theirs, 1))
                child.start()
                return [ours.recv(), ours.recv()]
        """,
        python=environment(tmp_path / "own", sys.executable, "-r", str(WORKER_LIST)),
    ).ready()
    response = served.predict(kind)
    assert response.json() == [0, 0], served.stderr


def test_a_model_may_pin_pydantic_1(serve: ModelProject, tmp_path: Path) -> None:
    """Typed input and output work; no other pydantic is needed."""
    python = environment(tmp_path / "own", sys.executable, "-r", str(WORKER_LIST), "pydantic<2")
    served = serve(
        """
        import pydantic
        assert pydantic.VERSION.startswith("1.")
        class Question(pydantic.BaseModel):
            text: str
            times: int = 2
        class Reply(pydantic.BaseModel):
            text: str
        class Model:
            def predict(self, question: Question) -> Reply:
                return Reply(text=question.text * question.times)
        """,
        python=python,
    ).ready()
    assert served.predict({"text": "ab"}).json() == {"text": "abab"}
    refused = served.predict({"times": 3})
    assert refused.status_code == 400
    assert "text" in refused.json()["error"]
    assert served.get("/v1/models/model/schema").json()["input_schema"]["title"] == "Question"


def test_a_python_without_the_workers_libraries_is_an_error(serve: ModelProject, tmp_path: Path) -> None:
    """The message names the Python and what to do; there is no traceback and no loop of restarts."""
    served = serve(
        "class Model:\n    def predict(self, x): return x",
        python=environment(tmp_path / "own", sys.executable),
    )
    assert served.ended() == 9
    assert "lacks what gusset's worker imports" in served.stderr
    assert "gusset env remove" in served.stderr
    assert "Traceback" not in served.stderr


def test_a_python_that_cannot_be_started_is_an_error(serve: ModelProject, tmp_path: Path) -> None:
    served = serve(
        "class Model:\n    def predict(self, x): return x", python=str(tmp_path / "gone" / "python")
    )
    assert served.ended() == 11
    assert f"{tmp_path}/gone/python, cannot be started: no such file or directory" in served.stderr
    assert "Traceback" not in served.stderr


def test_a_websocket_needs_its_libraries_at_the_start(serve: ModelProject, tmp_path: Path) -> None:
    """A model with a websocket on libraries that are too old does not become ready; the message names them."""
    python = environment(tmp_path / "own", sys.executable, "-r", str(WORKER_LIST), "uvicorn<0.30")
    served = serve(
        """
        class Model:
            async def websocket(self, websocket):
                await websocket.close()
        """,
        python=python,
    )
    assert served.ended() == 9
    assert "A websocket needs Starlette, uvicorn 0.35 and websockets 13, or newer" in served.stderr


def test_a_worker_waits_for_a_python_that_was_deleted(serve: ModelProject, tmp_path: Path) -> None:
    """After a crash it is started again once the Python is back; meanwhile the log says what is missing."""
    python = environment(tmp_path / "own", sys.executable, "-r", str(WORKER_LIST))
    served = serve("class Model:\n    def predict(self, x): return x", python=python).ready()
    away = tmp_path / "away"
    (tmp_path / "own").rename(away)
    os.kill(served.worker, signal.SIGKILL)
    eventually(lambda: "The model cannot be started again" in served.stderr, "the log")
    away.rename(tmp_path / "own")
    eventually(lambda: "The model is ready again." in served.stderr, "the restart")
    assert served.predict(5).json() == 5


def test_a_websocket_is_refused_where_its_libraries_are_missing(serve: ModelProject, tmp_path: Path) -> None:
    """A client that wants one from a model without is refused; the log stays empty."""
    python = environment(tmp_path / "own", sys.executable, "-r", str(WORKER_LIST))
    served = serve(
        "class Model:\n    def predict(self, x): return x",
        python=python,
        environ={"PYTHONHOME": sys.base_prefix},
    ).ready()
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-version": "13",
    }
    response = httpx.get(f"{served.address}/v1/websocket", headers=upgrade)
    assert response.status_code == 501
    assert "Traceback" not in served.stderr
