"""A replica that the network has cut off in the middle of a rotation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gusset.vault.services.leases import LEASE_SECONDS
from tests.cli.test_serve import served, write_model
from tests.conftest import Cli
from tests.faults.machines import Machine
from tests.manager.conftest import Manager, has_lapsed
from tests.manager.test_rotation import CONFIG, MODEL, rotation, states, value
from tests.serving.conftest import eventually

pytestmark = [pytest.mark.slow, pytest.mark.system("ip")]

WAIT = ("secret", "set", "token", "--wait", "--output", "json")


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.connected() as connected:
        yield connected


@pytest.fixture
def person(manager: Manager, tmp_path: Path) -> Cli:
    """The command line of a person, logged in; `token` has a value. The manager is reached from elsewhere."""
    assert manager.stop() == 0
    manager.start("--host", "0.0.0.0", "--insecure-http")
    cli = manager.laptop(tmp_path / "person")
    cli("secret", "set", "token", input=value(0))
    return cli


@contextmanager
def replica_at(
    machine: Machine, manager: Manager, person: Cli, tmp_path: Path, workers: int = 1
) -> Iterator[str]:
    """A model that `machine` serves; yields its address, which only that machine reaches."""
    environ = person.environ | {"GUSSET_SETTINGS": str(tmp_path / "there.toml")}
    there = Cli(person.home, environ)
    url = f"http://{machine.host}:{manager.port}"
    there("login", url, "--insecure-http", input=manager.key.encode())
    folder = write_model(tmp_path / "m", CONFIG, MODEL)
    options = (str(folder), "--workers", str(workers))
    with served(there, *options, errors=tmp_path / "err", as_whom=machine.command) as (address, _):
        yield address


def predict(machine: Machine, address: str, **body: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(machine.request(f"{address}/predict", json.dumps(body)))
    return data


def state(admin: httpx.Client) -> dict[str, Any]:
    """The one replica of the rotation to the newest version."""
    [replica] = rotation(admin)["replicas"]
    return dict(replica)


def is_live(admin: httpx.Client) -> bool:
    [replica] = admin.get("/v1/deployments/m").json()["replicas"]
    return bool(replica["live"])


def test_a_replica_that_is_cut_off_is_lost_in_time_and_never_acknowledges(
    machine: Machine, manager: Manager, admin: httpx.Client, person: Cli, tmp_path: Path
) -> None:
    """It serves the old value meanwhile, and everybody can see that; it catches up when the cable is back."""
    with replica_at(machine, manager, person, tmp_path) as address:
        assert predict(machine, address)["now"] == "0000"
        eventually(lambda: is_live(admin))
        machine.pull_cable()
        pulled = time.monotonic()
        rotating = subprocess.Popen(
            [sys.executable, "-m", "gusset", *WAIT],
            env=person.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert rotating.stdin is not None
        rotating.stdin.write(value(1))
        rotating.stdin.close()
        rotating.stdin = None
        eventually(lambda: rotation(admin)["version"] == 2)
        seen = set()
        while (now := state(admin)["state"]) != "unknown":
            seen.add(now)
            assert time.monotonic() < pulled + LEASE_SECONDS + 2
            time.sleep(0.2)
        output, _ = rotating.communicate(timeout=30)
        assert rotating.returncode == 12 and seen <= {"waiting"}
        [left] = json.loads(output)["replicas"]
        assert (left["deployment"], left["state"], left["version"]) == ("m", "unknown", 1)
        assert predict(machine, address)["now"] == "0000"
        assert not is_live(admin) and state(admin)["version"] == 1
        # It holds no lease when the next version is stored, so nobody waits for it; but it is not forgotten.
        eventually(lambda: has_lapsed(state(admin)), "the lease has ended before the next version")
        done = person(*WAIT, input=value(2))
        printed = json.loads(done.stdout)
        assert printed["replicas"] == 0
        assert [(each["id"], each["version"]) for each in printed["lost_before"]] == [(left["id"], 1)]
        assert b"may still use an older one" in done.stderr

        machine.plug_in()
        eventually(lambda: states(admin) == ["acknowledged"])
        assert predict(machine, address)["now"] == "0002"
        assert is_live(admin)
        assert json.loads(person(*WAIT, input=value(3)).stdout)["replicas"] == 1
        assert predict(machine, address)["now"] == "0003"


def test_a_replica_that_is_cut_off_while_one_worker_lags_is_lost_too(
    machine: Machine, manager: Manager, admin: httpx.Client, person: Cli, tmp_path: Path
) -> None:
    """It has fetched the new value, but nothing has said that all workers use it."""
    with replica_at(machine, manager, person, tmp_path, workers=2) as address:
        workers: set[int] = set()
        eventually(lambda: workers.add(predict(machine, address, hold=True)["pid"]) or len(workers) == 2)
        lagging = min(workers)
        os.kill(lagging, signal.SIGSTOP)
        try:
            person(*WAIT, "--timeout", "2", input=value(1), status=12)
            assert state(admin)["state"] == "waiting"
            machine.pull_cable()
        finally:
            os.kill(lagging, signal.SIGCONT)
        done = person(*WAIT, input=value(2), status=12)
        assert b"unknown" in done.stdout
        eventually(lambda: predict(machine, address)["now"] == "0001")  # in both workers, unseen
        assert state(admin)["version"] == 1
        machine.plug_in()
        eventually(lambda: states(admin) == ["acknowledged"])
        assert predict(machine, address)["now"] == "0002"
