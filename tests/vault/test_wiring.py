"""Opening the vault, its keys and its watch: safe modes, refusals, rotation under way."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gusset.errors import IntegrityError, RootKeyError, VaultError, VaultTooNew
from gusset.portable import file_system_type
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.services.fast_list import list_secrets
from gusset.vault.services.key_rotation import KeyRotation
from gusset.vault.storage.revision import REVISION
from tests.serving.conftest import eventually
from tests.vault.conftest import settings_in


def put(vault: Vault, name: str, value: bytes) -> None:
    vault.secrets.writer.set(name, SecretValue(value), actor="alice")


def shown(vault: Vault, name: str) -> bytes:
    return vault.secrets.delivery.reveal(name, actor="alice").reveal()


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """Settings of a closed vault in which `x` is "kept"."""
    with open_vault(settings) as vault:
        put(vault, "x", b"kept")
    return settings


@pytest.mark.sqlite("files of the vault")
def test_only_the_owner_can_access_the_files(vault: Vault, home: Path) -> None:
    """The folder is 0700 and each file in it 0600, while the vault is in use."""
    put(vault, "x", b"v")
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert {"vault.db", "vault.db-wal", "root.key", "audit.witness"} <= modes.keys()
    assert set(modes.values()) == {0o600}
    assert home.stat().st_mode & 0o777 == 0o700


def test_without_a_vault_none_is_made_when_asked_not_to(settings: Settings) -> None:
    """Nothing appears on disk, and the error says how to make one."""
    with pytest.raises(VaultError, match="there is no vault"), open_vault(settings, create=False):
        pass
    assert not settings.home.exists()


def test_a_lost_root_key_is_never_replaced(filled: Settings) -> None:
    """The error names the path; no new key is made, and with the old one back all is there."""
    kept = filled.root_key_file.rename(filled.home / "kept")
    with pytest.raises(RootKeyError, match=r"root\.key"), open_vault(filled):
        pass
    assert not filled.root_key_file.exists()
    kept.rename(filled.root_key_file)
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"


def test_another_vaults_root_key_is_refused(filled: Settings, tmp_path: Path) -> None:
    """A wrong key is an error of its own and changes nothing."""
    other = settings_in(tmp_path / "other")
    with open_vault(other):
        pass
    shutil.copy(other.root_key_file, filled.root_key_file)
    with pytest.raises(RootKeyError, match="not the root key of this vault"), open_vault(filled):
        pass


@pytest.mark.parametrize("content", [b"", b"nonsense", b"gusset-root-key-1:AAAA", b"gusset-root-key-1:\xff"])
def test_a_damaged_root_key_is_refused(filled: Settings, content: bytes) -> None:
    """A malformed root key is refused by a message without a traceback."""
    filled.root_key_file.write_bytes(content)
    with pytest.raises(RootKeyError, match="is not a root key"), open_vault(filled):
        pass


def test_a_root_key_that_others_may_read_is_refused(filled: Settings) -> None:
    """As ssh does; the hint is the command that mends it."""
    filled.root_key_file.chmod(0o640)
    with pytest.raises(RootKeyError) as caught, open_vault(filled):
        pass
    assert "chmod 600" in str(caught.value.hint)


_FILE_ONLY = pytest.mark.sqlite("PostgreSQL's files are the server's business")
PATHS = [".", pytest.param("vault.db", marks=_FILE_ONLY), "root.key", "audit.witness"]

Opening = Callable[[Settings], object]


def opened(settings: Settings) -> None:
    with open_vault(settings):
        pass


@pytest.fixture(params=[opened, pytest.param(list_secrets, marks=_FILE_ONLY)], ids=["opened", "listed"])
def opening(request: pytest.FixtureRequest) -> Opening:
    """Each way to a vault."""
    way: Opening = request.param
    return way


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("name", PATHS)
def test_what_others_may_write_to_is_refused(
    filled: Settings, opening: Opening, name: str, mode: int
) -> None:
    """Folder, database, root key and witness; the error names the path and the command that mends it."""
    path = filled.home / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises((IntegrityError, RootKeyError), match=f"can (write to|access) {path} ") as caught:
        opening(filled)
    command = str(caught.value.hint)
    assert command in (f"chmod go-w {path}", f"chmod 600 {path}")
    subprocess.run(command, shell=True, check=True)
    opening(filled)


@pytest.mark.parametrize("name", PATHS)
def test_what_another_account_owns_is_refused(
    filled: Settings, opening: Opening, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder, database, root key and witness; the error names the path and how it is given back."""
    path = filled.home / name
    owned_by_another(path, monkeypatch)
    with pytest.raises((IntegrityError, RootKeyError), match="belongs to another account") as caught:
        opening(filled)
    assert str(filled.home) in str(caught.value)
    assert "chown " in str(caught.value.hint)


