"""An issuer of JSON Web Tokens on this machine, with keys of every type, and tokens that are wrong in one way."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

DISCOVERY, JWKS = "/.well-known/openid-configuration", "/keys"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


@dataclass
class Key:
    """A private key with its id and algorithm."""

    id: str
    algorithm: str
    private: Any

    @classmethod
    def make(cls, id: str, algorithm: str, *, bits: int = 2048) -> Key:
        if algorithm.startswith(("RS", "PS")):
            return cls(id, algorithm, rsa.generate_private_key(65537, bits))
        if algorithm == "EdDSA":
            return cls(id, algorithm, ed25519.Ed25519PrivateKey.generate())
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return cls(id, algorithm, ec.generate_private_key(curves[algorithm]))

    def public(self) -> dict[str, Any]:
        """The public key as a JWK."""
        key = self.private.public_key()
        common = {"kid": self.id, "use": "sig", "alg": self.algorithm}
        if isinstance(key, rsa.RSAPublicKey):
            numbers = key.public_numbers()
            return common | {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        if isinstance(key, ed25519.Ed25519PublicKey):
            return common | {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_bytes_raw())}
        size, point = (key.curve.key_size + 7) // 8, key.public_numbers()
        curve = {256: "P-256", 384: "P-384", 521: "P-521"}[key.curve.key_size]
        x, y = (b64(each.to_bytes(size, "big")) for each in (point.x, point.y))
        return common | {"kty": "EC", "crv": curve, "x": x, "y": y}

    def sign(self, data: bytes) -> bytes:
        digest: Any = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}.get(
            self.algorithm[2:]
        )
        if self.algorithm == "EdDSA":
            return bytes(self.private.sign(data))
        if self.algorithm.startswith("PS"):
            pss = padding.PSS(padding.MGF1(digest()), padding.PSS.DIGEST_LENGTH)
            return bytes(self.private.sign(data, pss, digest()))
        if self.algorithm.startswith("RS"):
            return bytes(self.private.sign(data, padding.PKCS1v15(), digest()))
        size = (self.private.curve.key_size + 7) // 8
        r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(digest())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    def pem(self) -> bytes:
        """The public key as text, as an attacker would use it for HMAC."""
        return bytes(
            self.private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )


def token(
    header: Mapping[str, Any] | bytes, claims: Mapping[str, Any] | bytes, sign: Callable[[bytes], bytes]
) -> str:
    """A token with just these parts."""
    parts = (each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, claims))
    signed = ".".join(map(b64, parts))
    return f"{signed}.{b64(sign(signed.encode()))}"


def hmac_with(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.digest(secret, data, hashlib.sha256)


@dataclass
class Issuer:
    """The server. A test changes what it publishes: `keys`, or the whole response to a path."""

    url: str
    keys: list[Key]
    requests: Counter[str] = field(default_factory=Counter)
    responses: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)

    def jwks(self) -> dict[str, Any]:
        return {"keys": [key.public() for key in self.keys]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a good token; a change to None leaves one out."""
        now = int(time.time())
        claims = {"iss": self.url, "sub": "s", "aud": "gusset", "iat": now, "exp": now + 3600} | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: Key | None = None, header: Mapping[str, Any] = {}, **claims: Any) -> str:
        """A good token, but for the changes to its header and claims."""
        key = key or self.keys[0]
        head = {"alg": key.algorithm, "kid": key.id, "typ": "JWT"} | header
        head = {name: value for name, value in head.items() if value is not None}
        return token(head, self.claims(**claims), key.sign)

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        self.requests[request.path] += 1
        if request.path in self.responses:
            self.responses[request.path](request)
        elif request.path == DISCOVERY:
            send(request, {"issuer": self.url, "jwks_uri": self.url + JWKS} | self.document)
        elif request.path == JWKS:
            send(request, self.jwks())
        else:
            send(request, {}, 404)


def send(request: BaseHTTPRequestHandler, data: Any, status: int = 200, **headers: str) -> None:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    request.send_response(status)
    request.send_header("content-length", str(len(body)))
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def running_issuer(
    *keys: Key, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Iterator[Issuer]:
    """An issuer on this machine, whose URL has the name `host`; with `tls` it is served by HTTPS."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                issuer.respond(self)
            except OSError:
                self.close_connection = True  # the client has gone

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scheme = "http" if tls is None else "https"
    issuer = Issuer(f"{scheme}://{host}:{server.server_port}", list(keys))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()


def certificate(folder: Path, host: str) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for a host, and the context of a server that has it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gusset test")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public, both = folder / f"{host}.pem", folder / f"{host}.both.pem"
    public.write_bytes(made.public_bytes(pem))
    both.write_bytes(private + public.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return public, context
