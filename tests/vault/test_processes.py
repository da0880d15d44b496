"""Several processes, killed processes, full disks: acknowledged writes stay, and none is half done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gusset.errors import Conflict, HostError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault

KILLS = 200


def writing(settings: Settings, name: str, start: int, count: int) -> subprocess.Popen[str]:
    places = [str(settings.home), settings.database]
    command = [sys.executable, "-m", "tests.vault.writing", *places, name, str(start), str(count)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent.parent
    )


def acknowledged(process: subprocess.Popen[str]) -> dict[int, int]:
    """Version -> number of each write that the process has seen acknowledged, when it has ended."""
    lines = process.communicate(timeout=120)[0].split("\n")[:-1]  # an unfinished line is no acknowledgement
    return {int(version): int(number) for number, version in (line.split() for line in lines)}


def forked_writer(settings: Settings, start: int, ready: int) -> int:
    """A forked child that writes until it is killed; cheaper than an interpreter for each of 200 kills."""
    child = os.fork()
    if child:
        return child
    try:
        with open_vault(settings) as vault:
            for number in range(start, start + 100_000):
                info = vault.secrets.writer.set("x", SecretValue(b"value %d" % number), actor="writer")
                os.write(ready, b"%d %d\n" % (number, info.version))
    finally:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the parent opens nothing meanwhile
def test_nothing_acknowledged_is_lost_by_200_kills(settings: Settings) -> None:
    """`kill -9` at random moments: every acknowledged version has its value, and the chain verifies.

    Every fourth child is killed while it opens the vault or soon after; the others
    after some acknowledged writes, in the middle of the next one.
    """
    known: dict[int, int] = {}
    moments = random.Random(4711)
    with open_vault(settings):
        pass
    for round_ in range(KILLS):
        reading, ready = os.pipe()
        child = forked_writer(settings, round_ * 100_000, ready)
        os.close(ready)
        with os.fdopen(reading, "rb") as pipe:
            wanted = moments.randint(1, 4) if round_ % 4 else 0
            lines = [pipe.readline() for _ in range(wanted)]
            time.sleep(moments.uniform(0, 0.002 if wanted else 0.03))  # the kill comes at any moment
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            lines += pipe.readlines()
            for line in lines:
                if line.endswith(b"\n"):  # an unfinished line is no acknowledgement
                    number, version = line.split()
                    assert int(version) not in known, "a version was given out twice"
                    known[int(version)] = int(number)
    assert len(known) > KILLS
    with open_vault(settings) as vault:
        check_whole(vault, known)


def check_whole(vault: Vault, known: dict[int, int]) -> None:
    """Each version opens, has its record, and holds the acknowledged value."""
    assert vault.audit.verify().problems == ()
    history = vault.secrets.reader.history("x")
    assert [found.version for found in history] == list(range(1, len(history) + 1))
    assert len(vault.audit.show(target="x", limit=1_000_000)) == len(history)
    assert known.keys() <= {found.version for found in history}
    for version, number in known.items():
        value = vault.secrets.delivery.reveal("x", version=version, actor="test").reveal()
        assert value == b"value %d" % number


@pytest.mark.slow
def test_several_processes_lose_no_version(settings: Settings) -> None:
    """Four processes at once, from the vault's first moment on, two of them on the same secret."""
    names = ["same", "same", "one", "two"]
    processes = [writing(settings, name, start * 1000, 30) for start, name in enumerate(names)]
    acks = [acknowledged(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    with open_vault(settings) as vault:
        assert [len(vault.secrets.reader.history(name)) for name in ("same", "one", "two")] == [60, 30, 30]
        for name, known in zip(names, acks, strict=True):
            for version, number in known.items():
                value = vault.secrets.delivery.reveal(name, version=version, actor="test").reveal()
                assert value == b"value %d" % number
        assert vault.audit.verify().problems == ()


def test_writes_of_threads_share_commits_and_fail_separately(vault: Vault) -> None:
    """Of 16 threads that all expect to be first, one wins; the others' own secrets are all written."""
    outcomes: list[str] = []

    def work(number: int) -> None:
        vault.secrets.writer.set(f"own-{number}", SecretValue(b"%d" % number), actor="t")
        try:
            vault.secrets.writer.set("first", SecretValue(b"%d" % number), actor="t", expect_version=0)
            outcomes.append("won")
        except Conflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 15 + ["won"]
    for number in range(16):
        assert vault.secrets.delivery.reveal(f"own-{number}", actor="t").reveal() == b"%d" % number
    assert vault.audit.verify().problems == ()


FULL_DISK = """
import resource, sys
from pathlib import Path
from gusset.errors import HostError
from gusset.secrets.value import SecretValue
from gusset.vault import open_vault
from tests.vault.conftest import settings_in
with open_vault(settings_in(Path(sys.argv[1]))) as vault:
    vault.secrets.writer.set("x", SecretValue(b"kept"), actor="t")
    limit = (Path(sys.argv[1]) / "vault.db-wal").stat().st_size + 20_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        vault.secrets.writer.set("x", SecretValue(b"s3cret" * 10_000), actor="t")
    except HostError as error:
        print(error.message, "s3cret" in str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(vault.secrets.delivery.reveal("x", actor="t").reveal(), vault.secrets.reader.get("x").version)
    print(vault.secrets.writer.set("x", SecretValue(b"after"), actor="t").version, vault.audit.verify().problems)
"""


@pytest.mark.sqlite("limits the size of its file")
def test_a_write_that_does_not_fit_on_the_disk_loses_nothing(settings: Settings) -> None:
    """A write that does not fit fails as HostError without the value; the vault goes on where it was."""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(settings.home)], capture_output=True, text=True, cwd=root
    )
    assert done.stderr == ""
    message, kept, after = done.stdout.splitlines()
    assert "disk" in message and message.endswith("False")
    assert (kept, after) == ("b'kept' 1", "2 ()")


@pytest.mark.sqlite("limits its number of pages")
def test_a_full_database_is_reported_as_a_full_disk(vault: Vault, sql: Callable[..., list[Any]]) -> None:
    """SQLite's error "full" is reported as a full disk, with nothing written."""
    vault.secrets.writer.set("x", SecretValue(b"kept"), actor="t")
    connection = vault._parts.writer._connection
    [(pages,)] = connection._driver.execute("PRAGMA page_count")
    connection._driver.execute(f"PRAGMA max_page_count={pages}").fetchall()
    with pytest.raises(HostError, match="disk is full: nothing was written"):
        vault.secrets.writer.set("x", SecretValue(bytes(60_000)), actor="t")
    assert vault.secrets.reader.get("x").version == 1
    assert vault.secrets.writer.set("x", SecretValue(bytes(60_000)), actor="t").version == 2
