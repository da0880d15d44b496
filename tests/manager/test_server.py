"""The manager as a server: TLS, addresses of clients, limits, metrics, shutdown, and what its process reveals."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import Cli, as_ordinary_process, leaks_in
from tests.manager.conftest import PASSWORD, Manager
from tests.serving.conftest import eventually

VALUE = "hf_" + "aB3dE6gH" * 5


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gusset test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    chain, private = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return chain, private


def test_https_is_served_with_the_given_certificate(
    manager: Manager, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """To clients and to commands that trust it."""
    chain, private = certificate
    manager.stop()
    manager.start("--tls-certificate", str(chain), "--tls-key", str(private))
    assert manager.address.startswith("https://")
    trusting = ssl.create_default_context(cafile=str(chain))
    bearer = {"authorization": f"Bearer {manager.key}"}
    assert httpx.get(f"{manager.address}/v1/secrets", headers=bearer, verify=trusting).status_code == 200
    environ = manager.gusset.environ | {"GUSSET_SETTINGS": str(tmp_path / "there.toml")}
    elsewhere = Cli(tmp_path / "there", environ)
    assert (
        b"does not respond"
        in elsewhere("login", manager.address, input=manager.key.encode(), status=8).stderr
    )
    elsewhere("login", manager.address, input=manager.key.encode(), SSL_CERT_FILE=str(chain))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--host", "0.0.0.0"], 2, b"plain HTTP"),
        (["--tls-key", "KEY"], 2, b"both"),
        (["--tls-certificate", "KEY", "--tls-key", "KEY"], 2, b"cannot be used"),
        (["--tls-certificate", "/nowhere.pem"], 2, b"does not exist"),
        (["--port", "TAKEN"], 11, b"in use"),
        (["--host", "192.0.2.7", "--insecure-http"], 11, b"cannot listen"),
    ],
)
def test_listening_that_is_unsafe_or_impossible_is_refused(
    gusset: Cli, certificate: tuple[Path, Path], options: list[str], status: int, message: bytes
) -> None:
    """With a message and an exit status, without a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"KEY": str(certificate[1]), "TAKEN": str(taken.getsockname()[1])}
        done = gusset("manager", *(values.get(option, option) for option in options), status=status)
    assert message in done.stderr and b"Traceback" not in done.stderr


def test_a_manager_on_all_addresses_announces_one_that_can_be_opened(manager: Manager) -> None:
    """`0.0.0.0` is not an address to connect to."""
    manager.stop()
    manager.start("--host", "0.0.0.0", "--insecure-http")
    assert manager.address == f"http://localhost:{manager.port}"
    assert httpx.get(f"{manager.address}/healthz", trust_env=False).status_code == 200


def test_only_a_trusted_proxy_may_give_the_address_of_its_clients(manager: Manager) -> None:
    """The audit log has that of the connection otherwise."""
    headers = {"x-forwarded-for": "203.0.113.9"}

    def recorded() -> str:
        with manager.client(**headers) as client:
            client.post("/v1/secrets", json={"name": "x", "value": VALUE})
            address: str = client.get("/v1/audit?limit=1").json()["records"][0]["details"]["from"]
            return address

    assert recorded() == "127.0.0.1"
    manager.stop()
    manager.start("--trusted-proxy", "127.0.0.1")
    assert recorded() == "203.0.113.9"
    manager.stop()
    manager.start("--trusted-proxy", "10.9.9.9")
    assert recorded() == "127.0.0.1"


def test_every_response_has_the_security_headers(admin: httpx.Client) -> None:
    """Of the API, of pages, and errors; the server does not name itself."""
    for path in ("/v1/secrets", "/v1/nope", "/healthz", "/signin", "/nope"):
        headers = admin.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY" and headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_metrics_count_requests_without_names(admin: httpx.Client) -> None:
    """By route and status, not by secret or person."""
    admin.post("/v1/secrets", json={"name": "a_revealing_name", "value": VALUE})
    admin.get("/v1/secrets/a_revealing_name")
    text = admin.get("/metrics").text
    assert 'gusset_http_requests_total{route="/v1/secrets/{name}",status="200"} 1.0' in text
    assert "a_revealing_name" not in text and "example.com" not in text


def test_a_body_that_is_too_large_gets_413(manager: Manager) -> None:
    """Also without a Content-Length; a browser gets a page."""

    def endless() -> object:
        for _ in range(64):
            yield b"x" * 65_536

    with manager.client() as client:
        assert client.post("/v1/secrets", content=b"x" * 1_048_577).status_code == 413
        response = client.post("/v1/secrets", content=endless())  # type: ignore[arg-type]
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
        page = client.post("/signin", data={"email": "x" * 1_048_577})
        assert page.status_code == 413 and page.headers["content-type"].startswith("text/html")
        assert client.post("/v1/secrets:batch", content=b"x" * 1_048_577).status_code == 400
        assert client.post("/v1/secrets:batch", content=b"x" * 16_777_217).status_code == 413


def test_writes_may_be_pipelined(manager: Manager) -> None:
    """Several requests at once on one connection are handled in their order."""
    body = json.dumps({"name": "x", "value": VALUE}).encode()
    head = f"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {manager.key}\r\n".encode()
    write = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", manager.port), timeout=20) as client:
        client.sendall(write * 3 + last)
        received = b"".join(iter(lambda: client.recv(65_536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 4
    assert [int(found) for found in re.findall(rb'"version":(\d+)', received)] == [1, 2, 3]


def test_a_stop_lets_requests_in_flight_finish(manager: Manager) -> None:
    """A body that is still arriving is read, its request gets its response, and the process exits with 0."""
    body = json.dumps({"name": "x", "value": VALUE}).encode()
    head = (
        f"POST /v1/secrets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {manager.key}\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", manager.port), timeout=20) as client:
        client.sendall(head + body[:10])
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        stopping = threading.Thread(target=manager.stop)
        stopping.start()
        eventually(lambda: not accepts(manager.port))
        client.sendall(body[10:])
        response = client.recv(65_536)
    stopping.join()
    assert response.startswith(b"HTTP/1.1 200")
    assert manager.process.returncode == 0
    assert b'"x"' in manager.gusset("secret", "list", "--output", "json").stdout


def accepts(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_process_reveals_no_values_and_keys(manager: Manager, admin: httpx.Client) -> None:
    """Not in its arguments, environment, log or files; its own account cannot read its memory."""
    for number in range(5):
        admin.post("/v1/secrets", json={"name": f"x{number}", "value": VALUE})
    admin.post("/v1/secrets", content=b'{"name": "x", "value": "' + VALUE.encode() + b'", "encoding": "rot"}')
    folder = Path(f"/proc/{manager.process.pid}")
    held = (VALUE.encode(), manager.key.encode(), PASSWORD)
    assert not leaks_in((folder / "cmdline").read_bytes(), *held)
    assert not leaks_in((folder / "environ").read_bytes(), *held)
    assert not leaks_in(manager.log.read_bytes(), *held)
    # The process is non-dumpable, so even the account that it runs as may not read this.
    reading = [*as_ordinary_process(), "cat", str(folder / "environ")]
    assert b"Permission denied" in subprocess.run(reading, capture_output=True).stderr
    files = [path for path in manager.gusset.home.rglob("*") if path.is_file()]
    assert files and not any(leaks_in(path.read_bytes(), *held) for path in files)
