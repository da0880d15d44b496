"""Models get their secrets from a manager: at the start and when they change, and go on while it is down."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import children, predict, served, write_model
from tests.conftest import Cli, leaks_in
from tests.manager.conftest import Manager
from tests.manager.test_pages import Visitor
from tests.serving.conftest import eventually

VALUE = b"hf_" + b"aB3dE6gH" * 5
NEW = b"hf_" + b"zY9xW8vU" * 5


def sha(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def put(admin: httpx.Client, value: bytes, name: str = "hf_access_token") -> None:
    assert admin.post("/v1/secrets", json={"name": name, "value": value.decode()}).status_code == 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "my-model")


@pytest.fixture
def elsewhere(manager: Manager, tmp_path: Path) -> Cli:
    """The command line of another machine, logged in to the manager."""
    return manager.laptop(tmp_path / "elsewhere")


def test_a_model_gets_its_secret_and_each_new_value(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path, tmp_path: Path
) -> None:
    """Registration, delivery, rotation, the replica's report, forced deletion; nothing leaks on the way."""
    put(admin, VALUE)
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, process):
        assert predict(address).json() == {"sha": sha(VALUE)}
        eventually(lambda: admin.get("/v1/deployments/my-model").json()["replicas"] != [])
        put(admin, NEW)
        eventually(lambda: predict(address).json() == {"sha": sha(NEW)})

        def holds() -> bool:
            [replica] = admin.get("/v1/deployments/my-model").json()["replicas"]
            return bool(replica["live"] and replica["versions"] == {"hf_access_token": 2})

        eventually(holds)
        assert admin.delete("/v1/secrets/hf_access_token").status_code == 409
        assert admin.delete("/v1/secrets/hf_access_token?force=true").status_code == 200
        eventually(lambda: predict(address).status_code == 500)
        process.terminate()
        assert process.wait(20) == 0
    [replica] = admin.get("/v1/deployments/my-model").json()["replicas"]
    assert replica["live"] is False
    tokens = admin.get("/v1/deployments/my-model/tokens").json()["tokens"]
    assert tokens and all(token["revoked_at"] for token in tokens)
    assert not leaks_in((tmp_path / "err").read_bytes(), VALUE, NEW, manager.key.encode())
    assert not leaks_in(manager.log.read_bytes(), VALUE, NEW, manager.key.encode())


def test_a_model_goes_on_while_the_manager_is_down(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path, tmp_path: Path
) -> None:
    """It keeps its values and reports the error; a value set meanwhile arrives when the manager is back."""
    put(admin, VALUE)
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, _):
        eventually(lambda: admin.get("/v1/deployments/my-model").json()["replicas"] != [])
        manager.kill()

        def source_error() -> str:
            ready = httpx.get(f"{address}/v1/models/model")
            assert ready.status_code == 200
            return str(ready.json().get("secrets", {}).get("last_error", ""))

        eventually(lambda: "does not respond" in source_error())
        assert "\ngusset_secrets_source_up 0\n" in httpx.get(f"{address}/metrics").text
        assert predict(address).json() == {"sha": sha(VALUE)}
        manager.gusset("secret", "set", "hf_access_token", input=NEW)
        manager.start()
        eventually(lambda: predict(address).json() == {"sha": sha(NEW)})
        eventually(lambda: source_error() == "")
        assert "\ngusset_secrets_source_up 1\n" in httpx.get(f"{address}/metrics").text
    log = (tmp_path / "err").read_text()
    assert log.count("cannot be followed") == 1 and log.count("responds again") == 1


def test_a_deployment_whose_token_was_revoked_goes_on_without_new_values(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path, tmp_path: Path
) -> None:
    """A revocation holds: the process registers no other token, keeps its values, and says what to do."""
    put(admin, VALUE)
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, _):
        eventually(lambda: admin.get("/v1/deployments/my-model").json()["replicas"] != [])
        for token in admin.get("/v1/deployments/my-model/tokens").json()["tokens"]:
            assert admin.delete(f"/v1/tokens/{token['prefix']}").status_code == 200
        put(admin, NEW)

        def source_error() -> str:
            return str(
                httpx.get(f"{address}/v1/models/model").json().get("secrets", {}).get("last_error", "")
            )

        eventually(lambda: "was revoked" in source_error())
        assert "restart this process" in source_error()
        assert predict(address).json() == {"sha": sha(VALUE)}
        tokens = admin.get("/v1/deployments/my-model/tokens").json()["tokens"]
        assert len(tokens) == 1 and tokens[0]["revoked_at"]
    assert "was revoked" in (tmp_path / "err").read_text()


