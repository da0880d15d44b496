"""How secrets reach a running model, and where they must not appear."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
import msgpack
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conftest import leaks_in
from tests.serving.conftest import ModelProject, RunningServer, eventually

VALUE = b"s3cr3t-v4lue-0123456789"
LOOKUP = """
    class Model:
        def __init__(self, secrets):
            self.secrets = secrets
        def predict(self, x):
            return self.secrets.get("token", "none")
    """


def test_the_model_gets_the_exact_bytes(serve: ModelProject) -> None:
    """Any bytes are possible, up to 64 KiB."""
    value = bytes(range(256)) * 256
    serve.secret("token", value)
    served = serve(
        """
        import hashlib
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                return hashlib.sha256(self.secrets.bytes("token")).hexdigest()
        """
    ).ready()
    import hashlib

    assert served.predict().json() == hashlib.sha256(value).hexdigest()


def test_rotation_reaches_the_running_model(serve: ModelProject) -> None:
    """Without a restart, a new value is looked up, a removed one is missing, and a re-added one is there."""
    serve.secret("token", b"first-value")
    served = serve(LOOKUP).ready()
    worker = served.worker
    assert served.predict().json() == "first-value"
    serve.secret("token", b"second-value")
    eventually(lambda: served.predict().json() == "second-value", "the second value")
    (serve.secrets_dir / "token").unlink()
    eventually(lambda: served.predict().json() == "none", "the removal")
    serve.secret("token", b"third-value")
    eventually(lambda: served.predict().json() == "third-value", "the third value")
    assert served.worker == worker


def test_on_change_callbacks_get_the_new_value(serve: ModelProject) -> None:
    """One that fails is logged, masked, and does not prevent the others."""
    serve.secret("token", b"first-value")
    served = serve(
        """
        class Model:
            def __init__(self, secrets):
                self.seen = []
                secrets.on_change("token", self.bad)
                secrets.on_change("token", self.seen.append)
            def bad(self, value):
                raise ValueError("no use for " + value)
            def predict(self, x):
                return self.seen
        """
    ).ready()
    serve.secret("token", VALUE)
    eventually(lambda: served.predict().json() == [VALUE.decode()], "the callback")
    eventually(lambda: "no use for ***" in served.stderr, "the log")
    assert not leaks_in(served.output.encode(), VALUE)


def test_the_model_keeps_its_values_while_the_source_is_unreachable(serve: ModelProject) -> None:
    """One warning is logged; values that were set meanwhile arrive afterwards."""
    serve.secret("token", VALUE)
    served = serve(LOOKUP).ready()
    away = serve.secrets_dir.rename(serve.secrets_dir.parent / "away")
    eventually(lambda: "the current values stay in use" in served.stderr, "the warning")
    assert served.predict().json() == VALUE.decode()
    (away / "token").write_bytes(b"a-later-value")
    away.rename(serve.secrets_dir)
    eventually(lambda: served.predict().json() == "a-later-value", "the later value")
    assert served.stderr.count("the current values stay in use") == 1


def test_a_restarted_worker_gets_the_newest_values(serve: ModelProject) -> None:
    """A value that was rotated before a crash is there after it."""
    serve.secret("token", b"first-value")
    served = serve(LOOKUP).ready()
    serve.secret("token", b"second-value")
    eventually(lambda: served.predict().json() == "second-value", "the second value")
    os.kill(served.worker, 9)
    eventually(lambda: "ready again" in served.stderr, "the restart")
    assert served.predict().json() == "second-value"


PRINTING = {
    "print": "print('it is', v)",
    "stderr": "print('it is', v, file=sys.stderr)",
    "logging": "logging.getLogger('mine').warning('it is %s', v)",
    "native write": "os.write(1, b'it is ' + v.encode() + b'\\n')",
    "child process": "subprocess.run(['sh', '-c', 'read v; echo it is $v'], input=v.encode() + b'\\n')",
    "in two pieces": "sys.stdout.write('it is ' + v[:9]); sys.stdout.flush(); print(v[9:])",
    "byte by byte": "[os.write(1, bytes([c])) for c in b'it is ' + v.encode() + b'\\n']",
    "base64": "print('it is', base64.b64encode(('user:' + v).encode()).decode())",
    "hex": "print('it is', v.encode().hex())",
}


@pytest.mark.parametrize("way", PRINTING)
def test_output_is_masked(serve: ModelProject, way: str) -> None:
    """However a value is printed by the worker's processes, `***` is shown instead."""
    serve.secret("token", VALUE)
    served = serve(
        f"""
        import base64, logging, os, subprocess, sys, time
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                v = self.secrets["token"]
                {PRINTING[way]}
        """
    ).ready()
    served.predict()
    eventually(lambda: "***" in served.output and "it is" in served.output, "the output")
    assert not leaks_in(served.output.encode(), VALUE)


