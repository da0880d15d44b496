"""`gusset serve` from the command line: add a secret, serve a model that uses it, call it, replace the secret."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.conftest import Cli, as_ordinary_process, leaks_in
from tests.serving.conftest import eventually

VALUE = b"hf_Zx81QqLmN4vTtYbWs93KdPfGhJcR2aXe5u"

CONFIG = """\
secrets:
  hf_access_token: null
"""
MODEL = """\
import hashlib

class Model:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        print("the token is", self._secrets["hf_access_token"])
        return {"sha": hashlib.sha256(self._secrets.bytes("hf_access_token")).hexdigest()}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "my-model")


def write_model(folder: Path, config: str = CONFIG, code: str = MODEL) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "model" / "model.py").write_text(code)
    return folder


@contextmanager
def served(
    gusset: Cli, *args: str, errors: Path, as_whom: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `gusset serve ... --port 0`; its address once it is ready, and the process."""
    command = [*as_whom, sys.executable, "-m", "gusset", "serve", *args, "--port", "0", "--output", "json"]
    with (
        errors.open("wb") as log,
        subprocess.Popen(command, env=gusset.environ, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout
        try:
            result = process.stdout.readline()
            assert result, errors.read_text()
            yield json.loads(result)["address"], process
        finally:
            process.send_signal(signal.SIGCONT)  # a test that failed may have left it paused
            process.terminate()
            process.wait()


def predict(address: str, body: object = None) -> httpx.Response:
    return httpx.post(f"{address}/v1/models/model:predict", json=body or {})


def sha(value: bytes) -> dict[str, str]:
    import hashlib

    return {"sha": hashlib.sha256(value).hexdigest()}


def test_a_served_model_has_the_secret_and_its_replacement(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """A new value reaches the model while it runs; no value is in its output."""
    errors = tmp_path / "errors"
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), errors=errors) as (address, process):
        assert predict(address).json() == sha(VALUE)

        gusset("secret", "set", "hf_access_token", input=VALUE + b"2")
        eventually(lambda: predict(address).json() == sha(VALUE + b"2"), "the new value in the model")
        process.terminate()
        assert process.wait(30) == 0

    printed = errors.read_bytes()
    assert b"the token is ***" in printed
    assert not leaks_in(printed, VALUE)


@pytest.mark.parametrize("stream", ["<", "2>"])
def test_a_model_is_served_while_a_standard_stream_is_closed(
    gusset: Cli, folder: Path, tmp_path: Path, stream: str
) -> None:
    """As an init system may start it; the model has all streams, and prints to one."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    closing = ("sh", "-c", f'exec "$@" {stream}&-', "sh")
    with served(gusset, str(folder), errors=tmp_path / "errors", as_whom=closing) as (address, process):
        assert predict(address).json() == sha(VALUE)
        process.terminate()
        assert process.wait(30) == 0


def test_a_model_is_served_by_a_process_that_was_started_with_sigchld_ignored(
    gusset: Cli, folder: Path, tmp_path: Path
) -> None:
    """As some programs start others: the end of each of its processes would go unnoticed."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    ignoring = ("env", "--ignore-signal=CHLD")
    with served(gusset, str(folder), errors=tmp_path / "errors", as_whom=ignoring) as (address, process):
        assert predict(address).json() == sha(VALUE)
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_on_all_addresses_announces_one_that_can_be_opened(
    gusset: Cli, folder: Path, tmp_path: Path, host: str
) -> None:
    """`0.0.0.0` is not an address to connect to."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), "--host", host, errors=tmp_path / "errors") as (address, _):
        assert address.startswith("http://localhost:")
        assert predict(address).json() == sha(VALUE)


def test_a_deleted_secret_is_gone_from_the_running_model(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """After `secret delete` the look-up fails like that of a secret without a value; `restore` brings it back."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        gusset("secret", "delete", "hf_access_token")
        eventually(lambda: predict(address).status_code == 500, "a failed request")
        gusset("secret", "restore", "hf_access_token")
        eventually(lambda: predict(address).status_code == 200, "a request that succeeds")
    assert b"gusset secret set hf_access_token" in (tmp_path / "errors").read_bytes()


def test_a_value_is_in_no_file_environment_or_argument(
    gusset: Cli, folder: Path, home: Path, tmp_path: Path
) -> None:
    """The vault's files, the environments and arguments of the processes, the logs, and /tmp."""
    since = time.time() - 1
    marker = b"leakcheck-" + os.urandom(12).hex().encode()
    gusset("secret", "set", "hf_access_token", input=marker)
    errors = tmp_path / "errors"
    with served(gusset, str(folder), errors=errors) as (address, process):
        predict(address)
        searched = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
        searched += [errors.read_bytes()]
        for pid in {process.pid, *children(process.pid)}:
            searched += [Path(f"/proc/{pid}/cmdline").read_bytes(), Path(f"/proc/{pid}/environ").read_bytes()]
        assert len(searched) > 6
        assert [leak for data in searched for leak in leaks_in(data, marker)] == []
        assert not holding(Path("/tmp"), marker, since)


def children(pid: int) -> list[int]:
    """Process ids below `pid`."""
    below = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return below + [pid for child in below for pid in children(child)]


def holding(folder: Path, value: bytes, since: float) -> list[str]:
    """Files below `folder`, changed since then, that contain the value; some are removed meanwhile."""
    found = []
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in names):
            with suppress(OSError):
                if os.path.isfile(path) and os.stat(path).st_mtime >= since:
                    found += [path] if value in Path(path).read_bytes() else []
    return found


PEEK = """
import sys
for pid in sys.argv[1:]:
    for name in ('mem', 'environ'):
        try:
            open(f'/proc/{pid}/{name}', 'rb').close()
            print(name)
        except PermissionError:
            pass
"""


@pytest.mark.parametrize(("flags", "seen"), [([], set()), (["--debuggable"], {"environ"})])
def test_other_processes_of_the_account_cannot_read_memory(
    gusset: Cli, folder: Path, tmp_path: Path, flags: list[str], seen: set[str]
) -> None:
    """Neither memory nor environment of supervisor and worker can be opened, except with --debuggable."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), *flags, errors=tmp_path / "errors", as_whom=as_ordinary_process()) as (
        _,
        process,
    ):
        pids = [str(pid) for pid in (process.pid, *children(process.pid))]
        command = [*as_ordinary_process(), sys.executable, "-c", PEEK, *pids]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert len(pids) >= 2
    assert set(done.stdout.split()) - {"mem"} == seen  # a kernel may refuse memory to all but parents
    assert flags or done.stdout == ""


# --- invalid input


def test_a_missing_folder_is_an_error_with_its_path(gusset: Cli, tmp_path: Path) -> None:
    assert b"no-such" in gusset("serve", str(tmp_path / "no-such"), status=3).stderr


@pytest.mark.parametrize(
    ("config", "line", "word"),
    [
        ("secrets: {a: null\n", ":", b""),
        ("model_name: a\nmodel_name: b\n", ":2:", b"model_name"),
        (f"secrets:\n  token: {VALUE.decode()}\n", ":2:", b"token"),
        ("resources:\n  cpu: 4\n", ":2:", b"resources.cpu"),
    ],
    ids=["broken", "duplicate key", "a real-looking token", "wrong type"],
)
def test_an_invalid_config_is_an_error_with_its_location(
    gusset: Cli, tmp_path: Path, config: str, line: str, word: bytes
) -> None:
    """Exit status 3 with file and line, without the text of a value and without a traceback."""
    folder = write_model(tmp_path / "m", config=config)

    done = gusset("serve", str(folder), "--port", "0", status=3)

    assert b"config.yaml" + line.encode() in done.stderr and word in done.stderr
    assert not leaks_in(done.stdout + done.stderr, VALUE)
    assert b"Traceback" not in done.stderr


def test_missing_secrets_are_listed_in_one_message(gusset: Cli, tmp_path: Path) -> None:
    """Each with its line and the command that adds it; the model's code has not run."""
    marker = tmp_path / "has-run"
    folder = write_model(
        tmp_path / "m",
        config="secrets:\n  first: null\n  second: null\n",
        code=f"open({str(marker)!r}, 'w')\n" + MODEL,
    )

    done = gusset("serve", str(folder), "--port", "0", status=5)

    assert b"config.yaml:2" in done.stderr and b"config.yaml:3" in done.stderr
    assert b"gusset secret set first" in done.stderr and b"gusset secret set second" in done.stderr
    assert not marker.exists()


def test_a_class_without_predict_is_an_error_with_the_lines_to_add(gusset: Cli, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", config="", code="class Model:\n    pass\n")
    assert b"def predict(self" in gusset("serve", str(folder), "--port", "0", status=3).stderr


@pytest.mark.parametrize("phase", ["import", "__init__", "load"])
def test_a_model_that_fails_to_start_is_an_error_with_its_traceback(
    gusset: Cli, tmp_path: Path, phase: str
) -> None:
    """Exit status 9; in the traceback the value is masked, and there is no frame of gusset."""
    code = {
        "import": "raise RuntimeError('at import')\n\nclass Model:\n    def predict(self, inputs): return inputs\n",
        "__init__": "class Model:\n"
        "    def __init__(self, secrets): raise RuntimeError('no ' + secrets['t'])\n"
        "    def predict(self, inputs): return inputs\n",
        "load": "class Model:\n    def __init__(self, secrets): self.s = secrets\n"
        "    def load(self): raise RuntimeError('no ' + self.s['t'])\n"
        "    def predict(self, inputs): return inputs\n",
    }[phase]
    folder = write_model(tmp_path / "m", config="secrets: {t: null}\n", code=code)
    gusset("secret", "set", "t", input=VALUE)

    done = gusset("serve", str(folder), "--port", "0", status=9)

    assert b"model.py" in done.stderr and b"RuntimeError" in done.stderr
    assert not leaks_in(done.stdout + done.stderr, VALUE)
    assert b"gusset/serving" not in done.stderr
    assert phase == "import" or b"***" in done.stderr


def test_a_port_in_use_is_an_error_that_names_it(gusset: Cli, folder: Path) -> None:
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port.encode() in gusset("serve", str(folder), "--port", port, status=11).stderr


def test_an_undeclared_look_up_is_logged_but_not_in_the_response(gusset: Cli, tmp_path: Path) -> None:
    """The log names the secret, the file and the key to add; the response does not."""
    folder = write_model(tmp_path / "m", code=MODEL.replace('"hf_access_token"]', '"undeclared_one"]'))
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        response = predict(address)
    assert response.status_code == 500 and "undeclared_one" not in response.text
    assert b"undeclared_one" in (tmp_path / "errors").read_bytes()
    assert b"config.yaml" in (tmp_path / "errors").read_bytes()


def test_mistakes_in_the_code_are_reported_at_the_start(gusset: Cli, tmp_path: Path) -> None:
    """An undeclared secret, or a keyword that transformers ignores: file and line, before the first request."""
    code = MODEL.replace('"hf_access_token"]', '"undeclared_one"]')
    code += "        from transformers import pipeline\n        pipeline(use_auth_token=1)\n"
    folder = write_model(tmp_path / "m", code=code)
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), errors=tmp_path / "errors"):
        pass
    log = (tmp_path / "errors").read_text()
    assert "model.py:8:" in log and "undeclared_one is used but not declared" in log
    assert "write token=" in log


