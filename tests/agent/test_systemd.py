"""Notices to systemd."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from gusset.agent.systemd import notify


def test_a_notice_arrives_at_a_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        notify(str(tmp_path / "notify"), "READY=1")
        assert listening.recv(100) == b"READY=1"


def test_a_notice_arrives_at_an_abstract_address() -> None:
    name = f"gusset-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(10)
        notify(f"@{name}", "READY=1")
        assert listening.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "/no/such/socket"])
def test_without_a_socket_nothing_happens(address: str | None) -> None:
    notify(address, "READY=1")
