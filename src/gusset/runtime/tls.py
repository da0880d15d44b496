"""TLS of a listening socket, with a certificate that can be replaced while it is in use."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gusset.errors import UsageError

log = logging.getLogger("gusset")

_Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a certificate chain and of its private key, both PEM."""

    certificate: Path
    key: Path

    @classmethod
    def given(cls, certificate: Path | None, key: Path | None) -> TlsFiles | None:
        """The files of `--tls-certificate` and `--tls-key`; None when neither is given.

        Raises:
            UsageError: only one of them is.
        """
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            raise UsageError("TLS needs both --tls-certificate and --tls-key")
        return cls(certificate.absolute(), key.absolute())


class ServerTls:
    """The context for new connections. `refresh` reads the files again after they have changed."""

    def __init__(self, files: TlsFiles, current: ssl.SSLContext, stamp: _Stamp) -> None:
        self._files = files
        self._current = current
        self._used = self._seen = stamp
        self._protocols: list[str] = []  # that clients may choose, by ALPN
        self.context = current
        self.context.sni_callback = self._choose

    @classmethod
    def open(cls, files: TlsFiles) -> ServerTls:
        """Read the files.

        Raises:
            UsageError: they cannot be used; it names the file.
        """
        stamp = _stamp(files)
        return cls(files, _load(files), stamp)

    def offer_http2(self) -> None:
        """Let clients choose HTTP/2 in the handshake. Those of gRPC insist on it."""
        self._protocols = ["h2", "http/1.1"]
        self._current.set_alpn_protocols(self._protocols)

    def refresh(self) -> None:
        """If the files have changed, use them for new connections. Cheap: call it every half second.

        Files that cannot be used are logged, and the certificate stays. They are
        read at the second call that finds them the same, since they may be
        replaced one after the other.
        """
        stamp = _stamp(self._files)
        if stamp != self._seen or stamp == self._used:
            self._seen = stamp
            return
        self._used = stamp
        try:
            new = _load(self._files)
            if self._protocols:
                new.set_alpn_protocols(self._protocols)
            self._current = new
        except UsageError as error:
            log.error("The previous certificate stays in use: %s", error.message)  # noqa: TRY400
        else:
            log.info("New connections use the new certificate in %s.", self._files.certificate)

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, also without a server name: use the newest certificate."""
        connection.context = self._current


def _load(files: TlsFiles) -> ssl.SSLContext:
    certificate, key = _read(files.certificate), _read(files.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A password is given so that OpenSSL does not prompt for one.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", None) or "")
        fault = _fault_of_certificate(certificate) or _fault_of_key(key) or _fault_of_pair(reason)
        raise UsageError(
            f"the certificate {files.certificate} cannot be used with the key {files.key}: {fault}",
            hint="both must be PEM, the key without a password, and the server's own certificate the first",
        ) from None
    return context


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def _fault_of_certificate(content: bytes) -> str | None:
    """What is wrong with the file of a certificate in itself, None if nothing is."""
    if fault := _fault_of_pem(content, "certificate", "private key"):
        return fault
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("latin-1"))
    except (OSError, ValueError):
        return "the certificate's file is damaged or incomplete"
    return None


def _fault_of_key(content: bytes) -> str | None:
    """What can be seen to be wrong with the file of a key in itself, None if nothing can."""
    if fault := _fault_of_pem(content, "private key", "certificate"):
        return fault
    if b"-----BEGIN ENCRYPTED" in content or b"Proc-Type: 4,ENCRYPTED" in content:
        return "the key is encrypted with a password; `openssl pkey -in KEY -out NEW` writes it without one"
    return None


_PEM_LABELS = {"certificate": b"-----BEGIN CERTIFICATE-----", "private key": b"PRIVATE KEY-----"}


def _fault_of_pem(content: bytes, wanted: str, other: str) -> str | None:
    """Why a file is not PEM of the `wanted` kind, None if it is. Says so if it is of the `other` kind."""
    file = f"the {wanted.removeprefix('private ')}'s file"
    if not content.strip():
        return f"{file} is empty"
    if _PEM_LABELS[wanted] in content:
        return None
    if _PEM_LABELS[other] in content:
        return f"{file} has a {other}, and no {wanted}"
    return f"{file} is not PEM: it has no line -----BEGIN {wanted.upper()}-----"


def _fault_of_pair(reason: str) -> str:
    """What is wrong with two files that look right, from OpenSSL's reason."""
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return "the key does not belong to the certificate"
    if reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
        return "OpenSSL refuses it as too weak: make a new key, of at least 2,048 bits for RSA"
    if not reason:
        return "the key's file is damaged or incomplete"
    return f"OpenSSL reports {reason.lower().replace('_', ' ')}"


def _stamp(files: TlsFiles) -> _Stamp:
    """Changes when one of the files does."""
    return tuple(_stamp_of(file) for file in (files.certificate, files.key))


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
