"""What only PostgreSQL has: sessions that are lost, servers that are silent, roles, poolers, notifications."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gusset.errors import (
    DatabaseUnreachable,
    GussetError,
    HostError,
    IntegrityError,
    InvalidValue,
    OutcomeUnknown,
    Unreachable,
    UsageError,
    VaultTooNew,
)
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, database_move, open_vault
from gusset.vault.audit.actor import Actor
from gusset.vault.audit.chain import CHECKPOINT_INTERVAL
from gusset.vault.storage import postgres, postgres_connect
from gusset.vault.storage.postgres import Postgres
from gusset.vault.storage.postgres_connect import ServerClock
from gusset.vault.storage.postgres_driver import WAIT_TIMEOUT, PostgresError
from gusset.vault.storage.postgres_roles import grants
from gusset.vault.storage.postgres_url import parse, refuse_password
from gusset.vault.storage.sql import Statement
from tests.conftest import seconds_since
from tests.faults.network import Network
from tests.ports import free_port
from tests.postgres_server import SETTINGS, PostgresServer, is_accepted
from tests.serving.conftest import eventually
from tests.vault.conftest import settings_in
from tests.vault.test_checkpoints import newest_witnessed

LIMIT = 5.0  # seconds within which every act ends, whatever the database does
RECOVERY = 10.0  # seconds after which all is well again


@pytest.fixture(scope="module")
def fragile_server() -> Iterator[PostgresServer]:
    """A server for tests that stop or break it. They leave it running."""
    with PostgresServer.running() as server:
        yield server


@pytest.fixture
def server(fragile_server: PostgresServer) -> PostgresServer:
    return fragile_server


@pytest.fixture
def settings(home: Path, server: PostgresServer) -> Iterator[Settings]:
    name = server.new_database()
    yield settings_in(home, database=server.url(name))
    server.drop(name)


@pytest.fixture
def database(settings: Settings) -> str:
    """The name of the vault's database."""
    return settings.database.rpartition("/")[2]


@pytest.fixture
def vault(settings: Settings) -> Iterator[Vault]:
    """An open vault in which `x` has the value "kept"."""
    with open_vault(settings) as opened:
        put(opened, b"kept")
        yield opened


def put(vault: Vault, value: bytes) -> int:
    return vault.secrets.writer.set("x", SecretValue(value), actor="alice").version


def shown(vault: Vault) -> bytes:
    return vault.secrets.delivery.reveal("x", actor="alice").reveal()


def read(vault: Vault) -> object:
    return vault.secrets.reader.get("x")


def failure(act: Callable[[], object]) -> GussetError:
    """The error of an act, which must come within the limit."""
    began = time.monotonic()
    with pytest.raises(GussetError) as caught:
        act()
    assert seconds_since(began) < LIMIT
    return caught.value


def works_again(vault: Vault) -> None:
    """Reads and writes work without help, soon."""
    deadline = time.monotonic() + RECOVERY
    while True:
        try:
            put(vault, b"after")
            assert shown(vault) == b"after"
        except Unreachable:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            assert vault.audit.verify().problems == ()
            return


# Outages


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_stopped_server_is_unreachable_until_it_is_back(
    vault: Vault, server: PostgresServer, how: signal.Signals
) -> None:
    """Stopped in order, at once, or crashed."""
    server.stop(how)
    try:
        assert type(failure(lambda: put(vault, b"lost"))) is DatabaseUnreachable
        assert type(failure(lambda: read(vault))) is DatabaseUnreachable
    finally:
        server.start()
    assert shown(vault) == b"kept"
    works_again(vault)


def test_a_restart_between_two_acts_is_not_noticed(vault: Vault, server: PostgresServer) -> None:
    """Connections that the server has ended are replaced before they are used."""
    read(vault)
    server.stop()
    server.start()
    read(vault)
    assert put(vault, b"next") == 2


