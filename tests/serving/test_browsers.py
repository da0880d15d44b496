"""Web pages of other sites cannot use a server on loopback, by whatever request a browser lets them send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import Cli
from tests.manager.test_serve import served  # `gusset serve` as a process

MODEL = "class Model:\n    def predict(self, model_input):\n        return model_input\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m" / "model").mkdir(parents=True)
    (tmp_path / "m" / "model" / "model.py").write_text(MODEL)
    (tmp_path / "m" / "config.yaml").write_text("model_name: m\n")
    return tmp_path / "m"


@contextmanager
def serving(gusset: Cli, folder: Path, tmp_path: Path, *options: str) -> Iterator[str]:
    with served(gusset, str(folder), *options, errors=tmp_path / "err") as (address, _):
        yield address


def test_foreign_hosts_origins_and_sites_are_refused(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """A plain form, DNS rebinding, an image or a script: each with the option that would allow it."""
    with serving(gusset, folder, tmp_path) as address:
        port = address.rpartition(":")[2]

        def status(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            response = httpx.post(f"{address}/predict", content=b"1", headers=named)
            if response.status_code in (403, 421):
                assert "--allow" in response.json()["error"]
            return response.status_code

        assert status(content_type="text/plain") == 200
        for host in (
            "localhost",
            f"127.0.0.1:{port}",
            "[::1]:1",
            "app.localhost:80",
            "LOCALHOST",
            "127.8.8.8",
        ):
            assert (host, status(host=host)) == (host, 200)
        for host in (
            "evil.example",
            "localhost.evil.example:8080",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "x y",
            "a:b:c",
        ):
            assert (host, status(host=host)) == (host, 421)
        assert status(origin=f"http://127.0.0.1:{port}", host=f"127.0.0.1:{port}") == 200
        for origin in (
            "https://evil.example",
            "null",
            "http://localhost:3000",
            "http://127.0.0.1",
            "file://",
        ):
            assert (origin, status(origin=origin, content_type="text/plain")) == (origin, 403)
        assert status(sec_fetch_site="cross-site") == status(sec_fetch_site="same-site") == 403
        assert status(sec_fetch_site="same-origin") == status(sec_fetch_site="none") == 200
        assert httpx.get(address, headers={"host": "evil.example"}).status_code == 421
        with (
            pytest.raises(InvalidStatus, match="403"),
            connect(f"ws://127.0.0.1:{port}/v1/websocket", origin="https://evil.example"),
        ):
            pass


def test_a_refused_request_is_not_read(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """The response comes before the body, and the connection ends."""
    with serving(gusset, folder, tmp_path) as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000\r\n\r\n")
            received = b"".join(iter(lambda: client.recv(65_536), b""))
    assert received.startswith(b"HTTP/1.1 421 ")


def test_allowed_hosts_and_origins_are_served(gusset: Cli, folder: Path, tmp_path: Path) -> None:
    """Preflights are answered, and the page may read the response; other pages still may not."""
    options = ("--allowed-host", "models.example", "--allow-origin", "https://app.example")
    with serving(gusset, folder, tmp_path, *options) as address:
        headers = {
            "origin": "https://app.example",
            "sec-fetch-site": "cross-site",
            "host": "models.example:443",
        }
        response = httpx.post(f"{address}/predict", json=1, headers=headers)
        assert response.json() == 1
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        asked = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type",
        }
        preflight = httpx.options(f"{address}/predict", headers=headers | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        other = headers | {"origin": "https://other.example"}
        assert httpx.options(f"{address}/predict", headers=other | asked).status_code == 403
        assert httpx.post(f"{address}/predict", json=1, headers=other).status_code == 403
        assert "access-control-allow-origin" not in httpx.post(f"{address}/predict", json=1).headers


@pytest.mark.parametrize(
    "options",
    [
        ("--allowed-host", "models.example:80"),
        ("--allowed-host", "http://models.example"),
        ("--allow-origin", "*"),
        ("--allow-origin", "app.example"),
        ("--allow-origin", "https://app.example/"),
    ],
)
def test_a_malformed_host_or_origin_is_refused(gusset: Cli, folder: Path, options: tuple[str, str]) -> None:
    """With the form that it must have."""
    done = gusset("serve", str(folder), *options, status=2)
    assert options[0].encode() in done.stderr and options[1].encode() in done.stderr
