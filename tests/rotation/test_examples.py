"""The programs in examples/rotation, run by `gusset secret rotate` with the embedded vault."""

from __future__ import annotations

import json
import secrets
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import Cli, leaks_in

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parents[2] / "examples" / "rotation"


def rotate(gusset: Cli, name: str, program: str, arguments: str) -> bytes:
    """Rotate a secret with one of the programs; returns what was printed."""
    command = f"{sys.executable} {PROGRAMS / program} {arguments}"
    done = gusset("secret", "rotate", name, "--overlap", "1s", "--with", command)
    return done.stdout + done.stderr


def copy_value(gusset: Cli, name: str, file: Path) -> bytes:
    """The current value, which a command has copied to a file."""
    copy = f"cp $GUSSET_SECRETS_DIR/{name} {file}"
    gusset("exec", "--secret", name, "--", "sh", "-c", copy)
    value = file.read_bytes()
    file.chmod(0o600)
    return value


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A folder with a certificate authority."""
    folder, key, now = tmp_path / "authority", ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    folder.mkdir()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Authority")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "authority.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password)
    (folder / "authority.key").write_bytes(private)
    return folder


def test_a_certificate_is_issued_and_the_one_before_is_revoked(
    gusset: Cli, authority: Path, tmp_path: Path
) -> None:
    """The value is a key pair that TLS accepts; the first certificate is on the list after the second rotation."""
    gusset("secret", "set", "pair", input=b"none yet")
    arguments = f"--authority {authority} --name client.example"
    printed = rotate(gusset, "pair", "certificate.py", arguments)
    assert b"0 credentials revoked" in printed and not (authority / "revoked.crl").exists()
    first = x509.load_pem_x509_certificate(_pair(gusset, tmp_path).read_bytes())
    listed = json.loads(gusset("secret", "list", "--output", "json").stdout)["secrets"]
    assert listed[0]["expires_at"][:10] == first.not_valid_after_utc.isoformat()[:10]

    assert b"1 credential revoked" in rotate(gusset, "pair", "certificate.py", arguments)
    second = x509.load_pem_x509_certificate(_pair(gusset, tmp_path).read_bytes())
    revoked = x509.load_pem_x509_crl((authority / "revoked.crl").read_bytes())
    assert [each.serial_number for each in revoked] == [first.serial_number] != [second.serial_number]


def _pair(gusset: Cli, tmp_path: Path) -> Path:
    """The file with the current key pair, which TLS has accepted."""
    file = tmp_path / "pair.pem"
    copy_value(gusset, "pair", file)
    ssl.create_default_context().load_cert_chain(file)
    return file


class _Keys(BaseHTTPRequestHandler):
    """A service that makes and revokes keys."""

    live: dict[str, str]
    failures: list[int]

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == "Bearer admin-token"
        if self.failures:
            self._send(self.failures.pop(), {})
            return
        number = self.headers["Idempotency-Key"]
        key = self.live.setdefault(f"id-{number}", "key-" + secrets.token_urlsafe(24))
        self._send(200, {"id": f"id-{number}", "key": key})

    def do_DELETE(self) -> None:
        found = self.live.pop(self.path.rpartition("/")[2], None)
        self._send(200 if found else 404, {})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def service(failures: list[int]) -> Iterator[tuple[str, dict[str, str]]]:
    """A running service: its address, and its keys by id."""
    live: dict[str, str] = {}
    handler = type("Keys", (_Keys,), {"live": live, "failures": failures})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/keys", live
    finally:
        server.shutdown()
        server.server_close()


def test_a_key_of_an_http_service(gusset: Cli, tmp_path: Path) -> None:
    """One key lives after each rotation, the secret's value. A failure that passes is no failure."""
    (tmp_path / "token").write_text("admin-token\n")
    gusset("secret", "set", "api_key", input=b"none yet")
    with service([503]) as (url, live):
        for _ in range(2):
            arguments = f"--url {url} --token-file {tmp_path / 'token'}"
            printed = rotate(gusset, "api_key", "http_api.py", arguments)
            [key] = live.values()
            assert copy_value(gusset, "api_key", tmp_path / "copy") == key.encode()
            assert not leaks_in(printed, key.encode(), b"admin-token")


def test_programs_know_their_steps() -> None:
    """Each exits with 64 for a step that it does not have."""
    for program, options in (
        ("postgres.py", ["--admin", "postgresql://", "--roles", "a,b"]),
        ("http_api.py", ["--url", "http://127.0.0.1:1", "--token-file", "/dev/null"]),
    ):
        done = subprocess.run(
            [sys.executable, str(PROGRAMS / program), *options],
            input=json.dumps({"step": "future"}).encode(),
            capture_output=True,
        )
        assert done.returncode == 64, done.stderr