def test_a_body_that_is_not_json_gets_status_400(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """With the message of Truss's server."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        response = httpx.post(f"{address}/v1/models/model:predict", content=b"{nope")
    assert response.status_code == 400
    assert response.json()["error"].startswith("Invalid JSON payload: ")


def test_secrets_from_the_environment_are_removed_from_it(gusset: Cli, tmp_path: Path) -> None:
    """TRUSS_SECRET_x is accepted with a warning, and is not in the environment that the model sees."""
    code = (
        "import os\nSEEN = [n for n in os.environ if 'SECRET' in n]\n"
        "class Model:\n    def __init__(self, secrets): self.s = secrets\n"
        "    def predict(self, inputs): return {'seen': SEEN, 'length': len(self.s['x'])}\n"
    )
    folder = write_model(tmp_path / "m", config="secrets: {x: null}\n", code=code)
    gusset.environ["TRUSS_SECRET_x"] = VALUE.decode()
    with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
        assert predict(address).json() == {"seen": [], "length": len(VALUE)}
    assert b"TRUSS_SECRET_x" in (tmp_path / "errors").read_bytes()


def test_predict_serves_a_folder_for_one_call(gusset: Cli, folder: Path) -> None:
    """`gusset predict DIR` prints only the response on standard output, and nothing of the server's stop."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    done = gusset("predict", str(folder), "--data", "{}")
    assert json.loads(done.stdout) == sha(VALUE)
    assert b"Stopping" not in done.stderr
    assert not leaks_in(done.stderr, VALUE)


def test_predict_has_the_exit_status_of_serve(gusset: Cli, folder: Path) -> None:
    """And prints why a folder cannot be served."""
    assert b"hf_access_token" in gusset("predict", str(folder), "--data", "{}", status=5).stderr
    assert gusset("predict", str(folder), "--data", "{nope", status=2).stderr
    assert gusset("predict", "http://127.0.0.1:9", "--data", "{}", status=8).stderr


def test_a_new_folder_can_be_served(gusset: Cli, tmp_path: Path) -> None:
    """`check`, `serve` and `predict` accept what `gusset init` creates; it never overwrites a file."""
    folder = tmp_path / "fresh"
    gusset("init", str(folder))
    assert b"api_key" in gusset("check", str(folder), status=4).stderr
    gusset("secret", "set", "api_key", input=VALUE)
    gusset("check", str(folder))
    assert gusset("predict", str(folder), "--data", '{"text": "hello"}').stdout
    (folder / "config.yaml").write_text("model_name: mine\n")
    gusset("init", str(folder), status=6)
    assert (folder / "config.yaml").read_text() == "model_name: mine\n"


def test_commands_in_hints_can_be_pasted_when_a_folder_has_a_space(gusset: Cli, tmp_path: Path) -> None:
    """The folder's path is quoted for the shell."""
    folder = tmp_path / "my model"
    folder.mkdir()
    assert f"`gusset init '{folder}'`".encode() in gusset("check", str(folder), status=3).stderr
    assert f"`gusset serve '{folder}'`".encode() in gusset("init", str(folder)).stdout


def test_the_demo_succeeds(gusset: Cli) -> None:
    """`gusset demo --once` has status 0 only if the prediction was correct; its output is masked."""
    done = gusset("demo", "--once")
    assert b"signing with ***" in done.stderr
    assert b"the prediction is correct" in done.stdout


def test_what_was_masked_is_in_the_vaults_audit_log(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """Also without a manager: evidence that a model leaks, in sums."""
    gusset("secret", "set", "hf_access_token", input=VALUE)
    with served(gusset, str(folder), errors=tmp_path / "err") as (address, _):
        assert predict(address).status_code == 200
    shown = gusset("audit", "show", "--output", "json").stdout
    [record] = [each for each in json.loads(shown)["records"] if each["action"] == "secret.masked"]
    assert record["details"]["times"] == {"hf_access_token": {"plain, stdout": 1}}
    assert gusset("audit", "verify").returncode == 0


def test_check_looks_for_secrets_where_serve_does(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """In the folder of --secrets-dir, and in the environment; an absent source is an error."""
    values = tmp_path / "values"
    values.mkdir()
    options = ("check", str(folder), "--secrets-dir")
    missing = gusset(*options, str(values), status=4)
    assert str(values / "hf_access_token").encode() in missing.stderr
    gusset("check", str(folder), TRUSS_SECRET_hf_access_token=VALUE.decode())

    (values / "hf_access_token").write_bytes(VALUE)
    done = gusset(*options, str(values))

    assert not leaks_in(done.stdout + done.stderr, VALUE)
    gusset("check", str(folder), status=4)
    gusset(*options, str(tmp_path / "absent"), status=8)
    gusset("check", str(folder), "--manager", "http://127.0.0.1:9", status=7)
    gusset(*options, str(values), "--manager", "http://127.0.0.1:9", status=2)


def test_check_of_a_custom_image_reports_an_absent_library(gusset: Cli, tmp_path: Path) -> None:
    config = (
        "base_image: {image: x}\ndocker_server: {start_command: serve, server_port: 8000,"
        " predict_endpoint: /p, readiness_endpoint: /r, liveness_endpoint: /l}\n"
    )
    folder = write_model(tmp_path / "image", config)
    absent = tmp_path / "path" / "docker"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ModuleNotFoundError")

    done = gusset("check", str(folder), status=4, PYTHONPATH=str(absent.parent))

    assert b"pip install 'gusset[containers]'" in done.stderr
