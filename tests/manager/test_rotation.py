"""Rotations that are proven: `--wait` ends when no replica uses the old value, and overlaps of two values."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gusset.client.manager_client import ManagerClient
from gusset.client.manager_source import ManagerSource
from gusset.secrets.hits import Hit
from gusset.secrets.sources.source import reading_once
from gusset.secrets.value import SecretValue
from tests.cli.test_serve import served, write_model
from tests.conftest import Cli, leaks_in, seconds_since
from tests.manager.conftest import Manager, lease
from tests.serving.conftest import eventually

ROTATIONS = int(os.environ.get("GUSSET_TEST_ROTATIONS", "8"))

MODEL = """\
import os

class Model:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        if inputs.get("hold"):
            return {"pid": os.getpid()}
        print("the token is", self._secrets["token"], "before it was", self._secrets.previous("token"))
        return {"pid": os.getpid(), "now": self._secrets["token"][-4:], "before": self._before()}

    def _before(self):
        kept = self._secrets.previous("token")
        return kept and kept[-4:]
"""
CONFIG = "model_name: m\nsecrets:\n  token: null\n"


def value(number: int) -> bytes:
    return b"a-value-that-is-rotated-%04d" % number


@pytest.fixture
def elsewhere(manager: Manager, tmp_path: Path) -> Cli:
    """The command line of another machine, logged in to the manager."""
    cli = manager.laptop(tmp_path / "elsewhere")
    cli("secret", "set", "token", input=value(0))
    return cli


@contextmanager
def model(elsewhere: Cli, tmp_path: Path, workers: int = 1) -> Iterator[tuple[str, int]]:
    """A served model: its address, and the process id of its supervisor."""
    folder = write_model(tmp_path / "m", CONFIG, MODEL)
    options = (str(folder), "--workers", str(workers))
    with served(elsewhere, *options, errors=tmp_path / "err") as (address, process):
        yield address, process.pid
    assert not leaks_in((tmp_path / "err").read_bytes(), *map(value, range(4)))


def predict(address: str, **body: Any) -> dict[str, Any]:
    """The response over a connection of its own, so that all workers get some."""
    response = httpx.post(f"{address}/predict", json=body, trust_env=False, timeout=30)
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()
    return data


def workers_of(address: str, count: int) -> list[int]:
    found: set[int] = set()
    eventually(lambda: found.add(predict(address, hold=True)["pid"]) or len(found) == count)
    return sorted(found)


def rotation(admin: httpx.Client, name: str = "token") -> dict[str, Any]:
    data: dict[str, Any] = admin.get(f"/v1/secrets/{name}/rotation").json()
    return data


def states(admin: httpx.Client) -> list[str]:
    return [replica["state"] for replica in rotation(admin)["replicas"]]


def test_wait_never_ends_well_while_a_worker_uses_the_old_value(elsewhere: Cli, tmp_path: Path) -> None:
    """Requests go on all the time; none that begins after the end of a wait gets an older value."""
    with model(elsewhere, tmp_path, workers=2) as (address, _):
        workers_of(address, 2)
        proven, stale, stop = [0], list[str](), threading.Event()

        def check() -> None:
            while not stop.is_set():
                least = proven[-1]
                now = predict(address)["now"]
                if int(now) < least:
                    stale.append(f"{now} after {least}")

        threads = [threading.Thread(target=check) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(1, ROTATIONS + 1):
            done = elsewhere("secret", "set", "token", "--wait", "--output", "json", input=value(number))
            assert json.loads(done.stdout)["replicas"] == 1
            proven.append(number)
        stop.set()
        for thread in threads:
            thread.join()
        assert stale == []


def test_one_of_two_workers_that_does_not_swap_is_no_acknowledgement(
    admin: httpx.Client, elsewhere: Cli, tmp_path: Path
) -> None:
    """Readiness names it, exit status 12 and the replica; it counts once it goes on, or has ended."""
    with model(elsewhere, tmp_path, workers=2) as (address, _):
        first, second = workers_of(address, 2)
        for worker, after in ((first, signal.SIGCONT), (second, signal.SIGKILL)):
            os.kill(worker, signal.SIGSTOP)
            set_ = ("secret", "set", "token", "--wait", "--timeout", "2.5", "--output", "json")
            done = elsewhere(*set_, input=value(1), status=12)
            error = json.loads(done.stdout)
            assert error["code"] == "not_acknowledged" and "is stored" in error["message"]
            assert [(each["deployment"], each["state"]) for each in error["replicas"]] == [("m", "waiting")]

            def is_lagging() -> bool:
                try:
                    ready = httpx.get(f"{address}/v1/models/model", timeout=0.5, trust_env=False).json()
                except httpx.TimeoutException:  # the stopped worker has taken the connection
                    return False
                return "1 of 2 workers" in ready.get("secrets", {}).get("lagging", "")

            eventually(is_lagging)
            os.kill(worker, after)
            eventually(lambda: states(admin) == ["acknowledged"])
        assert "1 of 2 workers have not taken the new values" in (tmp_path / "err").read_text()


def test_a_paused_replica_is_unknown_when_its_lease_has_lapsed(
    admin: httpx.Client, elsewhere: Cli, tmp_path: Path
) -> None:
    """Its workers go on with the old value: the wait ends with 12 before its time is over, and the version stays."""
    with model(elsewhere, tmp_path) as (address, supervisor):
        eventually(lambda: rotation(admin)["replicas"] == [])  # it began with version 1
        os.kill(supervisor, signal.SIGSTOP)
        began = time.monotonic()
        done = elsewhere("secret", "set", "token", "--wait", input=value(1), status=12)
        assert seconds_since(began) < 40
        assert predict(address)["now"] == "0000"
        assert b"m on " in done.stderr and b"unknown" in done.stderr
        assert rotation(admin)["current_version"] == 2 and states(admin) == ["unknown"]
        os.kill(supervisor, signal.SIGCONT)
        eventually(lambda: states(admin) == ["acknowledged"])
        assert predict(address)["now"] == "0001"


def test_a_replica_that_stops_in_order_is_not_waited_for(
    admin: httpx.Client, elsewhere: Cli, tmp_path: Path
) -> None:
    """It is stopped in the middle of the wait, while a worker does not swap."""
    with model(elsewhere, tmp_path, workers=2) as (address, supervisor):
        worker = workers_of(address, 2)[0]
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(elsewhere, "secret", "set", "token", "--wait", input=value(1))
            eventually(lambda: rotation(admin)["version"] == 2)
            os.kill(supervisor, signal.SIGTERM)
            eventually(lambda: "Stopping when the requests" in (tmp_path / "err").read_text())
            os.kill(worker, signal.SIGKILL)
            assert b"all 1 replicas use it" in waiting.result().stdout


@pytest.fixture
def source(admin: httpx.Client, manager: Manager) -> Iterator[ManagerSource]:
    """A replica's source, which has read `token` and acknowledged it."""
    for name in ("token", "login"):
        admin.post("/v1/secrets", json={"name": name, "value": value(0).decode()})
    made = admin.post("/v1/deployments", json={"name": "d", "secrets": ["token", "login"]}).json()
    source = ManagerSource(ManagerClient(manager.address, SecretValue(made["token"].encode())))
    source.read(["token"])
    source.acknowledge({"token": 1})
    yield source
    source.close()


