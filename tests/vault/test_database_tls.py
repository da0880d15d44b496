"""TLS to PostgreSQL: what the URL demands is demanded, and what is wrong is said; several hosts in one URL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gusset.errors import HostError
from gusset.settings import Settings
from gusset.vault import open_vault
from tests.postgres_server import PostgresServer, debian_binaries
from tests.system import skip_if
from tests.vault.conftest import settings_in

pytestmark = [pytest.mark.server, pytest.mark.system]


class DebianServer(PostgresServer):
    """A server of Debian's package."""

    def find_binaries(self) -> Path:
        return debian_binaries() or super().find_binaries()


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        folder.mkdir()
        made = cls(folder)
        made._openssl("req", "-x509", "-subj", "/CN=authority", *made._new_key("authority"), "-days", "2")
        return made

    @property
    def certificate(self) -> Path:
        return self.folder / "authority.crt"

    def issue(self, name: str, subject: str) -> tuple[Path, Path]:
        """A certificate for `subject`, as in `DNS:localhost`, and its key."""
        ca = ["-CA", str(self.certificate), "-CAkey", str(self.folder / "authority.key"), "-days", "2"]
        extension = ["-addext", f"subjectAltName={subject}"]
        self._openssl("req", "-x509", "-subj", f"/CN={name}", *self._new_key(name), *ca, *extension)
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def _new_key(self, name: str) -> list[str]:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        return [*key, "-keyout", str(self.folder / f"{name}.key"), "-out", str(self.folder / f"{name}.crt")]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[PostgresServer]:
    """A server with a certificate for `localhost`."""
    if debian_binaries() is None:
        skip_if("the tests' own PostgreSQL has no TLS; `make system-deps` installs Debian's")
    with DebianServer.running() as running:
        running.stop()
        certificate, key = authority.issue("server", "DNS:localhost")
        owner = running.data.stat()
        for file in (certificate, key):
            copy = running.data / file.name
            shutil.copy(file, copy)
            copy.chmod(0o600)
            os.chown(copy, owner.st_uid, owner.st_gid)
        running.start(ssl="on", ssl_cert_file="server.crt", ssl_key_file="server.key")
        yield running


Url = Callable[..., str]


@pytest.fixture
def url(server: PostgresServer) -> Iterator[Url]:
    """The URL of an empty database of the server, with a host and options."""
    name = server.new_database()
    yield lambda options, host="localhost": f"postgresql://postgres@{host}:{server.port}/{name}?{options}"
    server.drop(name)


def opens(url: str, home: Path) -> Settings:
    settings = settings_in(home, database=url)
    with open_vault(settings):
        pass
    return settings


def refused(url: str, home: Path) -> str:
    """The error's message and hint."""
    with pytest.raises(HostError, match="cannot be reached over TLS") as error:
        opens(url, home)
    return f"{error.value.message} ({error.value.hint})"


def test_a_server_is_verified_by_the_own_authority(
    url: Url, authority: Authority, home: Path, server: PostgresServer
) -> None:
    """All sessions are encrypted then."""
    settings = settings_in(home, database=url(f"sslmode=verify-full&sslrootcert={authority.certificate}"))
    with open_vault(settings) as vault:
        vault.secrets.reader.list()
        query = "SELECT s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.datname LIKE 'gusset%'"
        assert {row[0] for row in server.run(query)} == {True}


def test_another_authority_is_refused(url: Url, tmp_path: Path, home: Path) -> None:
    other = Authority.make(tmp_path / "other").certificate
    assert "certificate verify failed" in refused(url(f"sslmode=verify-full&sslrootcert={other}"), home)


def test_a_certificate_for_another_name_is_refused(url: Url, authority: Authority, home: Path) -> None:
    """`verify-ca` accepts it: only `verify-full` compares the name."""
    options = f"sslrootcert={authority.certificate}"
    found = refused(url(f"sslmode=verify-full&{options}", host="127.0.0.1"), home)
    assert "does not match host name" in found
    opens(url(f"sslmode=verify-ca&{options}", host="127.0.0.1"), home)


def test_a_missing_file_of_authorities_is_named(url: Url, tmp_path: Path, home: Path) -> None:
    assert "gone.crt" in refused(url(f"sslmode=verify-full&sslrootcert={tmp_path / 'gone.crt'}"), home)


def test_a_server_without_tls_is_refused_where_tls_is_demanded(
    postgres_server: PostgresServer, home: Path
) -> None:
    database = postgres_server.new_database()
    found = refused(f"{postgres_server.url(database)}?sslmode=require", home)
    assert "does not support SSL" in found
    postgres_server.drop(database)


def test_of_several_hosts_the_one_that_accepts_writes_is_used(
    url: Url, authority: Authority, home: Path, server: PostgresServer
) -> None:
    """Whichever comes first, with TLS to each of them."""
    options = f"sslmode=verify-full&sslrootcert={authority.certificate}&target_session_attrs=read-write"
    address = url(options)
    host = f"localhost:{server.port}"
    with PostgresServer.running() as other:  # neither this one, which has no TLS, nor one that is away
        for hosts in (f"{host},localhost:{other.port}", f"localhost:{other.port},localhost:1,{host}"):
            opens(address.replace(host, hosts), home)
    name = address.partition("?")[0].rpartition("/")[2]
    server.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(HostError, match="read-only"):
        opens(address.replace(host, f"{host},{host}"), home)
