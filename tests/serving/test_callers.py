"""A model that is only for its callers: who gets in, what is refused, and where the keys are."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import Cli, leaks_in
from tests.serving.conftest import PATIENCE, children, eventually

KEY = b"caller-Zx81QqLmN4vTtYbWs93KdPfGhJcR2aXe"
OTHER = b"caller-7GhTrW2bNpQx5LkMvC9sYdFj3HzRt8Ue"
PREDICT = "/v1/models/model:predict"

CONFIG = "secrets: {}\n"
MODEL = """\
from starlette.requests import Request

class Model:
    def predict(self, inputs, request: Request):
        return {"inputs": inputs, "headers": sorted(request.headers.keys())}
"""
STREAM = """\
class Model:
    def predict(self, inputs):
        yield from ("a", "b")
"""
WEBSOCKET = """\
class Model:
    async def websocket(self, websocket):
        await websocket.send_json(sorted(websocket.headers.keys()))
"""


class Served:
    """One run of `gusset serve`."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, errors: Path) -> None:
        self.process = process
        self.address = address
        self._errors = errors

    @property
    def printed(self) -> str:
        return self._errors.read_text()

    @property
    def worker(self) -> int:
        return children(children(self.process.pid)[0])[0]

    def request(self, path: str, key: bytes | None = None, scheme: str = "Api-Key", **given: object) -> int:
        return self.response(path, key, scheme, **given).status_code

    def response(
        self,
        path: str,
        key: bytes | None = None,
        scheme: str = "Api-Key",
        method: str = "GET",
        **given: object,
    ) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"{scheme} {key.decode()}".rstrip()}
        return httpx.request(method, self.address + path, headers=headers, timeout=PATIENCE, **given)

    def predict(self, key: bytes | None = None, scheme: str = "Api-Key") -> httpx.Response:
        return self.response(PREDICT, key, scheme, "POST", json={"a": 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "guarded"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "model" / "model.py").write_text(MODEL)
    return folder


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    secrets = tmp_path / "keys"
    secrets.mkdir()
    (secrets / "app").write_bytes(KEY)
    return secrets


@contextmanager
def serving(gusset: Cli, folder: Path, secrets: Path, *args: str) -> Iterator[Served]:
    errors = folder.parent / "errors"
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0", "--output", "json"]
    command += ["--secrets-dir", str(secrets), *args]
    with (
        errors.open("wb") as log,
        subprocess.Popen(command, env=gusset.environ, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert line, errors.read_text()
            address = json.loads(line).get("address")
            assert address, line
            yield Served(process, address, errors)
        finally:
            process.terminate()
            process.wait()


def replace_file(file: Path, content: bytes) -> None:
    """Write to another file and rename it, so that nobody reads half of it."""
    temporary = file.parent.parent / f".{file.name}"
    temporary.write_bytes(content)
    temporary.rename(file)


def test_only_a_caller_may_predict(gusset: Cli, folder: Path, secrets: Path) -> None:
    """Both schemes, in any case. The model does not get the header."""
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        for scheme in ("Api-Key", "api-key", "Bearer", "BEARER"):
            response = served.predict(KEY, scheme)
            assert response.status_code == 200
            assert response.json()["inputs"] == {"a": 1}
            assert "authorization" not in response.json()["headers"]
        for key, scheme in (
            (None, ""),
            (OTHER, "Api-Key"),
            (KEY[:-1], "Bearer"),
            (KEY, "Basic"),
            (b"", "Bearer"),
        ):
            response = served.predict(key, scheme)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Api-Key, Bearer"
            assert "caller" in response.json()["error"]
            assert not leaks_in(response.content, KEY)


def test_probes_are_open_and_everything_else_needs_a_key(gusset: Cli, folder: Path, secrets: Path) -> None:
    """Also paths that do not exist, those of the hosted platform, and other spellings of open ones."""
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        for path in ("/", "/ping", "/v1/models/model", "/v1/models/model/loaded"):
            assert served.request(path) == 200
            assert served.request(path, method="HEAD") == 200
            assert served.request(path, method="POST") == 401
        for path in (
            *("/metrics", "/metrics/", "/v1/models", "/v1/models/other", "/v1/models/model/schema"),
            *("/nothing", "//", "/sync/", "/sync/metrics", "/production/predict", "/development/predict"),
            *("/environments/x/predict", "/deployment/x/predict", "/async_predict", "/v1/chat/completions"),
            *("/predict", "/invocations", "/v1/models/model%2Floaded", "/v1/models/%6Dodel"),
        ):
            assert served.request(path) == 401, path
            assert served.request(path, method="POST", content=b"{}") == 401, path
        assert served.request("/metrics", KEY) == 200
        assert served.request("/nothing", KEY) == 404
        assert served.request("/sync/predict", KEY, method="POST", content=b"{}") == 200


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_probe_with_a_body_needs_a_key(gusset: Cli, folder: Path, secrets: Path, framing: bytes) -> None:
    """Strangers cannot have bodies read, of up to 100 MB."""
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        import socket

        port = int(served.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: a.localhost\r\n" + framing + b"\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 401 ")
        assert served.response("/ping", content=b"").status_code == 200


def test_a_stream_needs_a_key(gusset: Cli, folder: Path, secrets: Path) -> None:
    (folder / "model" / "model.py").write_text(STREAM)
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        assert served.predict().status_code == 401
        assert served.predict(KEY).text == "ab"


def test_a_websocket_needs_a_key(gusset: Cli, folder: Path, secrets: Path) -> None:
    """The model does not get the key."""
    (folder / "model" / "model.py").write_text(WEBSOCKET)
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        url = served.address.replace("http", "ws") + "/v1/websocket"
        with pytest.raises(InvalidStatus) as refused:
            connect(url)
        assert refused.value.response.status_code == 401
        with connect(url, additional_headers={"Authorization": f"Api-Key {KEY.decode()}"}) as websocket:
            assert "authorization" not in json.loads(websocket.recv())


def test_a_request_is_refused_before_its_body_is_read(gusset: Cli, folder: Path, secrets: Path) -> None:
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        import socket

        port = int(served.address.rpartition(":")[2])
        for expects in (b"", b"Expect: 100-continue\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                client.sendall(
                    b"POST /predict HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 9999999\r\n"
                    + expects
                    + b"\r\n"
                )
                assert client.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_callers_are_counted_by_name(gusset: Cli, folder: Path, secrets: Path) -> None:
    """In /metrics, also those that have sent nothing; refused requests are counted together."""
    (secrets / "batch").write_bytes(OTHER)
    with serving(gusset, folder, secrets, "--callers", "app,batch") as served:
        served.predict(KEY)
        served.predict(KEY)
        served.predict(None)
        exposition = served.response("/metrics", KEY).text
    assert 'gusset_caller_requests_total{caller="app"} 3' in exposition
    assert 'gusset_caller_requests_total{caller="batch"} 0' in exposition
    assert "gusset_caller_refused_total 1" in exposition
    assert not leaks_in(exposition.encode(), KEY)


def test_a_new_key_of_a_caller_counts_at_once(gusset: Cli, folder: Path, secrets: Path) -> None:
    """The old one does not any more; with several workers, too. A removed one lets nobody in."""
    with serving(gusset, folder, secrets, "--callers", "app", "--workers", "2") as served:
        replace_file(secrets / "app", OTHER)
        eventually(lambda: all(served.predict(OTHER).status_code == 200 for _ in range(8)), "the new key")
        eventually(lambda: all(served.predict(KEY).status_code == 401 for _ in range(8)), "the old key's end")
        (secrets / "app").unlink()
        eventually(lambda: all(served.predict(OTHER).status_code == 401 for _ in range(8)), "nobody")
        assert served.predict(b"").status_code == 401


def test_callers_in_the_config_and_on_the_command_line_add_up(
    gusset: Cli, folder: Path, secrets: Path
) -> None:
    (secrets / "batch").write_bytes(OTHER)
    (folder / "config.yaml").write_text("model_metadata: {gusset: {callers: [batch]}}\n")
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        assert served.predict(KEY).status_code == 200
        assert served.predict(OTHER).status_code == 200
        assert served.predict().status_code == 401


def test_reload_follows_changed_callers(gusset: Cli, folder: Path, secrets: Path) -> None:
    """From one caller to another, to none, and to one again; a caller that is also a secret changes nothing."""
    (secrets / "batch").write_bytes(OTHER)
    (secrets / "token").write_bytes(b"model-" + OTHER)
    config = folder / "config.yaml"
    config.write_text("secrets: {token: null}\nmodel_metadata: {gusset: {callers: [app]}}\n")
    with serving(gusset, folder, secrets, "--reload") as served:

        def statuses() -> list[int]:
            return [served.predict(key).status_code for key in (None, KEY, OTHER)]

        assert statuses() == [401, 200, 401]
        config.write_text("secrets: {token: null}\nmodel_metadata: {gusset: {callers: [batch]}}\n")
        eventually(lambda: statuses() == [401, 401, 200], "the other caller")
        replace_file(secrets / "batch", KEY)
        eventually(lambda: statuses() == [401, 200, 401], "the new key of the other caller")
        config.write_text("secrets: {batch: null}\nmodel_metadata: {gusset: {callers: [batch]}}\n")
        eventually(lambda: "The change is not served" in served.printed, "the refusal")
        assert statuses() == [401, 200, 401]
        config.write_text("secrets: {token: null}\n")
        eventually(lambda: statuses() == [200, 200, 200], "everyone")
        config.write_text("secrets: {token: null}\nmodel_metadata: {gusset: {callers: [app, batch]}}\n")
        eventually(lambda: statuses() == [401, 200, 401], "callers again")


def test_a_key_is_demanded_while_no_worker_accepts(gusset: Cli, folder: Path, secrets: Path) -> None:
    """The supervisor responds meanwhile: probes as ever, everything else needs a key."""
    code = (
        "import os\n"
        + MODEL
        + "\n    def load(self):\n        if os.path.exists('slow'):\n            import time; time.sleep(60)\n"
    )
    (folder / "model" / "model.py").write_text(code)
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        (folder / "slow").touch()
        os.kill(served.worker, 9)
        eventually(lambda: served.request("/v1/models/model") == 503, "the supervisor responds")
        assert served.request("/") == 200
        assert served.predict().status_code == 401
        assert served.predict(OTHER).status_code == 401
        assert served.predict(KEY).status_code == 503


def memory_of(pid: int) -> Iterator[bytes]:
    """All readable memory of a process, region by region."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            start, end, mode = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
            if mode.startswith("r") and "[v" not in line:
                memory.seek(int(start, 16))
                try:
                    yield memory.read(int(end, 16) - int(start, 16))
                except OSError:
                    continue


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of a hardened process")
def test_the_key_is_in_no_process_of_the_model_and_in_no_argument_environment_or_log(
    gusset: Cli, folder: Path, secrets: Path
) -> None:
    """The worker's memory is read before any request; a key that is presented passes through it, of course."""
    (secrets / "token").write_bytes(b"model-" + OTHER)
    (folder / "config.yaml").write_text("secrets: {token: null}\n")
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        regions = list(memory_of(served.worker))
        assert any(b"model-" + OTHER in region for region in regions), "the test can find values"
        assert not any(KEY in region for region in regions)
        replace_file(secrets / "app", KEY + b"-2")
        eventually(lambda: "Secrets changed: app" in served.printed, "rotation")
        eventually(
            lambda: not any(KEY in region for region in memory_of(served.worker)), "the old key is forgotten"
        )

        assert served.predict(KEY + b"-2").status_code == 200
        for pid in (served.process.pid, children(served.process.pid)[0], served.worker):
            for name in ("environ", "cmdline"):
                assert KEY not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert not leaks_in(served.printed.encode(), KEY)


def test_the_supervisor_masks_a_key_that_the_model_prints(gusset: Cli, folder: Path, secrets: Path) -> None:
    (folder / "model" / "model.py").write_text(
        "class Model:\n    def predict(self, i):\n        print('got', i)\n"
    )
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        assert served.response(PREDICT, KEY, "Api-Key", "POST", json=KEY.decode()).status_code == 200
        eventually(lambda: "got ***" in served.printed, "the masked line")
    assert not leaks_in(served.printed.encode(), KEY)


def test_a_caller_that_is_also_a_secret_of_the_model_is_refused(
    gusset: Cli, folder: Path, secrets: Path
) -> None:
    """Exit status 3, in every spelling, with the line of the config; nothing is served."""
    (folder / "config.yaml").write_text("secrets:\n  my-app: null\n")
    result = gusset("serve", str(folder), "--callers", "my_app", "--secrets-dir", str(secrets), status=3)

    assert b"config.yaml:2" in result.stderr and b"my_app" in result.stderr


def test_a_missing_key_of_a_caller_stops_serve(gusset: Cli, folder: Path, secrets: Path) -> None:
    result = gusset("serve", str(folder), "--callers", "app,batch", "--secrets-dir", str(secrets), status=5)

    assert b"batch (--callers): gusset secret set batch" in result.stderr


def test_a_model_that_others_can_reach_without_callers_is_served_with_a_warning(
    gusset: Cli, folder: Path, secrets: Path
) -> None:
    with serving(gusset, folder, secrets, "--host", "0.0.0.0") as served:
        assert "--callers" in served.printed
    with serving(gusset, folder, secrets, "--host", "0.0.0.0", "--callers", "app") as served:
        assert "--callers" not in served.printed


# TLS


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    chain, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ],
            "-keyout",
            str(key),
            "-out",
            str(chain),
            "-subj",
            f"/CN={name}",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
    return chain, key


def trusting(*chains: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for chain in chains:
        context.load_verify_locations(chain)
    return context


@pytest.mark.parametrize("workers", ["1", "2"])
def test_https_is_served(gusset: Cli, folder: Path, secrets: Path, workers: str) -> None:
    """Also when several processes accept on the socket. A client without TLS gets nothing, and harms nothing."""
    chain, key = make_certificate(folder.parent, "first")
    options = ["--tls-certificate", str(chain), "--tls-key", str(key), "--callers", "app"]
    with serving(gusset, folder, secrets, *options, "--workers", workers) as served:
        assert served.address.startswith("https://")
        context = trusting(chain)
        headers = {"authorization": f"Bearer {KEY.decode()}"}
        for _ in range(4):
            response = httpx.post(served.address + PREDICT, json=1, headers=headers, verify=context)
            assert response.json()["inputs"] == 1
        assert httpx.get(served.address + "/metrics", verify=context).status_code == 401
        with pytest.raises(httpx.HTTPError):
            httpx.get(served.address.replace("https", "http"))
        assert httpx.get(served.address, verify=context).status_code == 200
    assert "Traceback" not in served.printed


def test_a_websocket_opens_over_tls(gusset: Cli, folder: Path, secrets: Path) -> None:
    (folder / "model" / "model.py").write_text(WEBSOCKET)
    chain, key = make_certificate(folder.parent, "first")
    with serving(gusset, folder, secrets, "--tls-certificate", str(chain), "--tls-key", str(key)) as served:
        url = served.address.replace("https", "wss") + "/v1/websocket"
        # About one in 200 handshakes of this client does not end over TLS; those of plain sockets all do.
        for _ in range(3):
            try:
                websocket = connect(url, ssl=trusting(chain), open_timeout=20)
            except TimeoutError:
                continue
            with websocket:
                assert "host" in json.loads(websocket.recv())
            return
    pytest.fail("three handshakes did not end")


def test_a_new_certificate_is_used_without_a_restart(gusset: Cli, folder: Path, secrets: Path) -> None:
    """A broken one is logged, and the certificate from before stays in use."""
    chain, key = make_certificate(folder.parent, "first")
    new_chain, new_key = make_certificate(folder.parent, "second")
    first, second = trusting(chain), trusting(new_chain)
    with serving(gusset, folder, secrets, "--tls-certificate", str(chain), "--tls-key", str(key)) as served:
        key.write_bytes(b"not a key")
        eventually(lambda: "stays in use" in served.printed, "the broken key is logged")
        assert str(key) in served.printed
        assert httpx.get(served.address, verify=first).status_code == 200
        chain.write_bytes(new_chain.read_bytes())
        key.write_bytes(new_key.read_bytes())
        eventually(lambda: connects(served.address, second), "the new certificate")
        assert not connects(served.address, first)


def connects(address: str, context: ssl.SSLContext) -> bool:
    try:
        return httpx.get(address, verify=context).status_code == 200
    except httpx.ConnectError:
        return False


def test_bad_tls_files_stop_the_start(gusset: Cli, folder: Path, secrets: Path) -> None:
    """The message names the file and what is wrong with it, in words."""
    chain, key = make_certificate(folder.parent, "first")
    other = make_certificate(folder.parent, "second")[1]
    encrypted, cut, empty = (folder.parent / name for name in ("encrypted.key", "cut.pem", "empty"))
    command = ["openssl", "pkey", "-in", str(key), "-out", str(encrypted), "-aes256", "-passout", "pass:x"]
    subprocess.run(command, check=True)
    cut.write_bytes(chain.read_bytes()[:150])
    empty.touch()
    for given_chain, given_key, expected in (
        (chain, other, f"{other}: the key does not belong to the certificate"),
        (chain, encrypted, "the key is encrypted with a password"),
        (chain, empty, "the key's file is empty"),
        (chain, chain, "the key's file has a certificate, and no private key"),
        (chain, folder / "config.yaml", "the key's file is not PEM"),
        (chain, cut, "the key's file has a certificate"),
        (key, key, "the certificate's file has a private key, and no certificate"),
        (cut, key, "the certificate's file is damaged or incomplete"),
        (empty, key, "the certificate's file is empty"),
        (folder / "config.yaml", key, "the certificate's file is not PEM"),
        (folder, key, f"'{folder}' is a directory"),
        (folder / "none", key, "none' does not exist"),
    ):
        options = ["--tls-certificate", str(given_chain), "--tls-key", str(given_key)]
        result = gusset("serve", str(folder), "--secrets-dir", str(secrets), *options, status=2)
        assert expected in result.stderr.decode()
        assert b"ssl" not in result.stderr.lower().replace(b"openssl", b"")
    result = gusset("serve", str(folder), "--tls-certificate", str(chain), status=2)
    assert b"--tls-key" in result.stderr


# gusset predict


def test_predict_sends_the_key_of_a_caller(gusset: Cli, folder: Path, secrets: Path) -> None:
    """From a source of secrets or from a file; without one the error says how."""
    with serving(gusset, folder, secrets, "--callers", "app") as served:
        given = ["predict", served.address, "-d", "1"]
        result = gusset(*given, "--caller", "app", "--secrets-dir", str(secrets))
        assert json.loads(result.stdout)["inputs"] == 1
        key_file = folder.parent / "key"
        key_file.write_bytes(KEY + b"\n")
        assert json.loads(gusset(*given, "--caller-file", str(key_file)).stdout)["inputs"] == 1

        result = gusset(*given, status=7)
        assert b"--caller NAME" in result.stderr
        key_file.write_bytes(OTHER)
        result = gusset(*given, "--caller-file", str(key_file), status=7)
        assert not leaks_in(result.stderr, OTHER)
        key_file.write_bytes(KEY + b"\n" + OTHER)
        result = gusset(*given, "--caller-file", str(key_file), status=2)
        assert not leaks_in(result.stderr, OTHER)