def test_new_and_old_values_are_masked_after_a_rotation(serve: ModelProject) -> None:
    """The masker learns a value before the model gets it, and does not forget the old one."""
    serve.secret("token", b"first-secret-value")
    served = serve(
        """
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
                self.old = secrets["token"]
            def predict(self, x):
                print("now", self.secrets["token"], "before", self.old)
                return self.secrets["token"]
        """
    ).ready()
    serve.secret("token", VALUE)
    eventually(lambda: served.predict().json() == VALUE.decode(), "the new value")
    assert served.stop() == 0
    assert "now *** before ***" in served.stdout
    assert not leaks_in(served.output.encode(), VALUE, b"first-secret-value")


def test_values_of_long_ago_are_forgotten(serve: ModelProject) -> None:
    """By the supervisor and by the worker, which would grow else; at least 16 changes stay masked."""
    values = [f"secret-value-number-{number:04}" for number in range(40)]
    serve.secret("token", values[0].encode())
    served = serve(
        """
        from starlette.exceptions import HTTPException
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                if x is None:
                    return self.secrets["token"]
                print("printed", *x, flush=True)
                raise HTTPException(418, "raised " + " ".join(x))
        """
    ).ready()
    for value in values[1:]:
        serve.secret("token", value.encode())
        eventually(lambda value=value: served.predict().json() == value, "the new value")
    shown = " ".join([values[0], *["***"] * 16])
    assert f"raised {shown}" in served.predict([values[0], *values[-16:]]).text
    eventually(lambda: f"printed {shown}\n" in served.stdout, "the output")


def test_a_value_that_a_stopped_worker_holds_is_masked_after_any_number_of_changes(
    serve: ModelProject,
) -> None:
    """It may print the value when it goes on, before it swaps."""
    go = serve.folder.parent / "go"
    serve.secret("token", VALUE)
    served = serve(
        f"""
        import pathlib, threading, time
        class Model:
            def __init__(self, secrets):
                self.old = secrets["token"]
            def load(self):
                threading.Thread(target=self.print_later, daemon=True).start()
            def print_later(self):
                while not pathlib.Path({str(go)!r}).exists():
                    time.sleep(0.01)
                print("it was", self.old, flush=True)
            def predict(self, x):
                return x
        """
    ).ready()
    worker = served.worker
    os.kill(worker, signal.SIGSTOP)
    for number in range(1, 41):
        serve.secret("token", b"secret-value-number-%04d" % number)
        eventually(lambda n=number: served.stderr.count("Secrets changed") == n, "the change")
    go.touch()
    os.kill(worker, signal.SIGCONT)
    eventually(lambda: "it was" in served.stdout, "the output")
    assert "it was ***\n" in served.stdout
    assert not leaks_in(served.output.encode(), VALUE)


def test_interactive_output_is_not_held_back(serve: ModelProject) -> None:
    """Output without a newline is shown, even if its end could be the start of a value."""
    serve.secret("token", VALUE)
    served = serve(
        """
        import sys
        class Model:
            def predict(self, x):
                sys.stdout.write("progress: s3cr3t-v")
        """
    ).ready()
    served.predict()
    eventually(lambda: served.stdout.endswith("progress: s3cr3t-v"), "the unfinished line")


def test_a_value_too_short_to_be_masked_is_reported_at_the_start(serve: ModelProject) -> None:
    """Masking a value under eight bytes would also mask innocent text."""
    serve.secret("token", b"short")
    served = serve(LOOKUP).ready()
    assert "Too short to be masked in output (under 8 bytes): token" in served.stderr


def test_warnings_about_values_are_given_once_per_name(serve: ModelProject) -> None:
    """A rotation repeats no warning about a short value or one from the environment."""
    serve.secret("token", b"short")
    environ = {"TRUSS_SECRET_other": "a-value-of-the-environment"}
    served = serve(LOOKUP, declared=("token", "other"), environ=environ).ready()
    serve.secret("token", b"tiny")
    eventually(lambda: served.predict().json() == "tiny", "the new value")
    assert served.stop() == 0
    assert served.stderr.count("Too short to be masked") == 1
    assert served.stderr.count("TRUSS_SECRET_other") == 1


