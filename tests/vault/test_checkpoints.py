"""No record stays without a checkpoint while somebody signs the head each second."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.chain import CHECKPOINT_INTERVAL
from tests.serving.conftest import eventually
from tests.vault.conftest import Sql


def newest_witnessed(settings: Settings) -> int:
    return int(json.loads(settings.witness_file.read_bytes().splitlines()[-1])["seq"])


def newest(sql: Sql, table: str) -> int:
    [(seq,)] = sql(f"SELECT max(seq) FROM {table}")
    return int(seq)


def test_what_a_killed_process_left_is_signed_by_another(settings: Settings, sql: Sql) -> None:
    """It was killed between a commit and the checkpoint, which comes once a second."""
    command = [sys.executable, "-m", "tests.vault.writing", str(settings.home), settings.database, "x"]
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen([*command, "0", "1000"], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open_vault(settings) as vault:
        vault.sign_head()
        assert newest(sql, "checkpoints") == newest(sql, "audit") == newest_witnessed(settings) >= 4


def test_a_clock_that_is_set_back_delays_no_checkpoint_of_a_write(settings: Settings, sql: Sql) -> None:
    """Also by years: what is due is decided by a monotonic clock. For the timer's see the manager's tests."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with open_vault(settings, clock=lambda: now) as vault:
        for step in (timedelta(0), timedelta(days=900), timedelta(hours=1)):
            now -= step
            eventually(lambda: vault.seconds_since_signing() >= CHECKPOINT_INTERVAL)
            vault.secrets.writer.set("x", SecretValue(b"v"), actor="alice")
            assert newest(sql, "checkpoints") == newest(sql, "audit") == newest_witnessed(settings)
        assert vault.audit.verify().problems == ()


def test_a_signed_head_is_not_signed_again(vault: Vault, sql: Sql) -> None:
    """Signing each second costs no writes while nothing happens."""
    vault.sign_head()
    before = sql("SELECT count(*) FROM checkpoints")
    vault.sign_head()
    assert sql("SELECT count(*) FROM checkpoints") == before


def test_a_served_model_has_its_records_signed(settings: Settings, vault: Vault, sql: Sql) -> None:
    """Whoever watches the embedded vault signs what it and other processes have recorded."""
    vault.secrets.writer.set("x", SecretValue(b"v"), actor="alice")
    source, stop = vault.source(actor="serve", deployment="model"), threading.Event()
    source.read(["x"])
    watcher = threading.Thread(target=lambda: list(source.watch(["x"], stop)))
    watcher.start()
    try:
        for _ in range(2):
            with open_vault(settings) as other:
                other.secrets.delivery.deliver(["x"], actor="bob", deployment="other")
                deadline = time.monotonic() + 10
                while newest_witnessed(settings) < newest(sql, "audit") and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert newest_witnessed(settings) == newest(sql, "audit")
    finally:
        stop.set()
        watcher.join()


def test_witness_files_of_several_machines_verify_together(settings: Settings, tmp_path: Path) -> None:
    """Each process writes its own; all of them are given to one verification."""
    files = [tmp_path / f"witness{number}" for number in range(3)]
    for number in range(6):
        with open_vault(replace(settings, witness_file=files[number % 3])) as vault:
            vault.secrets.writer.set("x", SecretValue(b"%d" % number), actor="alice")
    with open_vault(settings) as vault:
        report = vault.audit.verify(*files)
    assert report.problems == ()
    assert report.checkpoints >= 12


def test_a_manager_reports_how_far_its_own_witness_file_goes(
    settings: Settings, vault: Vault, sql: Sql, tmp_path: Path
) -> None:
    """Not what others have signed: one whose file cannot be written shows among them."""
    behind = replace(settings, witness_file=tmp_path / "behind" / "audit.witness")
    vault.sign_head()
    vault.managers.report("well")
    with open_vault(behind) as other:
        behind.witness_file.parent.write_text("no folder")
        other.sign_head()
        other.managers.report("behind")
        reported = {each.host: each.checkpoint for each in vault.managers.alive()}
    assert reported == {"well": newest(sql, "checkpoints"), "behind": 0}


@pytest.mark.parametrize(
    "change",
    [
        "hash = x'00'",
        "signature = x'00'",
        "at = 'another time'",
        "signing_key = 2",
        "keyring = 2",
        "epoch = 2",
        pytest.param("hash = 'text'", marks=pytest.mark.sqlite("its columns hold any type")),
        pytest.param("signature = 'text'", marks=pytest.mark.sqlite("its columns hold any type")),
    ],
)
def test_an_altered_checkpoint_is_named(vault: Vault, sql: Sql, change: str) -> None:
    """Whatever of it was altered: the signature covers all of it."""
    sql(f"UPDATE checkpoints SET {change} WHERE seq = 1")
    assert vault.audit.verify().problems == (
        "the database: the checkpoint of record 1 is not signed by this vault",
    )


def test_an_inserted_checkpoint_is_named(vault: Vault, sql: Sql) -> None:
    """Its signature is that of another record."""
    vault.secrets.writer.set("x", SecretValue(b"value"), actor="alice")
    columns = "at, hash, signature, signing_key, keyring, epoch"
    sql("DELETE FROM checkpoints WHERE seq > 1")
    sql(f"INSERT INTO checkpoints (seq, {columns}) SELECT 2, {columns} FROM checkpoints WHERE seq = 1")
    assert (
        "the database: the checkpoint of record 2 is not signed by this vault"
        in vault.audit.verify().problems
    )