def test_a_value_that_was_needed_once_is_waited_for_only_while_it_is_in_use(
    admin: httpx.Client, source: ManagerSource
) -> None:
    """Such as a login with which an image is pulled; the replica goes on with its other secrets."""
    with reading_once(source) as once:
        assert once.read(["login"])["login"].version == 1
        admin.post("/v1/secrets", json={"name": "login", "value": value(1).decode()})
        [replica] = rotation(admin, "login")["replicas"]
        assert replica["state"] == "waiting"
    assert [each["state"] for each in rotation(admin, "login")["replicas"]] == ["stopped"]
    admin.post("/v1/secrets", json={"name": "login", "value": value(2).decode()})
    assert rotation(admin, "login")["replicas"] == []
    admin.post("/v1/secrets", json={"name": "token", "value": value(1).decode()})
    assert states(admin) == ["waiting"]


def test_masked_values_are_reported_also_after_another_value_was_needed_once(
    admin: httpx.Client, source: ManagerSource
) -> None:
    """Only what the source reads itself says which secrets of the manager it holds."""
    with reading_once(source) as once:
        once.read(["login"])
    source.record_hits({Hit("token", "plain", "stdout"): 1})
    [record] = admin.get("/v1/audit", params={"action": "secret.masked"}).json()["records"]
    assert record["details"]["times"] == {"token": {"plain, stdout": 1}}