def test_a_value_that_looks_like_a_mistake_is_reported_whatever_its_source(serve: ModelProject) -> None:
    """A file with a final newline, an empty one, a variable with a placeholder: once, without the value."""
    serve.secret("token", VALUE + b"\n")
    serve.secret("blank", b"")
    environ = {"TRUSS_SECRET_other": "<your token here>"}
    served = serve(LOOKUP, declared=("token", "blank", "other"), environ=environ).ready()
    for name, finding in (
        ("token", "ends in white space"),
        ("blank", "is empty"),
        ("other", "a placeholder"),
    ):
        eventually(lambda name=name, text=finding: has_warning(served, name, text), finding)  # type: ignore[misc]
    serve.secret("token", b"another-value-of-it\n")
    eventually(lambda: served.predict().json() == "another-value-of-it\n", "the new value")
    assert served.stop() == 0
    assert served.stderr.count("ends in white space") == 1
    assert VALUE.decode() not in served.stderr


def has_warning(served: RunningServer, name: str, text: str) -> bool:
    return any(f"{name} (from " in line and text in line for line in served.stderr.splitlines())


def test_no_value_in_environment_or_arguments(serve: ModelProject) -> None:
    """No process has a value in its arguments or its environment."""
    serve.secret("token", VALUE)
    served = serve(LOOKUP).ready()
    assert served.predict().json() == VALUE.decode()
    for pid in (served.process.pid, served.shim, served.worker):
        for file in ("cmdline", "environ"):
            assert not leaks_in(Path(f"/proc/{pid}/{file}").read_bytes(), VALUE)


def test_secret_variables_are_removed_from_the_models_environment(serve: ModelProject) -> None:
    """A value from TRUSS_SECRET_x is in `secrets`, and not in the environment."""
    served = serve(
        """
        import os
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, x):
                return [self.secrets["token"], [k for k in os.environ if k.startswith("TRUSS_SECRET_")]]
        """,
        environ={"TRUSS_SECRET_token": VALUE.decode()},
    ).ready()
    assert served.predict().json() == [VALUE.decode(), []]
    assert not leaks_in(Path(f"/proc/{served.worker}/environ").read_bytes(), VALUE)


# An ordinary account: for root, the same user without root's power to look into every process.
ORDINARY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()


def _can_read(pid: int) -> bool:
    """Whether a process of the same account can read this process's environment and memory maps."""
    command = ["sh", "-c", f"cat /proc/{pid}/environ /proc/{pid}/maps"]
    return subprocess.run([*ORDINARY, *command], capture_output=True).returncode == 0


def test_other_processes_of_the_account_cannot_read_the_processes_memory(serve: ModelProject) -> None:
    """A process of the same account can read others' environment and maps, but not those of processes with values."""
    serve.secret("token", VALUE)
    served = serve(LOOKUP, prefix=ORDINARY).ready()
    with subprocess.Popen([*ORDINARY, "sleep", "600"]) as other:
        eventually(lambda: _can_read(other.pid), "reading a process without values")
        other.kill()
    assert not _can_read(served.process.pid)
    assert not _can_read(served.shim)
    assert not _can_read(served.worker)


SPAWNING = """
    import ctypes, multiprocessing, os, time
    def child(kind, pipe, value, levels):
        if levels:
            run(kind, pipe, value, levels - 1)
        dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
        pipe.send([os.getpid(), dumpable])
        time.sleep(600)
    def run(kind, pipe, value, levels):
        multiprocessing.get_context(kind).Process(target=child, args=(kind, pipe, value, levels)).start()
    class Model:
        def __init__(self, secrets):
            self.secrets = secrets
        def predict(self, kind):
            ours, theirs = multiprocessing.Pipe()
            run(kind, theirs, self.secrets["token"], 1)
            return [ours.recv(), ours.recv()]
    """