def test_a_token_ends_with_the_key_of_the_person_who_served(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path, tmp_path: Path
) -> None:
    """The model keeps its values, gets no new ones, and its readiness says why."""
    put(admin, VALUE)
    made = admin.post("/v1/api_keys", json={"name": "of a laptop", "gives": ["*"]}).json()
    elsewhere("login", manager.address, input=made["api_key"].encode())
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, _):
        eventually(lambda: admin.get("/v1/deployments/my-model").json()["replicas"] != [])
        assert admin.delete(f"/v1/api_keys/{made['prefix']}").status_code == 200
        put(admin, NEW)

        def source_error() -> str:
            ready = httpx.get(f"{address}/v1/models/model")
            assert ready.status_code == 200
            return str(ready.json().get("secrets", {}).get("last_error", ""))

        eventually(lambda: "was revoked" in source_error())
        assert predict(address).json() == {"sha": sha(VALUE)}


def test_callers_are_declared_at_the_manager_and_follow_its_changes(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path, tmp_path: Path
) -> None:
    """Registration gives the token their names; a new key counts, and the usage is shown."""
    put(admin, VALUE)
    first, second = "caller-Zx81QqLmN4vTtYbWs93K", "caller-7GhTrW2bNpQx5LkMvC9s"
    put(admin, first.encode(), "app")

    def status(address: str, key: str) -> int:
        headers = {"authorization": f"Api-Key {key}"}
        return httpx.post(f"{address}/predict", json={}, headers=headers).status_code

    with served(elsewhere, str(folder), "--callers", "app", errors=tmp_path / "err") as (address, _):
        assert admin.get("/v1/deployments/my-model").json()["secrets"] == ["app", "hf_access_token"]
        assert [status(address, first), status(address, second)] == [200, 401]
        eventually(lambda: admin.get("/v1/deployments/my-model").json()["replicas"] != [])
        put(admin, second.encode(), "app")
        eventually(lambda: status(address, second) == 200)
        assert status(address, first) == 401
        eventually(
            lambda: admin.get("/v1/deployments/my-model").json()["replicas"][0]["versions"].get("app") == 2
        )
        assert admin.delete("/v1/secrets/app").status_code == 409
    assert not leaks_in((tmp_path / "err").read_bytes(), first.encode(), second.encode())


@pytest.mark.parametrize("starts_with", ["hf_access_token", None])
def test_a_secret_that_is_declared_later_needs_a_restart_and_the_log_says_so(
    manager: Manager,
    admin: httpx.Client,
    elsewhere: Cli,
    tmp_path: Path,
    starts_with: str | None,
) -> None:
    """With --reload; the token reads what was declared when it was made. The model from before stays."""
    put(admin, VALUE)
    put(admin, VALUE, "another")
    code = "class Model:\n    def predict(self, model_input):\n        return model_input\n"
    before = "secrets: {hf_access_token: null}\n" if starts_with else "secrets: {}\n"
    folder = write_model(tmp_path / "reloaded", code=code, config=before)
    errors = tmp_path / "err"
    with served(elsewhere, str(folder), "--reload", errors=errors) as (address, _):
        (folder / "config.yaml").write_text("secrets: {hf_access_token: null, another: null}\n")
        eventually(lambda: "The change is not served" in errors.read_text())
        log = errors.read_text()
        assert "another was not declared when" in log or "another, hf_access_token was not declared" in log
        assert "restart `gusset serve` to read it" in log
        assert "secret set" not in log
        assert predict(address, 5).json() == 5


@pytest.mark.skipif(os.getuid() != 0, reason="reads the memory of non-dumpable processes")
def test_no_process_that_serves_has_the_persons_key_in_its_memory(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path, tmp_path: Path
) -> None:
    """Neither supervisor nor workers, nor in memory that was freed; the deployment's token is found."""
    put(admin, VALUE)
    key = manager.key.encode()
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, process):
        assert predict(address).json() == {"sha": sha(VALUE)}
        pids = [process.pid, *children(process.pid)]
        assert len(pids) >= 2
        assert [pid for pid in pids if key[11:] in memory_of(pid)] == []
        assert b"gusset_tok_" in memory_of(process.pid)


