"""SQLite's file on a real network file system: FUSE hides it from statfs, so the mount's type is read."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Cli

SFTP_SERVER = "/usr/lib/openssh/sftp-server"


@contextmanager
def mounted(mount: Path, command: list[str]) -> Iterator[Path]:
    mount.mkdir()
    done = subprocess.run([*command, str(mount)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"FUSE cannot be used: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["fusermount3", "-u", str(mount)], check=True)


@pytest.mark.system("sshfs", SFTP_SERVER)
def test_a_vault_on_sshfs_is_refused(gusset: Cli, tmp_path: Path) -> None:
    """The error has the reason, and nothing is made there."""
    remote, ssh = tmp_path / "remote", tmp_path / "ssh"
    remote.mkdir()
    ssh.write_text(f"#!/bin/sh\nexec {SFTP_SERVER}\n")  # what runs at the other end of a real connection
    ssh.chmod(0o755)
    command = ["sshfs", "-o", f"ssh_command={ssh}", f"localhost:{remote}"]
    with mounted(tmp_path / "mount", command) as mount:
        gusset.environ["GUSSET_DATABASE"] = f"sqlite:///{mount}/vault.db"
        refused = gusset("secret", "set", "x", input=b"value", status=10)
    assert b"network file system (sshfs)" in refused.stderr
    assert b"PostgreSQL" in refused.stderr
    assert list(remote.iterdir()) == []


@pytest.mark.system("bindfs")
def test_a_vault_on_a_local_fuse_file_system_is_accepted(gusset: Cli, tmp_path: Path) -> None:
    """Such as NTFS, or a folder that is encrypted."""
    local = tmp_path / "local"
    local.mkdir(mode=0o700)
    with mounted(tmp_path / "mount", ["bindfs", "--no-allow-other", str(local)]) as mount:
        gusset.environ["GUSSET_DATABASE"] = f"sqlite:///{mount}/vault.db"
        gusset("secret", "set", "x", input=b"value")
        assert b"x" in gusset("secret", "list").stdout
