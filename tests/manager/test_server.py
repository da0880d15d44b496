"""The server around the API: TLS, who its clients are, limits, metrics, logs, its own process."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import Cli, as_ordinary_process, leaks_in
from tests.manager.conftest import PASSWORD, Manager

VALUE = "hf_" + "aB3dE6gH" * 5


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
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


def test_tls(manager: Manager, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """HTTPS with a given certificate, for clients and for commands that trust it."""
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
    ("options", "status", "said"),
    [
        (["--host", "0.0.0.0"], 2, b"plain HTTP"),
        (["--tls-key", "KEY"], 2, b"both"),
        (["--tls-certificate", "KEY", "--tls-key", "KEY"], 2, b"cannot be used"),
        (["--tls-certificate", "/nowhere.pem"], 2, b"does not exist"),
        (["--port", "TAKEN"], 11, b"in use"),
        (["--host", "192.0.2.7", "--insecure-http"], 11, b"cannot listen"),
    ],
)
def test_what_cannot_be_listened_on(
    gusset: Cli, certificate: tuple[Path, Path], options: list[str], status: int, said: bytes
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        places = {"KEY": str(certificate[1]), "TAKEN": str(taken.getsockname()[1])}
        words = [places.get(word, word) for word in options]
        done = gusset("manager", *words, status=status)
    assert said in done.stderr and b"Traceback" not in done.stderr


def test_only_a_trusted_proxy_may_say_who_its_clients_are(manager: Manager) -> None:
    """The address in the audit log: the other end's, unless the other end is the proxy."""
    told = {"x-forwarded-for": "203.0.113.9"}

    def seen() -> str:
        with manager.client(**told) as client:
            client.post("/v1/secrets", json={"name": "x", "value": VALUE})
            address: str = client.get("/v1/audit?limit=1").json()["records"][0]["details"]["from"]
            return address

    assert seen() == "127.0.0.1"
    manager.stop()
    manager.start("--trusted-proxy", "127.0.0.1")
    assert seen() == "203.0.113.9"
    manager.stop()
    manager.start("--trusted-proxy", "10.9.9.9")
    assert seen() == "127.0.0.1"


def test_every_answer_has_its_headers(admin: httpx.Client) -> None:
    for path in ("/v1/secrets", "/v1/nope", "/healthz", "/signin", "/nope"):
        headers = admin.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY" and headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_metrics_count_and_name_nobody(admin: httpx.Client) -> None:
    admin.post("/v1/secrets", json={"name": "a_telling_name", "value": VALUE})
    admin.get("/v1/secrets/a_telling_name")
    text = admin.get("/metrics").text
    assert 'gusset_http_requests_total{route="/v1/secrets/{name}",status="200"} 1.0' in text
    assert "a_telling_name" not in text and "example.com" not in text


def test_a_body_that_is_too_large_is_refused_before_it_is_read(manager: Manager) -> None:
    """Also one that does not say how long it is."""

    def endless() -> object:
        for _ in range(64):
            yield b"x" * 65_536

    with manager.client() as client:
        assert client.post("/v1/secrets", content=b"x" * 1_048_577).status_code == 413
        answer = client.post("/v1/secrets", content=endless())  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_stop_lets_requests_under_way_finish(manager: Manager) -> None:
    """A body that is still coming is taken, answered, and the process ends with 0."""
    host, port = "127.0.0.1", manager.port
    body = json.dumps({"name": "x", "value": VALUE}).encode()
    head = (
        f"POST /v1/secrets HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {manager.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, port), timeout=20) as half:
        half.sendall(head + body[:10])
        time.sleep(0.3)
        stopping = threading.Thread(target=manager.stop)
        stopping.start()
        time.sleep(0.3)
        half.sendall(body[10:])
        answer = half.recv(65_536)
    stopping.join()
    assert answer.startswith(b"HTTP/1.1 200")
    assert manager.process.returncode == 0
    assert b'"x"' in manager.gusset("secret", "list", "--output", "json").stdout


def test_the_process_keeps_values_and_keys_to_itself(manager: Manager, admin: httpx.Client) -> None:
    """Not in its arguments, environment or log; its memory cannot be read by its own account."""
    for number in range(5):
        admin.post("/v1/secrets", json={"name": f"x{number}", "value": VALUE})
    admin.post("/v1/secrets", content=b'{"name": "x", "value": "' + VALUE.encode() + b'", "encoding": "rot"}')
    folder = Path(f"/proc/{manager.process.pid}")
    held = (VALUE.encode(), manager.key.encode(), PASSWORD)
    assert not leaks_in((folder / "cmdline").read_bytes(), *held)
    assert not leaks_in((folder / "environ").read_bytes(), *held)
    assert not leaks_in(manager.log.read_bytes(), *held)
    # What is non-dumpable is closed to the account that it runs as.
    reading = [*as_ordinary_process(), "cat", str(folder / "environ")]
    assert b"Permission denied" in subprocess.run(reading, capture_output=True).stderr
    files = [path for path in manager.gusset.home.rglob("*") if path.is_file()]
    assert files and not any(leaks_in(path.read_bytes(), *held) for path in files)
