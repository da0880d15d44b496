"""A manager whose certificate is from an authority of one's own: GUSSET_MANAGER_CA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.manager.conftest import Manager, manager, set_up  # noqa: F401  # fixtures
from tests.manager.issuer import certificate


@pytest.fixture
def address(manager: Manager, tmp_path: Path) -> str:  # noqa: F811
    """The address of a manager with a certificate that nobody else trusts."""
    certificate(tmp_path, "localhost")
    manager.stop()
    public, both = tmp_path / "localhost.pem", tmp_path / "localhost.both.pem"
    manager.start("--tls-certificate", str(public), "--tls-key", str(both))
    return f"https://localhost:{manager.port}"


def test_an_authority_of_ones_own_is_trusted_where_it_is_named(
    manager: Manager,  # noqa: F811
    gusset: Cli,
    address: str,
    tmp_path: Path,
) -> None:
    key = manager.key.encode()
    assert b"does not respond" in gusset("login", address, input=key, status=8).stderr
    trusted = {"GUSSET_MANAGER_CA": str(tmp_path / "localhost.pem")}
    gusset("login", address, input=key, **trusted)
    gusset("secret", "set", "a_token", input=b"a-value-of-some-length", **trusted)
    assert b"a_token" in gusset("secret", "list", **trusted).stdout


@pytest.mark.parametrize("content", [None, b"no certificate\n"])
def test_a_file_without_authorities_is_a_wrong_setting(
    gusset: Cli, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    done = gusset("login", "https://localhost:1", input=b"key", GUSSET_MANAGER_CA=str(file), status=2)
    assert str(file).encode() in done.stderr and b"GUSSET_MANAGER_CA" in done.stderr