@pytest.mark.skipif(os.getuid() != 0, reason="reads the memory of non-dumpable processes")
def test_a_secret_that_is_typed_at_the_start_is_stored_at_the_manager(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path
) -> None:
    """At a terminal, with the person's key, which the process that serves does not have even then."""
    own_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "gusset", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        command,
        env=elsewhere.environ,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        shown = b""
        while b"Value of hf_access_token" not in shown:
            shown += os.read(own_end, 65536)
        os.write(own_end, VALUE + b"\n")
        while b"is ready at" not in shown:
            shown += os.read(own_end, 65536)
        assert manager.key.encode()[11:] not in memory_of(process.pid)
        process.terminate()
        while process.poll() is None:
            with suppress(OSError):
                os.read(own_end, 65536)
    os.close(own_end)
    assert admin.get("/v1/secrets/hf_access_token").json()["version"] == 1
    assert not leaks_in(shown, VALUE)


def memory_of(pid: int) -> bytes:
    """All readable private memory of a process."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            addresses, permissions = line.split()[:2]
            if not permissions.startswith("rw"):
                continue
            start, end = (int(text, 16) for text in addresses.split("-"))
            try:
                memory.seek(start)
                found.append(memory.read(end - start))
            except (OSError, OverflowError, ValueError):  # the kernel's own pages
                continue
    return b"".join(found)


def test_a_start_without_the_manager_fails_even_if_secrets_may_be_missing(
    manager: Manager, elsewhere: Cli, folder: Path
) -> None:
    """The source cannot tell then whether they are missing."""
    manager.stop()
    done = elsewhere("serve", str(folder), "--port", "0", "--allow-missing", "all", status=8)
    assert b"does not respond" in done.stderr and b"no value" not in done.stderr


def test_a_secret_that_the_manager_does_not_have_is_missing(elsewhere: Cli, folder: Path) -> None:
    """The message names it, and the command that sets it."""
    done = elsewhere("serve", str(folder), "--port", "0", status=5)
    assert b"hf_access_token" in done.stderr and b"gusset secret set hf_access_token" in done.stderr


def test_a_token_is_enough_to_serve_and_reads_only_its_secrets(
    manager: Manager, admin: httpx.Client, gusset: Cli, elsewhere: Cli, folder: Path, tmp_path: Path
) -> None:
    """From `gusset token create`, in a file. A model that declares another secret is refused, by its name."""
    put(admin, VALUE)
    put(admin, VALUE, "other")
    made = elsewhere(
        "token", "create", "--deployment", "ci", "--secrets", "hf_access_token", "--output", "json"
    )
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(json.loads(made.stdout)["token"])
    bare = Cli(
        tmp_path / "bare",
        gusset.environ
        | {
            "GUSSET_HOME": str(tmp_path / "bare"),
            "GUSSET_SETTINGS": str(tmp_path / "none"),
            "GUSSET_TOKEN_FILE": str(token),
        },
    )
    with served(bare, str(folder), "--manager", manager.address, errors=tmp_path / "err") as (address, _):
        assert predict(address).json() == {"sha": sha(VALUE)}
    greedy = write_model(tmp_path / "greedy", config="secrets:\n  hf_access_token: null\n  other: null\n")
    done = bare("serve", str(greedy), "--manager", manager.address, "--port", "0", status=7)
    assert b"other" in done.stderr and b"does not allow" in done.stderr


def test_exec_gets_its_secrets_from_the_manager(admin: httpx.Client, elsewhere: Cli) -> None:
    """As files of the command."""
    put(admin, VALUE)
    code = "import os,hashlib;print(hashlib.sha256(open(os.environ['GUSSET_SECRETS_DIR']+'/hf_access_token','rb').read()).hexdigest())"
    done = elsewhere("exec", "--secret", "hf_access_token", "--", "python3", "-c", code)
    assert sha(VALUE).encode() in done.stdout


def test_exec_provides_all_secrets_that_a_person_or_a_token_may_read(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, tmp_path: Path
) -> None:
    """Those of the person's team; with a token, those that its deployment declares."""
    put(admin, VALUE)
    put(admin, NEW, "other")
    team = admin.post("/v1/teams", json={"name": "elsewhere"}).json()["id"]
    named = {"name": "not_of_this_team", "value": "some value of it"}
    assert admin.post(f"/v1/teams/{team}/secrets", json=named).status_code == 200
    listing = ("exec", "--all", "--", "sh", "-c", "ls $GUSSET_SECRETS_DIR; cat $GUSSET_SECRETS_DIR/other")
    done = elsewhere(*listing)
    assert done.stdout == b"hf_access_token\nother\n***"
    assert not leaks_in(manager.log.read_bytes() + done.stderr, VALUE, NEW)

    made = elsewhere("token", "create", "--deployment", "ci", "--secrets", "other", "--output", "json")
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(json.loads(made.stdout)["token"])
    assert elsewhere(*listing, GUSSET_TOKEN_FILE=str(token)).stdout == b"other\n***"