def test_the_first_use_of_a_version_is_reported(admin: httpx.Client, elsewhere: Cli, tmp_path: Path) -> None:
    """Not before: a model that has swapped has not used the new value yet."""
    with model(elsewhere, tmp_path) as (address, _):
        elsewhere("secret", "set", "token", "--wait", input=value(1))
        [replica] = rotation(admin)["replicas"]
        assert (replica["version"], replica["used"]) == (2, None)
        predict(address)
        eventually(lambda: rotation(admin)["replicas"][0]["used"] == 2)


def test_two_rotations_at_once_are_both_waited_for(
    admin: httpx.Client, deployment: Callable[..., httpx.Client], elsewhere: Cli
) -> None:
    """Each for its own version or a newer one. A version that is destroyed meanwhile is not waited for."""
    with deployment("d", "token") as client:
        replica = lease(client)
        set_ = ("secret", "set", "token", "--wait", "--timeout", "20")
        results: list[bytes] = []
        threads = [
            threading.Thread(
                target=lambda number=number: results.append(elsewhere(*set_, input=value(number)).stdout)
            )
            for number in (1, 2)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: rotation(admin)["version"] == 3)
        replica.renew({"versions": {"token": 3}})
        for thread in threads:
            thread.join()
        assert len(results) == 2
        waiting = threading.Thread(target=lambda: elsewhere(*set_, input=value(4), status=12))
        waiting.start()
        eventually(lambda: rotation(admin)["version"] == 4)
        admin.post("/v1/secrets/token/destroy", json={"versions": [4]})
        waiting.join(10)
        assert not waiting.is_alive()


def test_a_deleted_secrets_versions_do_not_count_for_a_new_one_of_its_name(
    admin: httpx.Client, deployment: Callable[..., httpx.Client], elsewhere: Cli
) -> None:
    """Both number their versions from 1, and a replica that was paused may still use the deleted value."""
    for number in (1, 2):
        elsewhere("secret", "set", "token", input=value(number))
    with deployment("d", "token") as client:
        replica = lease(client)
        assert replica.renew({"versions": {"token": 3}, "used": {"token": 3}}).status_code == 200
        elsewhere("secret", "delete", "token", "--force")

        done = elsewhere("secret", "set", "token", "--wait", "--timeout", "1", input=value(3), status=12)

        assert replica.id in done.stderr.decode()
        elsewhere("secret", "set", "token", input=value(4))
        assert states(admin) == ["waiting"]
        assert replica.renew({"versions": {"token": 3}, "used": {"token": 3}, "host": "h"}).status_code == 200
        assert states(admin) == ["waiting"]
        assert replica.renew({"versions": {"token": 2}}).status_code == 200
        assert states(admin) == ["acknowledged"]


