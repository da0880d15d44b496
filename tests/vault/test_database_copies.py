"""Backups by the databases' own tools, as docs/production.md describes them."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import open_vault
from tests.conftest import Cli
from tests.postgres_server import PostgresServer, binaries


def put(settings: Settings, name: str) -> None:
    with open_vault(settings) as vault:
        vault.secrets.writer.set(name, SecretValue(b"of " + name.encode()), actor="ada")


def copy(settings: Settings, server: PostgresServer, folder: Path) -> str:
    """The URL of a copy of the database."""
    if settings.database.startswith("sqlite"):
        made = folder / "copy.db"
        source = sqlite3.connect(settings.database.removeprefix("sqlite:///"))
        with closing(source), closing(sqlite3.connect(made)) as target:
            source.backup(target)  # what `.backup` of the command does
        made.chmod(0o600)
        return f"sqlite:///{made}"
    name, dump = server.new_database(template="template0"), folder / "vault.dump"
    commands = (
        [binaries() / "pg_dump", "--format=custom", f"--file={dump}", settings.database],
        [binaries() / "pg_restore", f"--dbname={server.url(name)}", dump],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    return server.url(name)


@pytest.mark.server
def test_a_copy_is_verified_and_an_older_one_is_recognised(
    settings: Settings, postgres_server: PostgresServer, gusset: Cli, tmp_path: Path
) -> None:
    """With the root key and the witness file, which were kept elsewhere."""
    put(settings, "a")
    url = copy(settings, postgres_server, tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o700)
    for file in (settings.root_key_file, settings.witness_file):
        shutil.copy(file, kept)
    environ = {"GUSSET_DATABASE": url, "GUSSET_ROOT_KEY_FILE": str(kept / "root.key")}
    verify = ["audit", "verify", "--checkpoint", str(kept / "audit.witness")]
    assert b"intact" in gusset(*verify, **environ).stdout
    put(settings, "later")
    shutil.copy(settings.witness_file, kept)
    older = gusset(*verify, status=10, **environ)
    assert f"{kept / 'audit.witness'}:" in older.stderr.decode(), older.stderr
    copied = replace(settings, database=url, home=kept, root_key_file=kept / "root.key")
    with open_vault(replace(copied, witness_file=kept / "new.witness"), create=False) as vault:
        assert vault.secrets.delivery.reveal("a", actor="ada").reveal() == b"of a"