@pytest.mark.skipif(os.getuid() != 0, reason="reads the memory of non-dumpable processes")
def test_exec_follows_a_manager_and_its_processes_have_no_key_of_a_person(
    manager: Manager, admin: httpx.Client, elsewhere: Cli
) -> None:
    """A new version restarts the command, a manager that is down does not; its token is revoked at the end."""
    put(admin, VALUE)
    script = (
        "import hashlib, os, time; file = os.environ['GUSSET_SECRETS_DIR'] + '/hf_access_token';"
        "print(hashlib.sha256(open(file, 'rb').read()).hexdigest(), flush=True); time.sleep(60)"
    )
    options = (
        "exec",
        "--secret",
        "hf_access_token",
        "--watch",
        "restart",
        "--",
        sys.executable,
        "-c",
        script,
    )
    with subprocess.Popen(
        [sys.executable, "-m", "gusset", *options], env=elsewhere.environ, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline().split()[0] == sha(VALUE).encode()
        eventually(lambda: admin.get("/v1/deployments/exec").json()["replicas"] != [])
        put(admin, NEW)
        assert process.stdout.readline().split()[0] == sha(NEW).encode()
        assert [
            pid
            for pid in [process.pid, *children(process.pid)]
            if manager.key.encode()[11:] in memory_of(pid)
        ] == []
        manager.stop()
        manager.start()
        put(admin, VALUE)
        assert process.stdout.readline().split()[0] == sha(VALUE).encode()
        process.terminate()
        assert process.wait(60) == 128 + 15
    replicas = admin.get("/v1/deployments/exec").json()["replicas"]
    assert not any(replica["live"] for replica in replicas)
    tokens = admin.get("/v1/deployments/exec/tokens").json()["tokens"]
    assert all(token["revoked_at"] for token in tokens)


def test_check_finds_the_secrets_at_the_manager_that_an_option_names(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, folder: Path
) -> None:
    """With the key of `gusset login`, also after another manager was chosen."""
    command = ("check", str(folder), "--manager", manager.address)
    assert b"hf_access_token" in elsewhere(*command, status=4).stderr
    put(admin, VALUE)
    assert b"ready to be served" in elsewhere(*command).stdout


LEAKING = """
import base64, sys
class Model:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]
    def predict(self, model_input):
        value = self._secrets["hf_access_token"]
        print(base64.b64encode(value.encode()).decode(), file=sys.stderr)
        return {"sha": ""}
"""


def test_a_value_that_a_model_prints_is_audited_and_shown_beside_the_secret(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, tmp_path: Path
) -> None:
    """In sums, with its form and where it was; the page offers to rotate it until that was done."""
    put(admin, VALUE)
    folder = write_model(tmp_path / "leaking", code=LEAKING)
    with served(elsewhere, str(folder), errors=tmp_path / "err") as (address, _):
        for _ in range(3):
            predict(address)

        def records() -> list[dict[str, object]]:
            found: list[dict[str, object]] = admin.get("/v1/audit?action=secret.masked").json()["records"]
            return found

        eventually(records)
        predict(address)  # counted later: reports are sums of a minute
    eventually(lambda: len(records()) == 2)  # the last one is sent at the end
    sums = [record["details"]["times"] for record in records()]  # type: ignore[index]
    assert sum(each["hf_access_token"]["base64, stderr"] for each in sums) == 4
    assert records()[0]["target"] == "leaking"
    ada = Visitor(manager)
    assert ada.sign_in().status_code == 303
    page = ada.http.get("/settings/secrets").text
    assert "found in output" in page
    assert "Rotate" in page
    secret_id = admin.get("/v1/secrets/hf_access_token").json()["id"]
    detail = ada.http.get(f"/settings/secrets/{secret_id}").text
    assert "Found in output" in detail
    assert '<a class="button main" href="#replace">Rotate</a>' in detail
    put(admin, NEW)
    assert "found in output" not in ada.http.get("/settings/secrets").text
    detail = ada.http.get(f"/settings/secrets/{secret_id}").text
    assert "has not been found since" in detail
    assert "Rotate" not in detail
    ada.http.close()
    assert not leaks_in(manager.log.read_bytes(), VALUE, NEW)