@pytest.mark.slow
def test_a_silent_server_holds_up_nobody(vault: Vault, server: PostgresServer) -> None:
    """Callers at the same moment, and those after them: each fails in time, and later ones at once."""
    read(vault)
    with server.paused():
        threads = [
            threading.Thread(target=failure, args=(act,))
            for act in [lambda: read(vault), lambda: put(vault, b"lost")] * 8
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        assert seconds_since(began) < LIMIT + 1.6
        later = time.monotonic()
        failures = [failure(lambda: read(vault)) for _ in range(20)]
        assert {type(error) for error in failures} == {DatabaseUnreachable}
        assert seconds_since(later) < LIMIT  # one of them tried
    works_again(vault)


def test_a_read_only_database_is_reported_and_its_connections_are_dropped(
    vault: Vault, server: PostgresServer, database: str
) -> None:
    """As after a failover to a standby: reads go on, writes fail, and the next one asks anew."""
    server.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    terminate(server, database)
    error = failure(lambda: put(vault, b"lost"))
    assert (type(error), error.message) == (HostError, "the database is read-only")
    read(vault)
    server.run(f"ALTER DATABASE {database} RESET default_transaction_read_only")
    assert put(vault, b"next") == 2


def terminate(server: PostgresServer, database: str) -> None:
    """End all sessions of the vault."""
    server.run("SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE datname = %s", database)


def test_a_server_without_free_connections_is_reported(
    vault: Vault, server: PostgresServer, database: str
) -> None:
    """A vault that needs a new connection says why it has none."""
    terminate(server, database)
    with ExitStack() as others:
        with pytest.raises(psycopg.OperationalError):
            for _ in range(int(SETTINGS["max_connections"]) + 1):
                others.enter_context(server.admin())
        error = failure(lambda: put(vault, b"lost"))
        assert (type(error), error.message) == (DatabaseUnreachable, "the database has no free connection")
    works_again(vault)


@pytest.mark.parametrize("table", ["secrets", "audit"])
def test_tables_that_an_operator_locked_fail_acts_in_time(
    vault: Vault, server: PostgresServer, database: str, table: str
) -> None:
    """The server ends the wait, of whichever statement; nothing was written."""
    put(vault, b"first")
    with server.admin(database) as operator:
        operator.execute("BEGIN")
        operator.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        for act in (
            lambda: vault.secrets.writer.annotate("x", actor="a", note="lost"),
            lambda: put(vault, b"lost"),
        ):
            error = failure(act)
            assert (type(error), error.message) == (Unreachable, "another session keeps the vault locked")
        operator.execute("ROLLBACK")
    assert put(vault, b"next") == 3


def test_a_result_that_an_error_has_prevented_is_an_error_each_time_it_is_read(
    server: PostgresServer, database: str
) -> None:
    """Of the statement that failed, and of those after it. What came before it stays readable."""
    with closing(Postgres(server.url(database)).connect()) as driver:
        driver.begin("BEGIN")
        before = driver.execute("SELECT 1")
        failing, after = driver.execute("SELECT 1 / 0"), driver.execute("SELECT 2")
        for result in (failing, after, failing, failing, after):
            with pytest.raises(PostgresError):
                result.fetchone()
        assert before.fetchone() == (1,)


def test_a_full_disk_is_reported(vault: Vault, server: PostgresServer, database: str) -> None:
    """The server's error, which here a trigger raises, becomes gusset's; nothing was written."""
    body = "$$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$"
    server.run(f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS {body}", database=database)
    server.run(
        "CREATE TRIGGER full_disk BEFORE INSERT ON audit EXECUTE FUNCTION full_disk()", database=database
    )
    error = failure(lambda: put(vault, b"lost"))
    assert (type(error), error.message) == (HostError, "the disk of the database is full")
    server.run("DROP TRIGGER full_disk ON audit", database=database)
    assert put(vault, b"next") == 2


# Writes that fail, and those that nobody can know of


def test_a_session_that_is_ended_within_a_write_leaves_nothing(
    vault: Vault, server: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is certain that nothing was written, and the error says so."""
    announce = Postgres.announce

    def terminated(self: Postgres, driver: Any) -> None:  # the writes of the batch were executed
        announce(self, driver)
        terminate(server, database)

    monkeypatch.setattr(Postgres, "announce", terminated)
    assert type(failure(lambda: put(vault, b"lost"))) is DatabaseUnreachable
    monkeypatch.undo()
    assert put(vault, b"next") == 2


@contextmanager
def waiting_for_a_standby(server: PostgresServer) -> Iterator[None]:
    """Each COMMIT waits for a standby that does not exist."""
    server.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    _reload(server, "nobody")
    try:
        yield
    finally:
        server.run("ALTER SYSTEM RESET synchronous_standby_names")
        _reload(server, "")


def _reload(server: PostgresServer, standby: str) -> None:
    """Have the server read its configuration; returns when each commit follows it."""
    server.run("SELECT pg_reload_conf()")
    eventually(lambda: server.run("SHOW synchronous_standby_names") == [(standby,)])
    server.run("CHECKPOINT")  # by the process that switches waiting on and off, once it has read it, too


def test_a_commit_that_no_standby_confirms_is_of_unknown_outcome(
    vault: Vault, server: PostgresServer
) -> None:
    """The server gives up waiting and calls it committed, with a warning; a failover could lose it."""
    with waiting_for_a_standby(server):
        error = failure(lambda: put(vault, b"unknown"))
    assert (type(error), error.code) == (OutcomeUnknown, "outcome_unknown")
    assert shown(vault) == b"unknown"


def test_a_record_whose_commit_failed_or_is_unknown_is_witnessed_as_soon_as_any(
    vault: Vault, settings: Settings, server: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint counts once it is certainly committed: one that may not be delays no other."""
    eventually(lambda: vault.seconds_since_signing() >= CHECKPOINT_INTERVAL)
    with monkeypatch.context() as patch:
        patch.setattr(Postgres, "announce", lambda *_: terminate(server, database))
        assert type(failure(lambda: put(vault, b"lost"))) is DatabaseUnreachable
    assert vault.seconds_since_signing() >= CHECKPOINT_INTERVAL
    with waiting_for_a_standby(server):
        assert type(failure(lambda: put(vault, b"unknown"))) is OutcomeUnknown
    assert vault.seconds_since_signing() >= CHECKPOINT_INTERVAL
    vault.sign_head()
    [(newest,)] = server.run("SELECT max(seq) FROM audit", database=database)
    assert newest_witnessed(settings) == newest


def test_a_session_that_is_ended_within_a_commit_is_of_unknown_outcome(
    vault: Vault, server: PostgresServer, database: str
) -> None:
    """Here it was made, on this server; gusset cannot know."""

    def terminate_within_the_commit() -> None:
        eventually(lambda: server.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
        terminate(server, database)

    with waiting_for_a_standby(server):
        thread = threading.Thread(target=terminate_within_the_commit)
        thread.start()
        error = failure(lambda: put(vault, b"unknown"))
        thread.join()
    assert type(error) is OutcomeUnknown


def test_a_paused_writer_loses_its_turn_and_cannot_commit_late(settings: Settings, vault: Vault) -> None:
    """Others go on without it within the limit, and its own commit fails for certain."""
    postgres = Postgres(settings.database)
    with closing(postgres.connect()) as paused:
        postgres.begin_write(paused)
        paused.execute("DELETE FROM checkpoints").close()
        paused.collect()
        began = time.monotonic()
        assert put(vault, b"next") == 2
        assert seconds_since(began) < LIMIT
        with pytest.raises(PostgresError) as caught:
            paused.commit()
        assert not caught.value.outcome_unknown
    assert shown(vault) == b"next"


def test_a_text_that_cannot_be_stored_fails_alone(vault: Vault) -> None:
    """PostgreSQL has no NUL in texts."""
    with pytest.raises(InvalidValue):
        vault.secrets.writer.set("y", SecretValue(b"v"), note="a\0b", actor="alice")
    assert put(vault, b"next") == 2


def test_an_actor_with_an_address_is_stored_as_a_text(vault: Vault) -> None:
    """The class of a text makes no difference."""
    vault.secrets.writer.set("x", SecretValue(b"v"), actor=Actor("ada", "192.0.2.7"))
    assert vault.audit.show(target="x", limit=1)[0].actor == "ada"


# Connecting


def test_the_first_host_that_responds_is_used(
    vault: Vault, settings: Settings, server: PostgresServer
) -> None:
    """One refuses, one accepts and is silent; the one that works is the first from then on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:1,127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{server.port}"
        url = settings.database.replace(f"127.0.0.1:{server.port}", hosts)
        postgres = Postgres(url)
        began = time.monotonic()
        postgres.connect().close()
        assert seconds_since(began) < LIMIT
        began = time.monotonic()
        postgres.connect().close()
        assert seconds_since(began) < 1.0


def test_the_only_host_has_the_time_of_all_hosts(
    vault: Vault, settings: Settings, server: PostgresServer
) -> None:
    """A busy server may take longer than one of several would be given."""
    seconds = postgres_connect.HOST_TIMEOUT + 0.5
    with responding_late(server.port, seconds) as port:
        url = settings.database.replace(f"127.0.0.1:{server.port}", f"127.0.0.1:{port}")
        began = time.monotonic()
        Postgres(url).connect().close()
    assert time.monotonic() - began >= seconds


@contextmanager
def responding_late(port: int, seconds: float) -> Iterator[int]:
    """The port of a server that is the one at `port`, but for the time that a connection takes."""

    def forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        client, _ = listener.accept()
        time.sleep(seconds)
        with client, socket.create_connection(("127.0.0.1", port)) as upstream:
            back = threading.Thread(target=forward, args=(upstream, client))
            back.start()
            forward(client, upstream)
            back.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_database_that_cannot_hold_a_vault_is_refused(
    settings: Settings, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old server, and one that does not store UTF-8."""
    name = server.new_database()
    server.drop(name)
    server.run(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0")
    with pytest.raises(HostError, match="stores texts as SQL_ASCII"):
        Postgres(server.url(name)).connect()
    server.drop(name)
    monkeypatch.setattr(postgres_connect, "OLDEST_SERVER", 99)
    with pytest.raises(HostError, match="does not support"):
        Postgres(settings.database).connect()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://nobody.invalid/x", "does not respond"),
        ("postgresql://postgres@127.0.0.1:{port}/nothing", "database does not exist"),
        ("postgresql://unknown@127.0.0.1:{port}/postgres", "refuses gusset's role"),
    ],
)
def test_a_failed_connection_says_what_to_look_at(
    home: Path, server: PostgresServer, url: str, message: str
) -> None:
    """The address is only in the hint."""
    error = failure(lambda: opened(settings_in(home, database=url.format(port=server.port))))
    assert message in error.message
    assert str(server.port) not in error.message
    assert error.hint


def opened(settings: Settings) -> None:
    with open_vault(settings):
        pass


def test_a_database_with_a_stricter_default_works_as_any_other(
    settings: Settings, server: PostgresServer, database: str
) -> None:
    """The isolation is gusset's own choice, and so is that commits are durable."""
    server.run(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    server.run(f"ALTER DATABASE {database} SET synchronous_commit = off")
    with open_vault(settings) as one, open_vault(settings) as other:
        for number in range(4):
            put(one, b"%d" % number)
            assert put(other, b"%d" % number) == 2 * number + 2
        with one._parts.store.read() as connection:
            row = connection.one(Statement("SELECT current_setting('synchronous_commit') AS value"))
    assert row is not None
    assert row.value == "on"


def test_several_processes_may_create_the_vault_at_once(settings: Settings) -> None:
    """One creates it, the others wait and use it."""
    opened(settings_in(settings.home, database=settings.database, root_key_file=settings.root_key_file))
    problems: list[BaseException] = []

    def run() -> None:
        try:
            with open_vault(settings) as vault:
                put(vault, b"v")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    with open_vault(settings) as vault:
        assert len(vault.secrets.reader.history("x")) == 5
        assert vault.audit.verify().problems == ()


# Passwords

PASSWORD = "pa55word-that-must-not-show"


@pytest.fixture
def password_url(settings: Settings, server: PostgresServer) -> str:
    """The URL, without a password, for a role that needs one."""
    rules = server.data / "pg_hba.conf"
    line = "host all sealed 127.0.0.1/32 scram-sha-256\n"
    if not rules.read_text().startswith(line):
        rules.write_text(line + rules.read_text())
        server.run(f"CREATE ROLE sealed LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        server.run("SELECT pg_reload_conf()")
        eventually(lambda: not is_accepted(f"postgresql://sealed:wrong@127.0.0.1:{server.port}/postgres"))
    return settings.database.replace("postgres@", "sealed@")


def test_the_password_comes_from_a_file(
    password_url: str,
    home: Path,
    server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the one that the URL names, ~/.pgpass's replacement, or a service file."""
    file = tmp_path / "pass"
    file.write_text(f"127.0.0.1:{server.port}:*:sealed:{PASSWORD}\n")
    file.chmod(0o600)
    Postgres(f"{password_url}?passfile={file}").connect().close()
    monkeypatch.setenv("PGPASSFILE", str(file))
    Postgres(password_url).connect().close()
    monkeypatch.delenv("PGPASSFILE")
    service = tmp_path / "service"
    name = password_url.rpartition("/")[2]
    service.write_text(
        f"[vault]\nhost=127.0.0.1\nport={server.port}\nuser=sealed\npassword={PASSWORD}\ndbname={name}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    Postgres("postgresql:///?service=vault").connect().close()
    error = failure(lambda: opened(settings_in(home, database=password_url)))
    assert "refuses gusset's role" in error.message


def test_a_password_in_the_url_shows_nowhere(
    password_url: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in settings that are printed, nor in errors, nor in logs."""
    url = password_url.replace("sealed@", f"sealed:{PASSWORD}@")
    settings = settings_in(home, database=url)
    opened(settings)
    wrong = settings_in(home, database=url.replace(":" + PASSWORD, f":{PASSWORD}x"))
    error = failure(lambda: opened(wrong))
    nowhere = settings_in(home, database=url.replace("127.0.0.1", "127.0.0.2"))
    other = failure(lambda: opened(nowhere))
    shown = [repr(settings), repr(error), str(error.hint), repr(other), str(other.hint), caplog.text]
    shown += [repr(Postgres(url)), Postgres(url).name, repr(parse(url))]
    assert not [text for text in shown if PASSWORD in text]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:pw@host/db",
        "postgres://host/db?password=pw",
        "postgresql://host/db?%70assword=pw",
        "postgresql://host/db?sslpassword=pw",
    ],
)
def test_a_password_in_an_argument_is_refused(url: str) -> None:
    """Other accounts can see arguments. The message does not repeat it."""
    with pytest.raises(UsageError) as caught:
        refuse_password(url)
    assert "pw" not in caught.value.message
    refuse_password("postgresql://user@host/db?passfile=/pass")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:pw@[::1/db",
        "postgresql://host/db?nothing=1",
        "postgresql://host/db?target_session_attrs=standby",
        "postgresql://a,b,c/db?hostaddr=10.0.0.1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(url)
    assert "pw" not in caught.value.message


# What others have in the database


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("CREATE TRIGGER t AFTER UPDATE ON secrets EXECUTE FUNCTION f()", "trigger t"),
        ("CREATE VIEW v AS SELECT 1", "view v"),
        ("CREATE RULE r AS ON DELETE TO audit DO INSTEAD NOTHING", "rule r"),
        ("ALTER TABLE secrets ENABLE ROW LEVEL SECURITY", "row security of secrets"),
        ("ALTER TABLE secrets ADD CONSTRAINT c CHECK (name <> 'x')", "check c"),
        ("CREATE TABLE child () INHERITS (secrets)", "child table child"),
        ("CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION g()", "event trigger e"),
        ("ALTER TABLE users ALTER role TYPE shown", "type of users.role"),
        ("ALTER TABLE issuers ALTER allow_private TYPE numeric", "type of issuers.allow_private"),
        ("ALTER TABLE users ALTER name TYPE text COLLATE any_case", "type of users.name"),
        ("ALTER TABLE users ADD twice text GENERATED ALWAYS AS (name || name) STORED", "type of users.twice"),
        ("ALTER TABLE managers ALTER revision SET DEFAULT h('0')", "default of managers.revision"),
        ("ALTER TABLE managers ALTER revision SET DEFAULT '0'::shown", "default of managers.revision"),
        ("CREATE INDEX i ON users (h(role))", "index i"),
        ("CREATE INDEX i ON users (id) WHERE h(role) = ''", "index i"),
        ("CREATE INDEX i ON users (id COLLATE any_case)", "index i"),
        ("ALTER TABLE users ADD CONSTRAINT x EXCLUDE USING btree (name WITH =)", "exclusion x"),
        ("ALTER TABLE meta INHERIT elsewhere.parent", "parent table of meta"),
        ("CREATE OPERATOR = (leftarg = varchar, rightarg = varchar, function = same)", "operator ="),
        ("CREATE FUNCTION lower(varchar) RETURNS text LANGUAGE sql AS $$ SELECT '' $$", "function lower"),
        (
            "ALTER EXTENSION plpgsql ADD TABLE users; ALTER TABLE users ENABLE ROW LEVEL SECURITY",
            "row security of users",
        ),
    ],
)
def test_what_could_change_rows_unseen_is_refused(
    settings: Settings, server: PostgresServer, database: str, statement: str, found: str
) -> None:
    """gusset makes none of these."""
    opened(settings)
    for name, returned in (("f", "trigger"), ("g", "event_trigger")):
        body = "$$ BEGIN RETURN NULL; END $$" if returned == "trigger" else "$$ BEGIN END $$"
        server.run(
            f"CREATE FUNCTION {name}() RETURNS {returned} LANGUAGE plpgsql AS {body}", database=database
        )
    for each in (
        "CREATE FUNCTION h(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
        "CREATE FUNCTION same(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE DOMAIN shown AS text",
        'CREATE COLLATION any_case FROM "C"',
        "CREATE SCHEMA elsewhere",
        'CREATE TABLE elsewhere.parent (key text COLLATE "C" NOT NULL)',
        statement,
    ):
        server.run(each, database=database)
    with pytest.raises(IntegrityError, match=f"gusset never creates: {found}$"):
        opened(settings)


@pytest.mark.parametrize(
    "hide",
    [
        ["CREATE SCHEMA postgres"],  # named as the role: "$user" comes first in the search path
        ["CREATE SCHEMA empty", "ALTER DATABASE {database} SET search_path = empty, public"],
        ["CREATE SCHEMA empty", "ALTER ROLE postgres SET search_path = empty, pg_temp, public"],
        [
            "CREATE SCHEMA first",
            "CREATE FUNCTION first.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS "
            "$$ SELECT 'public, pg_temp' $$",
            "CREATE VIEW first.pg_class AS SELECT * FROM pg_catalog.pg_class WHERE relname <> 'secrets'",
            "ALTER ROLE postgres SET search_path = first, pg_catalog, public",
        ],
    ],
)
def test_another_schema_in_the_search_path_hides_nothing(
    settings: Settings, server: PostgresServer, database: str, hide: list[str]
) -> None:
    opened(settings)
    try:
        for statement in (*hide, "ALTER TABLE public.secrets ENABLE ROW LEVEL SECURITY"):
            server.run(statement.format(database=database), database=database)
        with pytest.raises(IntegrityError, match=r"gusset never creates: row security of secrets$"):
            opened(settings)
    finally:
        server.run("ALTER ROLE postgres RESET search_path")


def test_a_session_finds_tables_in_the_vaults_schema_only(
    settings: Settings, server: PostgresServer, database: str
) -> None:
    """Neither in one that comes first in the search path and was made later, nor among temporary tables."""
    with open_vault(settings) as vault:
        put(vault, b"kept")
        server.run("CREATE SCHEMA postgres", database=database)
        server.run("CREATE TABLE postgres.alembic_version (version_num text)", database=database)
        server.run("CREATE VIEW postgres.secrets AS SELECT 1 AS id", database=database)
        terminate(server, database)
        assert shown(vault) == b"kept"
        with vault._parts.store.read() as connection:
            path = connection.one(Statement("SELECT current_setting('search_path') AS value"))
            connection.run(Statement("CREATE TEMPORARY TABLE secrets (id text)"))
            count = connection.one(Statement("SELECT count(*) AS value FROM secrets"))
    assert path is not None and count is not None
    assert (path.value, count.value) == ("public, pg_temp", 1)


def test_a_vault_keeps_to_the_schema_that_its_url_names(
    settings: Settings, server: PostgresServer, database: str
) -> None:
    server.run('CREATE SCHEMA "Quoted ""name"""', database=database)
    url = f"{settings.database}?options=-csearch_path%3D%22Quoted%5C%20%22%22name%22%22%22"
    named = settings_in(settings.home, database=url)
    with open_vault(named) as vault:
        put(vault, b"kept")
    with open_vault(named) as vault:
        assert shown(vault) == b"kept"
    tables = server.run(
        "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'secrets'", database=database
    )
    assert tables == [('Quoted "name"',)]


def test_a_database_with_ordinary_extensions_and_tables_of_others_opens(
    settings: Settings, server: PostgresServer, database: str
) -> None:
    """Also with an index that an administrator added."""
    opened(settings)
    available = {row[0] for row in server.run("SELECT name FROM pg_available_extensions")}
    wanted = (
        "citext",
        "hstore",
        "pg_stat_statements",
        "pg_trgm",
        "btree_gin",
        "intarray",
        "pgcrypto",
        "vector",
    )
    for name in available.intersection(wanted):
        server.run(f"CREATE EXTENSION {name}", database=database)
    for statement in (
        "CREATE TYPE mood AS ENUM ('ok')",
        "CREATE TABLE theirs (id serial, name text, at timestamptz DEFAULT now(), mood mood)",
        "CREATE INDEX ON theirs (lower(name))",
        "CREATE INDEX by_actor ON audit (actor)",
        "CREATE FUNCTION now_as_text() RETURNS text LANGUAGE sql AS 'SELECT now()::text'",
    ):
        server.run(statement, database=database)
    opened(settings)


def test_a_newer_vault_is_refused(settings: Settings, server: PostgresServer, database: str) -> None:
    opened(settings)
    server.run("UPDATE alembic_version SET version_num = '9999'", database=database)
    with pytest.raises(VaultTooNew):
        opened(settings)


def test_no_file_of_the_server_holds_a_value(vault: Vault, server: PostgresServer) -> None:
    """Neither its tables, nor its write-ahead log, nor what it logs."""
    value = b"a value that must not be found 4711"
    put(vault, value)
    shown(vault)
    server.run("CHECKPOINT")
    files = [file for file in server.folder.rglob("*") if file.is_file()]
    assert len(files) > 100

    def holds_it(file: Path) -> bool:
        try:
            return value in file.read_bytes()
        except FileNotFoundError:  # the server has removed it meanwhile
            return False

    assert [file for file in files if holds_it(file)] == []


# Following changes


@pytest.fixture
def notifications(vault: Vault, settings: Settings) -> Iterator[Any]:
    with closing(Postgres(settings.database).change_signal()) as found:
        yield found


def test_a_commit_wakes_who_waits_for_changes(vault: Vault, notifications: Any) -> None:
    """At once, also where the commit was made before the wait."""
    before = notifications.counter()
    put(vault, b"next")
    began = time.monotonic()
    notifications.wait(5.0)
    assert seconds_since(began) < 1.0
    assert notifications.counter() > before


def test_a_wait_ends_by_itself_or_by_a_call(notifications: Any) -> None:
    began = time.monotonic()
    notifications.wait(0.2)
    assert time.monotonic() - began > 0.1
    assert seconds_since(began) < 1.0
    threading.Timer(0.2, notifications.wake).start()
    began = time.monotonic()
    notifications.wait(5.0)
    assert seconds_since(began) < 1.0


def test_a_lost_connection_ends_the_wait(
    vault: Vault, notifications: Any, server: PostgresServer, database: str
) -> None:
    """A new one sees by its counter what was not notified."""
    before = notifications.counter()
    terminate(server, database)
    with pytest.raises(Unreachable):
        notifications.wait(5.0)
    put(vault, b"unnoticed")
    with closing(Postgres(vault._parts.settings.database).change_signal()) as again:
        assert again.counter() > before


def test_a_source_whose_connection_died_without_a_sign_notices_a_change_within_a_second(
    settings: Settings, vault: Vault, server: PostgresServer
) -> None:
    """As it is with models that are served from the vault itself."""
    polls, stop, noticed = b"SELECT coalesce(max(seq), 0)", threading.Event(), threading.Event()
    with Network.running(server.port) as network:
        url = settings.database.replace(f":{server.port}/", f":{network.port}/")
        with open_vault(settings_in(settings.home, database=url)) as other:
            source = other.source(actor="serve", deployment="model")
            source.read(["x"])

            def watch() -> None:
                for _ in source.watch(["x"], stop):
                    noticed.set()

            thread = threading.Thread(target=watch)
            thread.start()
            try:
                eventually(lambda: network.count(polls) > 40, "the connection has lasted for a while")
                network.silence(b"LISTEN gusset")
                began = time.monotonic()
                put(vault, b"next")
                assert noticed.wait(30)
                assert seconds_since(began) < 1.0
            finally:
                stop.set()
                thread.join()


# The clock


def test_the_servers_clock_is_the_vaults(vault: Vault, server: PostgresServer, database: str) -> None:
    now = server.run("SELECT clock_timestamp()", database=database)[0][0]
    assert abs(datetime.fromisoformat(vault.now()) - now) < timedelta(seconds=0.5)


def test_a_time_that_came_late_replaces_none_that_came_at_once() -> None:
    """Where a process was paused meanwhile, the server's time is not that of the moment."""
    clock, now = ServerClock(), time.monotonic()
    clock.set(1_000_000_000_000_000, now)
    clock.set(2_000_000_000_000_000, now - 10)
    assert abs(clock.now().timestamp() - 1e9) < 1
    clock.set(3_000_000_000_000_000, time.monotonic())
    assert abs(clock.now().timestamp() - 3e9) < 1


# Poolers


@pytest.fixture
def pooled(request: pytest.FixtureRequest, settings: Settings, server: PostgresServer) -> Iterator[str]:
    """The URL of the database behind PgBouncer in the mode that the test's parameter names."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert program is not None
    port = free_port()
    users, config = server.folder / "users", server.folder / "pgbouncer.ini"
    users.write_text('"postgres" ""\n')
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nauth_type = any\nauth_file = {users}\npool_mode = {request.param}\n"
        f"unix_socket_dir =\nignore_startup_parameters = extra_float_digits\n"
    )
    process = subprocess.Popen([program, str(config)], **server._as_account(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield settings.database.replace(str(server.port), str(port))
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.system("pgbouncer")
@pytest.mark.parametrize("pooled", ["transaction", "statement"], indirect=True)
def test_a_transaction_pooler_is_refused(pooled: str) -> None:
    with pytest.raises(HostError, match="transaction pooler"):
        Postgres(pooled).connect()


@pytest.mark.system("pgbouncer")
@pytest.mark.parametrize("pooled", ["session"], indirect=True)
def test_a_session_pooler_is_accepted(pooled: str, settings: Settings) -> None:
    with open_vault(settings_in(settings.home, database=pooled)) as vault:
        put(vault, b"value")
        assert shown(vault) == b"value"


# Much to read


def through(network: Network, settings: Settings, server: PostgresServer) -> Settings:
    url = settings.database.replace(f":{server.port}/", f":{network.port}/")
    return settings_in(settings.home, database=url)


@pytest.mark.slow
def test_checkpoints_that_take_longer_to_read_than_a_statement_may_are_verified(
    settings: Settings, server: PostgresServer, database: str
) -> None:
    opened(settings)
    server.run(
        "INSERT INTO checkpoints (seq, at, hash, signature, signing_key, keyring)"
        " SELECT seq, 'then', convert_to(repeat('x', 1200), 'UTF8'), 'x', 1, 1"
        " FROM generate_series(1001, 21000) AS seq",
        database=database,
    )
    with Network.running(server.port) as network, open_vault(through(network, settings, server)) as vault:
        network.rate = 4e6
        began = time.monotonic()
        found = vault.audit.verify().problems
        assert time.monotonic() - began > WAIT_TIMEOUT
    unsigned = "the database: the checkpoint of record {} is not signed by this vault"
    assert found == tuple(unsigned.format(seq) for seq in range(1001, 21001))


def test_a_move_waits_for_a_target_that_takes_longer_than_a_reader_may(
    settings: Settings, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's transaction is idle while the copy of a table is read from the target."""
    monkeypatch.setattr(postgres, "SLOW_READER", 0.5)
    with open_vault(settings) as vault:
        for number in range(50):
            vault.secrets.writer.set(f"x{number}", SecretValue(os.urandom(60_000)), actor="alice")
    name = server.new_database()
    try:
        with Network.running(server.port) as network:
            verify = database_move._verify

            def verify_at_once(*arguments: Any) -> Any:  # what reads the vault afterwards is not patient
                network.rate = None
                found = verify(*arguments)
                network.rate = 2e6
                return found

            monkeypatch.setattr(database_move, "_verify", verify_at_once)
            target = f"postgresql://postgres@127.0.0.1:{network.port}/{name}"
            began = time.monotonic()
            assert database_move.move_vault(settings, settings.database, target).records == 51
            assert time.monotonic() - began > 2 * postgres.SLOW_READER
    finally:
        server.drop(name)


# Roles


def test_a_managers_role_cannot_change_or_remove_what_only_grows(
    settings: Settings, server: PostgresServer, database: str
) -> None:
    """Audit records, checkpoints, epochs. With its grants it does all that a manager does; another role
    owns the tables."""
    opened(settings)
    server.run(f"CREATE ROLE manager_of_{database} LOGIN")
    for statement in grants(f"manager_of_{database}"):
        server.run(statement, database=database)
    url = server.url(database, user=f"manager_of_{database}")
    with open_vault(settings_in(settings.home, database=url)) as vault:
        put(vault, b"one")
        vault.key_rotation.rotate(actor="alice")
        vault.check_writable()
        assert shown(vault) == b"one"
        vault.secrets.writer.destroy("x", actor="alice")
        vault.lost_records.accept(actor="alice")
        assert vault.audit.verify().problems == ()
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            "UPDATE audit SET actor = 'mallory'",
            "DELETE FROM audit",
            "TRUNCATE audit",
            "UPDATE checkpoints SET epoch = 2",
            "DELETE FROM checkpoints",
            "UPDATE epochs SET first_seq = 1",
            "DELETE FROM epochs",
            "DROP TABLE audit",
            "ALTER TABLE audit DISABLE TRIGGER ALL",
            "CREATE TABLE other (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_a_role_without_rights_is_told_so(settings: Settings, server: PostgresServer, database: str) -> None:
    opened(settings)
    server.run(f"CREATE ROLE powerless_of_{database} LOGIN")
    url = server.url(database, user=f"powerless_of_{database}")
    error = failure(lambda: opened(settings_in(settings.home, database=url)))
    assert (type(error), error.message) == (HostError, "gusset's role may not do this in the database")