@pytest.mark.parametrize("kind", ["spawn", "forkserver", "fork"])
def test_processes_that_multiprocessing_starts_are_protected(serve: ModelProject, kind: str) -> None:
    """They hold values; others of the account can read neither theirs nor their own children's memory."""
    serve.secret("token", VALUE)
    served = serve(SPAWNING, prefix=ORDINARY).ready()
    response = served.predict(kind)
    assert response.status_code == 200, served.stderr
    for pid, dumpable in response.json():
        assert dumpable == 0
        assert not _can_read(pid)
        command = [*ORDINARY, "head", "-c", "1", f"/proc/{pid}/mem"]
        assert b"denied" in subprocess.run(command, capture_output=True).stderr


def test_no_process_can_leave_a_core_file(serve: ModelProject) -> None:
    """A crash writes no memory to disk."""
    served = serve(LOOKUP).ready()
    for pid in (served.process.pid, served.shim, served.worker):
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        assert [line.split()[-3:-1] for line in limits if "core file" in line] == [["0", "0"]]


QUOTED = b"pa\"zq'w\\o<r>d&1"

CLOSING = """
    class Model:
        def __init__(self, secrets):
            self.secrets = secrets
        async def websocket(self, websocket):
            await websocket.send_text(str(self.secrets["token"]))
            await websocket.close(4000, "it is " + str(self.secrets["token"]))
    """

LEAKY = """
    import json, logging
    from urllib.parse import quote
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, StreamingResponse
    log = logging.getLogger("mine")
    class Model:
        def __init__(self, secrets):
            self.secrets = secrets
        def predict(self, way):
            v = self.secrets["token"]
            kept = str(v)
            if way == "detail":
                raise HTTPException(418, kept)
            if way == "details":
                raise HTTPException(418, {"nested": [{"it is": kept}]})
            if way == "header":
                raise HTTPException(401, "no", headers={"x-reason": "it is " + kept})
            if way == "name":
                raise HTTPException(401, "no", headers={"x-" + kept: "1"})
            if way == "location":
                raise HTTPException(404, "no", headers={"location": quote(kept, safe=":/%#?=@[]!$&'()*+,;")})
            if way == "response":
                return JSONResponse({"error": kept}, 502)
            if way in ("response name", "cookie", "cookie name"):
                response = JSONResponse({"error": "no"}, 502, headers={"x-" + kept: "1"} if way[0] == "r" else {})
                if way[0] == "c":
                    response.set_cookie(kept if way == "cookie name" else "session", kept)
                return response
            if way == "stream":
                return StreamingResponse((c for c in ("it is " + kept)), 500)
            if way == "args":
                log.warning("it is %r", {"k": kept})
            if way == "json":
                log.warning("it is %s", json.dumps({"k": repr(kept)}))
            if way == "traceback":
                try:
                    raise ValueError([kept])
                except ValueError:
                    log.exception("it is")
            if way == "raise":
                raise ValueError({"it is": kept})
            return kept
    """


@pytest.mark.parametrize("way", ["detail", "details", "header", "response", "stream"])
def test_a_value_in_an_error_response_is_masked(serve: ModelProject, way: str) -> None:
    """Status and text are for the caller, the value is not."""
    serve.secret("token", QUOTED)
    served = serve(LEAKY).ready()
    response = served.predict(way)
    assert response.status_code >= 400
    everything = response.content + repr(response.headers).encode()
    assert b"***" in everything
    assert b"zq'w" not in everything
    assert b"<r>" not in everything


def test_a_value_in_a_header_is_masked_in_its_encoding(serve: ModelProject) -> None:
    """Headers are Latin-1, values UTF-8."""
    serve.secret("token", "caf\u00e9-s\u00e9cret-1".encode())
    response = serve(LEAKY).ready().predict("header")
    assert response.headers["x-reason"] == "it is ***"


def test_the_headers_of_an_error_cannot_change_its_framing(serve: ModelProject) -> None:
    """A model that passes on another server's headers; the connection serves the next request."""
    served = serve(
        """
        from starlette.exceptions import HTTPException
        class Model:
            def predict(self, status):
                raise HTTPException(status, "detail", headers={
                    "Content-Length": "3", "Transfer-Encoding": "chunked", "Connection": "close",
                    "Content-Type": "text/html", "Retry-After": "7"})
        """
    ).ready()
    with httpx.Client() as client:
        for status in (429, 204, 304, 429):
            response = client.post(f"{served.address}/predict", json=status)
            assert response.status_code == status
            assert response.headers["retry-after"] == "7"
        assert response.json() == {"error": "detail"}
        assert client.post(f"{served.address}/predict", json=102).status_code == 500


