"""A provider for `gusset secret rotate`: a key pair with a certificate of your own authority.

The secret's value is the private key and the certificate, as PEM. Revoking adds the certificate to the
authority's revocation list.

    gusset secret rotate client_certificate \\
        --with "python certificate.py --authority /etc/authority --name client.example"

The folder has `authority.pem` and `authority.key`, and gets `revoked.crl`. Needs cryptography. The handle
is the serial number. It comes from the rotation's id, so a repeated step makes no second certificate that
would have to be revoked.
"""

import argparse
import fcntl
import hashlib
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

parser = argparse.ArgumentParser()
parser.add_argument("--authority", required=True, type=Path)
parser.add_argument("--name", required=True)
parser.add_argument("--days", type=int, default=90)
arguments = parser.parse_args()
request = json.load(sys.stdin)

issuer = x509.load_pem_x509_certificate((arguments.authority / "authority.pem").read_bytes())
issuer_key = serialization.load_pem_private_key((arguments.authority / "authority.key").read_bytes(), None)
now = datetime.now(UTC)


def create() -> dict[str, str]:
    serial = int.from_bytes(hashlib.sha256(request["rotation"].encode()).digest()[:19], "big")
    key, end = ec.generate_private_key(ec.SECP256R1()), now + timedelta(days=arguments.days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, arguments.name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(arguments.name)]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = private + certificate.public_bytes(serialization.Encoding.PEM)
    return {"value": pem.decode(), "handle": f"{serial:x}", "expires_at": end.isoformat()}


def revoke(serial: int) -> None:
    file = arguments.authority / "revoked.crl"
    with (arguments.authority / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = list(x509.load_pem_x509_crl(file.read_bytes())) if file.exists() else []
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
        builder = builder.last_update(now).next_update(now + timedelta(days=arguments.days))
        for each in (*(each for each in before if each.serial_number != serial), revoked):
            builder = builder.add_revoked_certificate(each)
        new = file.with_suffix(".new")
        new.write_bytes(builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        new.replace(file)


if request["step"] == "create":
    print(json.dumps(create()))
elif request["step"] == "revoke":
    revoke(int(request["handle"], 16))
    print("{}")
else:
    sys.exit(64)