def test_a_wait_that_cannot_be_is_refused_before_anything_is_stored(
    manager: Manager, admin: httpx.Client, elsewhere: Cli
) -> None:
    """With a key that may not read, without a manager, and a time-out without a wait."""
    made = admin.post("/v1/api_keys", json={"name": "writes", "scopes": ["secrets:write"]}).json()
    settings = Path(elsewhere.environ["GUSSET_SETTINGS"])
    text = settings.read_text()
    settings.write_text(text.replace(manager.key, made["api_key"]))
    elsewhere("secret", "set", "token", "--wait", input=value(1), status=7)
    settings.write_text(text)
    elsewhere("secret", "set", "token", "--timeout", "3", input=value(1), status=2)
    for seconds in ("nan", "inf", "-1", "1m"):  # some would never end
        refused = elsewhere(
            "secret", "set", "token", "--wait", "--timeout", seconds, input=value(1), status=2
        )
        assert b"a number of seconds, 0 or more" in refused.stderr
    assert rotation(admin)["version"] == 1
    elsewhere("logout")
    refused = elsewhere("secret", "set", "token", "--wait", input=value(1), status=2)
    assert b"--wait needs a manager" in refused.stderr
    assert not (elsewhere.home / "vault.db").exists()


def test_a_model_has_the_value_before_during_an_overlap(
    manager: Manager, admin: httpx.Client, elsewhere: Cli, tmp_path: Path
) -> None:
    """It ends by the replica's own clock when no manager responds, by `destroy`, and by a forced delete."""
    with model(elsewhere, tmp_path) as (address, _):
        assert predict(address)["before"] is None
        elsewhere("secret", "set", "token", "--overlap", "1h", "--wait", input=value(1))
        now = predict(address)
        assert (now["now"], now["before"]) == ("0001", "0000")
        elsewhere("secret", "destroy", "token", "--version", "1", "--yes")
        eventually(lambda: predict(address)["before"] is None)
        elsewhere("secret", "set", "token", "--overlap", "10s", "--wait", input=value(2))
        assert predict(address)["before"] == "0001"
        manager.kill()
        eventually(lambda: predict(address)["before"] is None)
        assert predict(address)["now"] == "0002"
        manager.start()
    assert b"the token is *** before it was ***" in (tmp_path / "err").read_bytes()


def test_an_overlap_that_is_over_ends_by_the_managers_push(
    admin: httpx.Client, deployment: Callable[..., httpx.Client], elsewhere: Cli
) -> None:
    """Also while a replica lags behind: its next fetch has no previous value."""
    with deployment("d", "token") as client:
        replica = lease(client)
        elsewhere("secret", "set", "token", "--overlap", "5s", input=value(1))
        first = client.post("/v1/deployment/secrets", headers={"gusset-session": replica.key}).json()
        kept = first["secrets"]["token"]["previous"]
        assert kept["version"] == 1 and 0 < kept["ends_in"] <= 5
        assert rotation(admin)["overlap"]["version"] == 1
        eventually(lambda: admin.get("/v1/audit?action=secret.end_overlap").json()["records"])
        again = client.post("/v1/deployment/secrets", headers={"gusset-session": replica.key}).json()
        assert again["secrets"]["token"]["previous"] is None
        assert again["revision"] != first["revision"]
        assert states(admin) == ["waiting"]
    assert admin.post("/v1/secrets", json={"name": "x", "value": "v", "overlap": 0}).status_code == 400


def test_callers_may_use_the_key_before_during_an_overlap(elsewhere: Cli, tmp_path: Path) -> None:
    """Rotating a caller's key cuts nobody off: both keys are good for a while."""
    elsewhere("secret", "set", "app", input=b"the-first-key-of-the-app")
    folder = write_model(tmp_path / "m", CONFIG, MODEL)
    with served(elsewhere, str(folder), "--callers", "app", errors=tmp_path / "err") as (address, _):

        def status(key: str) -> int:
            headers = {"authorization": f"Api-Key {key}"}
            return httpx.post(f"{address}/predict", json={}, headers=headers, trust_env=False).status_code

        rotate = ("secret", "set", "app", "--wait", "--overlap", "10s")
        elsewhere(*rotate, input=b"the-second-key-of-the-app")
        assert (status("the-first-key-of-the-app"), status("the-second-key-of-the-app")) == (200, 200)
        eventually(lambda: status("the-first-key-of-the-app") == 401)
        assert status("the-second-key-of-the-app") == 200