@pytest.mark.parametrize("way", ["name", "response name", "cookie name"])
def test_a_value_in_the_name_of_a_header_or_cookie_is_masked(serve: ModelProject, way: str) -> None:
    """Also in lower case, to which libraries change the names of headers."""
    serve.secret("token", b"hf_Q7vR2mXc9TzL4bKp")
    served = serve(LEAKY).ready()
    response = served.predict(way)
    assert response.status_code >= 400
    everything = repr(response.headers.raw).encode().lower()
    assert b"***" in everything
    assert b"q7vr2mxc9tzl" not in everything
    counted = 'name="token",form="plain",channel="response"'
    eventually(lambda: counted in served.get("/metrics").text, "the hit is counted")


@pytest.mark.parametrize("way", ["cookie", "location", "header"])
def test_a_value_in_a_header_is_masked_as_libraries_escape_it(serve: ModelProject, way: str) -> None:
    """Cookies have octal escapes; a redirect leaves other characters bare than other URLs."""
    value = 'zq;v"\\9,x%41 [p]é!'
    serve.secret("token", value.encode())
    response = serve(LEAKY).ready().predict(way)
    varying = (b"date", b"content-length", b"x-baseten-request-id")  # may have these digits by chance
    everything = repr([pair for pair in response.headers.raw if pair[0].lower() not in varying])
    assert "***" in everything
    assert "zq" not in everything and "41" not in everything and "p]" not in everything


@pytest.mark.parametrize("way", ["args", "json", "traceback", "raise"])
def test_a_value_with_quotes_is_masked_in_json_logs(serve: ModelProject, way: str) -> None:
    """It is masked before JSON escapes it once more."""
    serve.secret("token", QUOTED)
    served = serve(LEAKY).ready()
    served.predict(way)
    eventually(lambda: "it is" in served.stderr and "***" in served.stderr, "the log")
    for line in served.stderr.splitlines():
        json.loads(line)
    assert "o<r>d" not in served.stderr
    assert "zq" not in served.stderr


def test_the_reason_of_a_closed_websocket_is_masked(serve: ModelProject) -> None:
    """It is an error text; the messages are results."""
    serve.secret("token", QUOTED)
    served = serve(CLOSING).ready()
    with connect(served.address.replace("http", "ws") + "/v1/websocket") as websocket:
        assert websocket.recv() == QUOTED.decode()
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.reason == "it is ***"


def test_a_value_in_a_metrics_label_is_masked(serve: ModelProject) -> None:
    """Whoever may read /metrics may not read values."""
    serve.secret("token", QUOTED + b"\n2")
    served = serve(
        """
        from prometheus_client import Counter
        class Model:
            def __init__(self, secrets):
                Counter("mine", "Mine", ["label"]).labels(secrets["token"]).inc()
            def predict(self, x):
                return x
        """
    ).ready()
    text = served.get("/metrics").text
    assert 'mine_total{label="***"} 1.0' in text
    assert "o<r>d" not in text


def test_metrics_count_what_was_masked_where_and_in_which_form(serve: ModelProject) -> None:
    """Evidence that a model leaks, from all of its workers: what the supervisor and what they masked."""
    serve.secret("token", VALUE)
    served = serve(
        """
        import base64, logging, sys
        from starlette.exceptions import HTTPException
        class Model:
            def __init__(self, secrets):
                self.v = str(secrets["token"])
            def predict(self, x):
                print("a", self.v, "b", self.v)
                print(base64.b64encode(self.v.encode()).decode(), file=sys.stderr)
                logging.getLogger("mine").warning("it is %s", self.v)
                raise HTTPException(400, self.v)
        """
    ).ready()
    assert served.predict().json() == {"error": "***"}
    expected = {
        ("plain", "stdout", 2),
        ("base64", "stderr", 1),
        ("plain", "log", 2),  # with the exception's traceback
        ("plain", "response", 1),
    }
    lines = {
        f'gusset_masked_total{{name="token",form="{form}",channel="{channel}"}} {times}'
        for form, channel, times in expected
    }
    eventually(lambda: lines <= set(served.get("/metrics").text.splitlines()), "the counts")
    assert VALUE.decode() not in served.get("/metrics").text