def owned_by_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root gives the file away; anybody else becomes another account, as far as gusset can see."""
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two accounts")
def test_an_account_may_use_what_root_owns(
    filled: Settings, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody trusts files of root; root trusts no other account's files."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    opening(filled)


def test_the_folder_of_a_database_elsewhere_is_checked_too(home: Path, tmp_path: Path) -> None:
    """A database that lies outside the data folder is no safer than the folder that it lies in."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o1777)
    settings = settings_in(home, database=f"sqlite:///{elsewhere / 'vault.db'}")
    with pytest.raises(IntegrityError, match=f"can write to {elsewhere} "):
        opened(settings)
    assert not list(elsewhere.iterdir())


@pytest.mark.sqlite("its lock is a file")
def test_the_lock_is_never_taken_through_a_link(settings: Settings, tmp_path: Path) -> None:
    """A link laid where the lock belongs makes no file elsewhere."""
    settings.home.mkdir(mode=0o700)
    (settings.home / "vault.db.lock").symlink_to(tmp_path / "target")
    with pytest.raises(IntegrityError, match="is a symbolic link"):
        opened(settings)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "kind", ["TRIGGER t AFTER UPDATE ON secrets BEGIN SELECT 1; END", "VIEW v AS SELECT 1"]
)
@pytest.mark.sqlite("test_postgres.py has what PostgreSQL knows")
def test_a_database_with_triggers_or_views_is_refused(
    filled: Settings, sql: Callable[..., list[Any]], kind: str
) -> None:
    """They could change what gusset reads or writes; gusset makes none."""
    sql(f"CREATE {kind}")
    with pytest.raises(IntegrityError, match="gusset never creates"), open_vault(filled):
        pass


@pytest.mark.sqlite("compares its file")
def test_a_newer_vault_is_refused_untouched(filled: Settings, sql: Callable[..., list[Any]]) -> None:
    """A vault of a later gusset is not opened, and not a byte of it changes."""
    sql("UPDATE alembic_version SET version_num = '9999'")
    sql("PRAGMA wal_checkpoint(TRUNCATE)")
    before = (filled.home / "vault.db").read_bytes()
    with pytest.raises(VaultTooNew), open_vault(filled):
        pass
    assert (filled.home / "vault.db").read_bytes() == before


def test_a_schema_that_claims_to_be_older_does_not_open(
    filled: Settings, sql: Callable[..., list[Any]]
) -> None:
    """What the migrations would make is there already; nothing is changed."""
    sql("UPDATE alembic_version SET version_num = '0002'")
    for _ in range(2):
        with pytest.raises(VaultError, match="the database refused the statement"), open_vault(filled):
            pass
    sql(f"UPDATE alembic_version SET version_num = '{REVISION}'")
    with open_vault(filled) as vault:
        assert vault.audit.verify().problems == ()


@pytest.mark.sqlite("damages its file")
def test_a_file_that_is_not_a_database_is_reported_as_damaged(filled: Settings) -> None:
    """Its bytes stay as they are for a look at them."""
    file = filled.home / "vault.db"
    file.write_bytes(b"not a database " * 500)
    with pytest.raises(IntegrityError, match="damaged"), open_vault(filled):
        pass
    assert file.read_bytes() == b"not a database " * 500


def test_rotating_keeps_every_value_and_reaches_other_openings(
    filled: Settings, sql: Callable[..., list[Any]]
) -> None:
    """After a rotation every version names the new KEK; who had the vault open reads and writes on."""
    with open_vault(filled) as other, open_vault(filled) as vault:
        put(vault, "y", b"more")
        rotated = vault.key_rotation.rotate(actor="alice")
        assert (rotated.newest, rotated.rewrapped) == ({"kek": 2}, 2)
        assert {row[0] for row in sql("SELECT hex(substr(sealed, 2, 4)) FROM secret_versions")} == {
            "00000002"
        }
        assert shown(other, "x") == b"kept"
        put(other, "z", b"new")
        assert shown(vault, "z") == b"new"
        assert vault.audit.verify().problems == ()


