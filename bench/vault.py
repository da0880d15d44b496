"""Durable writes: `set` beside bare SQLite commits on the same disk: python bench/vault.py [rounds]"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

from measure import interleave, table

from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault

COUNT = 1000
THREADS = 32
VALUE = SecretValue(b"v" * 40)


def bare(path: Path) -> float:
    """Commits per second of one inserted row, with the vault's own durability."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)")
        began = time.perf_counter()
        for _ in range(COUNT):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t (v) VALUES (?)", (b"v" * 150,))
            connection.execute("COMMIT")
        return COUNT / (time.perf_counter() - began)


def sets(vault: Vault, threads: int) -> float:
    """Acknowledged `set` calls per second, from so many threads at once."""
    each = COUNT // threads

    def work(number: int) -> None:
        for _ in range(each):
            vault.secrets.writer.set(f"secret-{number}", VALUE, actor="bench")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return each * threads / (time.perf_counter() - began)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # /tmp may be in memory, where fsync is free
        home = Path(folder)
        settings = Settings(
            home=home,
            database=f"sqlite:///{home / 'vault.db'}",
            root_key_file=home / "root.key",
            witness_file=home / "audit.witness",
            cache=home / "cache",
        )
        with open_vault(settings) as vault:
            sets(vault, 1)
            parts = {
                "bare SQLite commit": lambda: bare(home / "bare.db"),
                "set, 1 writer": lambda: sets(vault, 1),
                f"set, {THREADS} threads": lambda: sets(vault, THREADS),
            }
            table("Durable writes", "per second", interleave(parts, rounds), "bare SQLite commit")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