STREAMING = """
    class Model:
        def __init__(self, secrets):
            self.secrets = secrets
        def predict(self, way):
            v = str(self.secrets["token"])
            if way == "value":
                return {"k": [v], v: 1}
            if way == "bytes":
                return {"k": v.encode()}
            return (c for c in "it is " + v + " now")
    """


def test_results_are_masked_if_that_was_chosen(serve: ModelProject) -> None:
    """With --mask-responses: JSON, msgpack, and streams in any chunks."""
    serve.secret("token", QUOTED)
    served = serve(STREAMING, mask_responses=True).ready()
    assert served.predict("value").json() == {"k": ["***"], "***": 1}
    assert served.predict("stream").content == b"it is *** now"
    assert served.predict("stream", headers={"accept": "application/json"}).json() == "it is *** now"
    packed = httpx.post(
        served.address + "/predict",
        content=msgpack.packb("value"),
        headers={"content-type": "application/octet-stream"},
    )
    assert msgpack.unpackb(packed.content) == {"k": ["***"], "***": 1}


def test_strings_within_objects_are_masked_in_msgpack_if_that_was_chosen(serve: ModelProject) -> None:
    """With --mask-responses: in pydantic's models, numpy's arrays and other kinds of bytes."""
    serve.secret("token", b"hf_Q7vR2mXc9TzL4bKp")
    code = """
        import numpy
        from pydantic import BaseModel
        class Inner(BaseModel):
            text: str
        class Outer(BaseModel):
            inner: Inner
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, way):
                v = str(self.secrets["token"])
                array = numpy.array([["it is " + v], ["none"]])
                return {
                    "model": Outer(inner=Inner(text=v)), "bytes": [bytearray(v.encode()), memoryview(v.encode())],
                    "text": array, "scalar": array[0][0], "array": numpy.array([v.encode()]),
                    "empty": numpy.array([], "U4"), "numbers": numpy.arange(3),
                }
        """
    served = serve(code, mask_responses=True).ready()
    packed = httpx.post(
        served.address + "/predict",
        content=msgpack.packb(1),
        headers={"content-type": "application/octet-stream"},
    ).content
    assert not any("Q7vR2mXc9TzL".encode(encoding) in packed for encoding in ("utf-8", "utf-32-le"))
    unpacked = msgpack.unpackb(packed)
    assert unpacked["model"] == {"inner": {"text": "***"}}
    assert unpacked["bytes"] == [b"***", b"***"]
    assert unpacked["text"][b"data"].decode("utf-32-le").rstrip("\0") == "it is ***none"
    assert unpacked["text"][b"shape"] == [2, 1]
    assert unpacked["numbers"][b"shape"] == [3]


def test_redirects_and_the_fields_of_event_streams_are_masked_if_that_was_chosen(serve: ModelProject) -> None:
    """With --mask-responses: the names of fields, too."""
    serve.secret("token", b"hf_Q7vR2mXc9TzL4bKp")
    code = """
        from starlette.responses import RedirectResponse, Response, StreamingResponse
        class Model:
            def __init__(self, secrets):
                self.secrets = secrets
            def predict(self, way):
                v = str(self.secrets["token"])
                if way == "redirect":
                    return RedirectResponse("https://example.com/?t=" + v, headers={v: v})
                if way == "view":
                    return Response(memoryview(f"it is {v}".encode()))
                return StreamingResponse(iter(["event: ", v, "\\n", v, ": 1\\n\\n"]), media_type="text/event-stream")
        """
    served = serve(code, mask_responses=True).ready()
    redirect = served.predict("redirect")
    assert redirect.headers["location"] == "https://example.com/?t=***"
    assert redirect.headers["***"] == "***"
    assert served.predict("events").text == "event: ***\n***: 1\n\n"
    assert served.predict("view").text == "it is ***"


def test_messages_of_websockets_are_masked_if_that_was_chosen(serve: ModelProject) -> None:
    """With --mask-responses they are, as other results."""
    serve.secret("token", QUOTED)
    served = serve(CLOSING, mask_responses=True).ready()
    with connect(served.address.replace("http", "ws") + "/v1/websocket") as websocket:
        assert websocket.recv() == "***"


def test_a_value_in_a_prediction_is_not_masked(serve: ModelProject) -> None:
    """A model that returns a value sends it exactly: responses are not rewritten."""
    serve.secret("token", VALUE)
    served = serve(LOOKUP).ready()
    assert base64.b64encode(served.predict().content) == base64.b64encode(b'"' + VALUE + b'"')