def test_a_rotation_that_stopped_half_way_is_finished_by_the_next(
    filled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions that an interrupted rotation left behind still open, and are taken along later."""
    with open_vault(filled) as vault:
        with monkeypatch.context() as interrupted:
            interrupted.setattr(KeyRotation, "_rewrap_all", lambda self, actor: 0)
            vault.key_rotation.rotate(actor="alice")
        assert shown(vault, "x") == b"kept"
        assert vault.key_rotation.rotate(actor="alice").rewrapped == 1
        assert shown(vault, "x") == b"kept"


@pytest.mark.sqlite("a file on one machine is replaced in one step")
def test_a_new_root_key_opens_and_the_old_one_does_not(filled: Settings) -> None:
    """Values stay; the former key file is of no use any more; an open vault goes on."""
    old = filled.root_key_file.read_bytes()
    with open_vault(filled) as vault:
        vault.root_key_rotation.rotate(actor="alice")
        assert shown(vault, "x") == b"kept"
    new = filled.root_key_file.read_bytes()
    filled.root_key_file.write_bytes(old)
    with pytest.raises(RootKeyError), open_vault(filled):
        pass
    filled.root_key_file.write_bytes(new)
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"


@pytest.mark.sqlite("a file on one machine is replaced in one step")
def test_rotations_at_the_same_time_leave_a_vault_that_opens(filled: Settings) -> None:
    """Root key and KEK rotated by several threads with openings of their own: nothing is locked out."""

    def rotate(number: int) -> None:
        with open_vault(filled) as vault:
            vault.root_key_rotation.rotate(actor="t") if number % 2 else vault.key_rotation.rotate(actor="t")

    threads = [threading.Thread(target=rotate, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"
        assert vault.audit.verify().problems == ()


def test_sql_errors_never_show_what_was_to_be_written(vault: Vault, sql: Callable[..., list[Any]]) -> None:
    """The error of a refused statement does not contain its parameters."""
    sql("DROP TABLE secret_versions")
    with pytest.raises(VaultError) as caught:
        put(vault, "x", b"the value itself")
    assert "the value itself" not in repr(caught.value) + str(caught.value.__cause__)


@pytest.fixture
def watching(vault: Vault) -> Iterator[Callable[[], bool]]:
    """Follows `x` as a deployment does; a call waits for the next wake-up, False when none came."""
    source, stop, woken = (
        vault.source(actor="serve", deployment="d"),
        threading.Event(),
        threading.Semaphore(0),
    )
    source.read(["x"])

    def follow() -> None:
        for _ in source.watch(["x"], stop):
            woken.release()

    thread = threading.Thread(target=follow)
    thread.start()
    yield lambda: woken.acquire(timeout=5)
    stop.set()
    thread.join()


def test_a_watch_wakes_for_each_kind_of_change(
    vault: Vault, watching: Callable[[], bool], settings: Settings
) -> None:
    """A new version written by another opening, a deletion, a restoration, a destruction."""
    with open_vault(settings) as other:
        put(other, "x", b"one")
        assert watching()
        writer = other.secrets.writer
        for act in (writer.delete, writer.restore, writer.destroy):
            act("x", actor="alice")
            assert watching()


@pytest.mark.sqlite("files of the vault")
def test_a_watch_goes_on_after_the_database_could_not_be_opened(
    filled: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk was away, for instance."""
    stop, woken, away = threading.Event(), threading.Event(), filled.home.with_name("away")

    def follow() -> None:
        for _ in source.watch(["x"], stop):
            woken.set()

    with open_vault(filled) as vault:
        source = vault.source(actor="serve", deployment="d")
        source.read(["x"])
        filled.home.rename(away)
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            eventually(lambda: "cannot watch the vault" in caplog.text)
            away.rename(filled.home)
            put(vault, "x", b"new")
            assert woken.wait(10)
        finally:
            stop.set()
            thread.join()


@pytest.mark.sqlite("files of the vault")
@pytest.mark.parametrize(("magic", "kind"), [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0xFE534D42, "SMB")])
def test_a_database_on_a_network_file_system_is_refused(
    filled: Settings, monkeypatch: pytest.MonkeyPatch, magic: int, kind: str
) -> None:
    """An existing vault and a new one; the error has the reason, and names PostgreSQL."""
    monkeypatch.setattr("gusset.vault.storage.sqlite.file_system_type", lambda _: magic)
    for settings in (filled, settings_in(filled.home / "new")):
        with pytest.raises(VaultError, match=kind) as raised, open_vault(settings):
            pass
        assert "PostgreSQL" in str(raised.value.hint)
    assert not (filled.home / "new").exists()


@pytest.mark.sqlite("files of the vault")
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has statfs's numbers")
def test_the_type_of_a_file_system_is_read(filled: Settings, tmp_path: Path) -> None:
    """The number of /proc is in the manual of statfs; a folder that is missing has none."""
    assert file_system_type(Path("/proc/self")) == 0x9FA0
    assert file_system_type(tmp_path / "missing") == 0
