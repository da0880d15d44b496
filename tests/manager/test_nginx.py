"""Two managers behind nginx, with the configuration of docs/production.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import seconds_since
from tests.faults.conftest import Starter, database, gusset, server, set_up, start  # noqa: F401  # fixtures
from tests.manager.conftest import Manager
from tests.ports import free_port
from tests.serving.conftest import eventually
from tests.serving.test_callers import make_certificate, trusting
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.system("nginx")

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture
def managers(start: Starter) -> list[Manager]:  # noqa: F811
    """Two, which trust a proxy on this machine."""
    made = [start("one"), start("two")]
    for manager in made:
        manager.stop()
        manager.start("--trusted-proxy", "127.0.0.1")
    return made


@pytest.fixture
def proxy(managers: list[Manager], tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of nginx, with the administrator's key."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert nginx is not None
    [config] = blocks((ROOT / "docs" / "production.md").read_text(), "nginx")
    certificate, key = make_certificate(tmp_path, "nginx")
    port = free_port()
    for written, real in (
        ("10.0.0.11:8700", f"127.0.0.1:{managers[0].port}"),
        ("10.0.0.12:8700", f"127.0.0.1:{managers[1].port}"),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/ssl/secrets.example.com.pem", str(certificate)),
        ("/etc/ssl/secrets.example.com.key", str(key)),
    ):
        assert config.count(written) == 1, written
        config = config.replace(written, real)
    paths = "\n".join(f"{name}_temp_path {tmp_path / name};" for name in TEMPORARY)
    main = (
        f"daemon off;\npid {tmp_path / 'pid'};\nevents {{}}\nhttp {{\naccess_log off;\n{paths}\n{config}}}\n"
    )
    (tmp_path / "nginx.conf").write_text(main)
    command = [
        nginx,
        "-p",
        str(tmp_path),
        "-c",
        str(tmp_path / "nginx.conf"),
        "-e",
        str(tmp_path / "nginx.log"),
    ]
    process = subprocess.Popen(command)
    headers = {"authorization": f"Bearer {managers[0].key}"}
    try:
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}",
            headers=headers,
            verify=trusting(certificate),
            trust_env=False,
        ) as client:
            eventually(lambda: responds(client), "nginx responds")
            yield client
    finally:
        process.terminate()
        process.wait(20)


def responds(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def put(client: httpx.Client, name: str, value: str = "value") -> None:
    """As a client behind a proxy does it: after 502 it repeats the request."""
    for _ in range(3):
        key = {"idempotency-key": f"{name} {value}"}
        response = client.post("/v1/secrets", json={"name": name, "value": value}, headers=key)
        if response.status_code != 502:
            break
    assert response.status_code == 200, response.text


def test_changes_reach_a_stream_through_the_proxy_at_once(proxy: httpx.Client) -> None:
    put(proxy, "x")
    token = proxy.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
    with proxy.stream(
        "GET", "/v1/deployment/changes", headers={"authorization": f"Bearer {token}"}
    ) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines))["event"] == "hello"
        began = time.monotonic()
        put(proxy, "x", "next")
        assert any(json.loads(line)["event"] == "changed" for line in lines)
        assert seconds_since(began) < 1.0


def test_a_client_cannot_choose_the_address_that_is_recorded(proxy: httpx.Client) -> None:
    proxy.headers["x-forwarded-for"] = "203.0.113.9"
    proxy.get("/v1/secrets", headers={"authorization": "Bearer nonsense"})
    records = proxy.get("/v1/audit").json()["records"]
    refused = [record for record in records if record["outcome"] == "not_signed_in"]
    assert refused and "203.0.113.9" not in json.dumps(refused)


def test_the_proxy_goes_on_with_the_other_manager(proxy: httpx.Client, managers: list[Manager]) -> None:
    put(proxy, "before")
    managers[0].kill()
    for number in range(20):
        put(proxy, f"after-{number}")
        assert proxy.get("/v1/secrets").status_code == 200
