"""What a batch of writes costs a PostgreSQL server: one transaction, in two round trips, and at most one NOTIFY."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.storage.postgres import Postgres
from tests.faults.network import Network
from tests.postgres_server import PostgresServer
from tests.vault.conftest import settings_in
from tests.vault.test_batch import in_one_batch

VALUE = SecretValue(b"a value")
SYNC = b"S\0\0\0\4"  # the message after which a client waits for the server


@pytest.fixture
def network(postgres_server: PostgresServer) -> Iterator[Network]:
    with Network.running(postgres_server.port) as running:
        yield running


@pytest.fixture
def settings(
    home: Path, new_database: Callable[[], str], network: Network, postgres_server: PostgresServer
) -> Settings:
    """Settings of a vault behind the network. The server logs each statement, without its parameters."""
    url = new_database()
    name = url.rpartition("/")[2]
    for setting in ("log_statement = 'all'", "log_parameter_max_length = 0"):
        postgres_server.run(f"ALTER DATABASE {name} SET {setting}")
    return settings_in(home, database=url.replace(f":{postgres_server.port}/", f":{network.port}/"))


@pytest.fixture
def vault(settings: Settings) -> Iterator[Vault]:
    """An open vault that has "a", whose writer has its connection and knows its statements."""
    with open_vault(settings) as opened:
        for _ in range(2):
            opened.secrets.writer.set("a", VALUE, actor="alice")
        yield opened


def newest_transaction(server: PostgresServer) -> list[str]:
    """The statements of the newest transaction that wrote, in their order."""
    log = (server.folder / "log").read_text()
    statements = re.findall(r"LOG:  execute \S+: (.*)", log)
    begin = max(at for at, text in enumerate(statements) if text == "BEGIN ISOLATION LEVEL READ COMMITTED")
    return statements[begin : statements.index("COMMIT", begin) + 1]


def test_a_batch_is_one_transaction_in_two_round_trips(
    vault: Vault, network: Network, postgres_server: PostgresServer
) -> None:
    """The lock and the chain's head come first and once, NOTIFY last and once, however many writes there are."""
    write = vault.secrets.writer.set
    before = network.count(SYNC)
    write("a", VALUE, actor="alice")
    assert network.count(SYNC) - before == 2
    results = in_one_batch(vault, *[lambda n=n: write(f"new-{n}", VALUE, actor="alice") for n in range(5)])
    assert [result.version for result in results] == [1] * 5

    statements = newest_transaction(postgres_server)
    assert "pg_advisory_xact_lock" in statements[1]
    assert "max(seq) FROM audit" in statements[2]
    assert "pg_notify" in statements[-2]
    assert statements[-1] == "COMMIT"
    for part, times in (
        ("BEGIN", 1),
        ("pg_advisory_xact_lock", 1),
        ("max(seq) FROM audit", 1),
        ("INSERT INTO audit", 5),
        ("pg_notify", 1),
    ):
        assert sum(part in statement for statement in statements) == times, part


def test_writes_of_one_batch_share_its_round_trips(vault: Vault, network: Network) -> None:
    """Five writes at once cost what one costs."""
    write, counts = vault.secrets.writer.set, []
    for size in (1, 5):
        before = network.count(SYNC)
        in_one_batch(vault, *[lambda n=n: write(f"b-{n}", VALUE, actor="alice") for n in range(size)])
        counts.append(network.count(SYNC) - before)
    assert counts[0] == counts[1]


@pytest.fixture
def notified(
    settings: Settings, vault: Vault, postgres_server: PostgresServer
) -> Iterator[Callable[[], int]]:
    """How many notifications gusset has sent since the last call."""
    name = settings.database.rpartition("/")[2]
    with postgres_server.admin(name) as listener, postgres_server.admin(name) as other:
        listener.execute("LISTEN gusset")

        def count() -> int:
            other.execute("NOTIFY gusset, 'end'")
            return [each.payload for each in _until_end(listener)].count("")

        yield count


def _until_end(listener: psycopg.Connection[tuple[object, ...]]) -> Iterator[psycopg.Notify]:
    for found in listener.notifies(timeout=30):
        if found.payload == "end":
            return
        yield found
    raise AssertionError("the notification of the test did not come")


def test_nobody_is_notified_where_nobody_follows(
    settings: Settings, vault: Vault, notified: Callable[[], int]
) -> None:
    """Notifications are sent while a process follows changes, also one that has just begun."""
    write = vault.secrets.writer.set
    write("a", VALUE, actor="alice")
    assert notified() == 0
    for _ in range(2):
        with closing(Postgres(settings.database).change_signal()) as signal:
            before = signal.counter()
            write("a", VALUE, actor="alice")
            assert notified() == 1
            signal.wait()
            assert signal.counter() > before


def test_only_what_changes_secrets_is_notified(
    settings: Settings, vault: Vault, notified: Callable[[], int]
) -> None:
    """Deliveries are recorded, and there are many: they concern nobody who follows secrets."""
    with closing(Postgres(settings.database).change_signal()):
        vault.secrets.delivery.deliver(["a"], actor="alice", deployment="model")
        vault.deployments.register(vault.default_team_id, "model", ["a"], actor="alice")
        assert notified() == 0
        vault.secrets.writer.delete("a", actor="alice", force=True)
        assert notified() == 1
        vault.secrets.writer.restore("a", actor="alice")
        assert notified() == 1
        vault.lost_records.accept(actor="alice")
        assert notified() >= 1
