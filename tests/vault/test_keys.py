"""Keys of the keyring and the root key: rotation under way and interrupted, sources, and what an attacker tries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gusset.errors import Conflict, HostError, IntegrityError, RootKeyError, UsageError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.actions import Action
from gusset.vault.audit.chain import ChainTail, Head
from gusset.vault.audit.events import RECORD_COLUMNS, AuditEvent
from gusset.vault.crypto import root_key_sources
from gusset.vault.crypto.keyring import AUDIT, KEK, KINDS, SIGNING, STATE, Keyring
from gusset.vault.crypto.root_key import parse_root_key
from tests.conftest import as_ordinary_process, leaks_in
from tests.vault.conftest import Sql, settings_in


def put(vault: Vault, name: str, value: bytes) -> None:
    vault.secrets.writer.set(name, SecretValue(value), actor="alice")


def shown(vault: Vault, name: str) -> bytes:
    return vault.secrets.delivery.reveal(name, actor="alice").reveal()


def keyring_of(vault: Vault) -> Keyring:
    return vault._parts.keys.current


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """Settings of a closed vault in which `x` is "kept"."""
    with open_vault(settings) as vault:
        put(vault, "x", b"kept")
    return settings


def in_other_process(settings: Settings, code: str) -> subprocess.CompletedProcess[bytes]:
    """Run code with the vault open as `vault`."""
    prelude = (
        "import os, signal\nfrom gusset.settings import Settings\nfrom gusset.vault import open_vault\n"
        "from gusset.secrets.value import SecretValue\n"
        "with open_vault(Settings.load(os.environ)) as vault:\n"
    )
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    own = {"GUSSET_HOME": str(settings.home), "GUSSET_DATABASE": settings.database}
    environ = os.environ | own | {"GUSSET_SETTINGS": "/nowhere"}
    return subprocess.run(
        [sys.executable, "-c", prelude + body], env=environ, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_another_process_has_rotated_is_used_at_the_next_write(
    filled: Settings, sql: Sql, kind: str
) -> None:
    """Nothing is sealed, signed or recorded with the old key, and nothing that the new one signed is refused."""
    with open_vault(filled) as vault:
        code = (
            f"vault.key_rotation.rotate(['{kind}'], actor='t')\n"
            "vault.secrets.writer.set('new', SecretValue(b'by the other'), actor='t')"
        )
        done = in_other_process(filled, code)
        assert done.returncode == 0, done.stderr.decode()
        assert shown(vault, "new") == b"by the other"
        put(vault, "y", b"later")
        assert keyring_of(vault).newest(kind) == 2
        assert vault.audit.verify().problems == ()
    numbers = {row[0] for row in sql("SELECT hex(substr(sealed, 2, 4)) FROM secret_versions")}
    assert numbers == {"00000002" if kind == KEK else "00000001"}


def test_rotations_by_several_processes_run_one_after_another(filled: Settings, sql: Sql) -> None:
    """Each adds a key of its own, and all versions end up under the newest."""
    code = "for _ in range(2): vault.key_rotation.rotate(['kek', 'state'], actor='t')"
    threads = [threading.Thread(target=in_other_process, args=(filled, code)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_vault(filled) as vault:
        assert (keyring_of(vault).newest(KEK), keyring_of(vault).newest(STATE)) == (7, 7)
        assert shown(vault, "x") == b"kept"
        assert vault.audit.verify().problems == ()
    assert sql("SELECT hex(substr(sealed, 2, 4)) FROM secret_versions") == [("00000007",)]


def test_verification_by_a_process_with_old_keys_raises_no_false_alarm(filled: Settings) -> None:
    """The keys are read anew: the other process has replaced all of them, and written since."""
    with open_vault(filled) as vault:
        code = (
            f"vault.key_rotation.rotate({list(KINDS)}, actor='t')\n"
            "vault.secrets.writer.set('x', SecretValue(b'new'), actor='t')"
        )
        assert in_other_process(filled, code).returncode == 0
        assert vault.audit.verify().problems == ()


def test_a_replaced_key_authenticates_its_own_range_of_records_only(filled: Settings) -> None:
    """Older records keep their MAC; a newer one needs the new key."""
    with open_vault(filled) as vault:
        before = keyring_of(vault)
        vault.key_rotation.rotate([AUDIT, STATE, SIGNING], actor="alice")
        after = keyring_of(vault)
        first = after.keys()[STATE, 2].first
        assert before.state_mac(b"row", first - 1) == after.state_mac(b"row", first - 1)
        assert before.state_mac(b"row", first) != after.state_mac(b"row", first)
        assert before.audit_mac(b"record", first) != after.audit_mac(b"record", first)
        assert (after.signing_key(first - 1), after.signing_key(first)) == (1, 2)


def test_rows_that_an_older_state_key_signed_stay_valid(filled: Settings) -> None:
    """They need not be signed again."""
    with open_vault(filled) as vault:
        for _ in range(3):
            vault.key_rotation.rotate([STATE], actor="alice")
        assert shown(vault, "x") == b"kept"
        assert vault.audit.verify().problems == ()
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"


def test_a_record_that_is_forged_with_a_replaced_audit_key_is_found(filled: Settings, sql: Sql) -> None:
    """Whoever has learned the old key cannot add records after its range."""
    with open_vault(filled) as vault:
        old = keyring_of(vault)
        vault.key_rotation.rotate([AUDIT], actor="alice")
    [(seq, found)] = sql("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
    tail = ChainTail(Head(seq, found), "2030-01-01T00:00:00.000Z", SimpleNamespace(current=old))  # type: ignore[arg-type]
    tail.add([AuditEvent("mallory", Action.SECRET_REVEAL, "x")])
    [row] = tail.rows
    sql(f"INSERT INTO audit ({', '.join(RECORD_COLUMNS)}) VALUES ({', '.join('?' for _ in row)})", *row)
    with open_vault(filled) as vault:
        assert f"record {seq + 1} was not written with this vault's keyring" in vault.audit.verify().problems


def keyring_rows(sql: Sql) -> list[Any]:
    return sql("SELECT kind, number, root_key_id, wrapped, created_at FROM keyring")


def restore(sql: Sql, rows: list[Any]) -> None:
    sql("DELETE FROM keyring")
    for row in rows:
        sql("INSERT INTO keyring VALUES (?, ?, ?, ?, ?)", *row)


def test_a_keyring_that_was_rolled_back_is_refused_by_who_has_the_vault_open(
    filled: Settings, sql: Sql
) -> None:
    """No value is sealed under a KEK that was replaced."""
    old = keyring_rows(sql)
    with open_vault(filled) as vault:
        vault.key_rotation.rotate(actor="alice")
        new = keyring_rows(sql)
        restore(sql, old)
        with pytest.raises(IntegrityError, match="rolled back to an older state: generation 1 instead of 2"):
            put(vault, "y", b"value")
        with pytest.raises(IntegrityError, match="rolled back"):
            vault.managers.report("host")
        restore(sql, new)
        put(vault, "y", b"value")


def test_a_keyring_that_was_rolled_back_is_refused_when_the_vault_is_opened(
    filled: Settings, sql: Sql
) -> None:
    """The newest checkpoint has its generation."""
    old = keyring_rows(sql)
    with open_vault(filled) as vault:
        vault.key_rotation.rotate(actor="alice")
    restore(sql, old)
    with pytest.raises(IntegrityError, match="rolled back to an older state"), open_vault(filled):
        pass


def test_a_keyring_that_was_rolled_back_with_its_checkpoints_is_named_by_verification(
    filled: Settings, sql: Sql
) -> None:
    """The audit record of the rotation has the generation."""
    old, checkpoints = keyring_rows(sql), sql("SELECT max(seq) FROM checkpoints")[0][0]
    with open_vault(filled) as vault:
        vault.key_rotation.rotate([SIGNING], actor="alice")
    restore(sql, old)
    sql("DELETE FROM checkpoints WHERE seq > ?", checkpoints)
    with open_vault(filled) as vault:
        problems = vault.audit.verify().problems
    assert "the keyring was rolled back: it is of generation 1, but the log has generation 2" in problems


def test_a_key_that_the_manifest_does_not_list_is_refused(filled: Settings, sql: Sql) -> None:
    """Even one that the root key wraps, from an older state of this keyring."""
    with open_vault(filled) as vault:
        vault.key_rotation.rotate(actor="alice")
    sql("UPDATE keyring SET number = 3 WHERE kind = 'kek' AND number = 2")
    with pytest.raises(IntegrityError, match="lacks KEK 2"), open_vault(filled):
        pass
    sql("INSERT INTO keyring SELECT kind, 2, root_key_id, wrapped, created_at FROM keyring WHERE number = 3")
    with pytest.raises(IntegrityError, match="its manifest does not list, KEK 3"), open_vault(filled):
        pass


ADDED_SINCE_0003 = (
    *("managers", "epochs", "password_attempts", "secret_overlaps", "identities", "issuers"),
    *("secret_rotations", "secret_credentials", "secret_schedules"),
)


def test_a_keyring_without_a_manifest_is_refused(filled: Settings, sql: Sql) -> None:
    """Also in a schema that pretends to be an older one."""
    sql("DELETE FROM keyring WHERE kind = 'manifest'")
    with pytest.raises(IntegrityError, match="has no manifest"), open_vault(filled):
        pass
    pretend_to_be_older(sql, "0003")
    with (
        pytest.raises(IntegrityError, match="rolled back to that of an older version of gusset"),
        open_vault(filled),
    ):
        pass


def pretend_to_be_older(sql: Sql, revision: str) -> None:
    """Have the schema of that revision, 0002 or 0003, in a database of this one."""
    sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    for table in ADDED_SINCE_0003:
        sql(f"DROP TABLE {table}")
    removed = {"replicas": ["delivered"], "checkpoints": ["epoch", "signing_key", "keyring"]}
    if revision == "0002":
        sql("DROP TABLE idempotency")
        for table in ("teams", "users", "members", "sessions", "deployments"):
            removed[table] = ["changed_seq", "mac"]
        removed["access_keys"] = ["changed_seq", "mac", "gives"]
        removed["secrets"] = ["changed_seq", "mac"]
        removed["secret_versions"] = ["changed_seq", "mac", "write_id"]
        removed["audit"] = ["changes"]
    for table, columns in removed.items():
        for column in columns:
            sql(f"ALTER TABLE {table} DROP COLUMN {column}")


@pytest.mark.parametrize(
    ("revision", "hide", "refused"),
    [
        ("0003", "UPDATE audit SET details = '{}'", "rolled back to that of an older version of gusset"),
        ("0002", "UPDATE audit SET details = '{}'", "record 1 was altered"),
        ("0002", "DELETE FROM audit WHERE seq = 1", "records 1 to 1 are missing"),
        ("0002", "DELETE FROM audit", "every record was removed"),
    ],
)
def test_a_vault_that_pretends_to_be_of_an_older_gusset_is_not_signed(
    filled: Settings, sql: Sql, revision: str, hide: str, refused: str
) -> None:
    """Else whoever writes the database would have their own rows signed: nothing is, and nothing is changed."""
    with open_vault(filled) as vault:
        vault.people.create_first("ada@example.com", SecretValue(b"correct horse"), actor="setup")
    sql("DELETE FROM keyring WHERE kind IN ('manifest', 'state', 'idempotency')")
    pretend_to_be_older(sql, revision)
    sql(hide)
    sql("UPDATE users SET email = 'eve@example.com'")
    for _ in range(2):
        with pytest.raises(IntegrityError, match=refused), open_vault(filled):
            pass


KILLS = {
    "new key written": "root_key_rotation.write_pending",
    "new key added": "root_key_rotation.RootKeyRotation._add",
    "new key in place": "root_key_sources.FileSource.install_pending",
}


def kill_after(settings: Settings, function: str) -> None:
    """Begin to replace the root key in a process that is killed when `function` has returned."""
    module, _, path = function.partition(".")
    package = "crypto" if module == "root_key_sources" else "services"
    owner, _, name = f"module.{path}".rpartition(".")
    code = f"""
import gusset.vault.{package}.{module} as module
original = {owner}.{name}
def killed(*args, **kwargs):
    original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
{owner}.{name} = killed
vault.root_key_rotation.rotate(actor='t')
"""
    assert in_other_process(settings, code).returncode == -9


@pytest.mark.sqlite("a file on one machine is replaced in one step")
@pytest.mark.parametrize("kind", ["root key", "KEK"])
@pytest.mark.parametrize("step", KILLS)
def test_a_killed_rotation_of_the_root_key_is_reported_and_finished_by_the_next(
    filled: Settings, step: str, kind: str, sql: Sql
) -> None:
    """At each step the vault opens; then only one root key is left, and the old one is of no use."""
    old = filled.root_key_file.read_bytes()
    kill_after(filled, KILLS[step])
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"
        unfinished = vault.root_key_rotation.unfinished
        assert (unfinished is None) == (step == "new key written")
        if unfinished:
            assert "still opens the vault" in unfinished and "gusset key rotate --root" in unfinished
        if kind == "KEK":
            vault.key_rotation.rotate(actor="alice")
        else:
            vault.root_key_rotation.rotate(actor="alice")
        assert vault.root_key_rotation.unfinished is None
        assert vault.audit.verify().problems == ()
    assert len({row[0] for row in sql("SELECT root_key_id FROM keyring")}) == 1
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"
    if unfinished or kind == "root key":
        filled.root_key_file.write_bytes(old)
        with pytest.raises(RootKeyError, match="not the root key of this vault"), open_vault(filled):
            pass


@pytest.mark.sqlite("a file on one machine is replaced in one step")
def test_a_new_root_key_that_was_lost_is_dropped(filled: Settings) -> None:
    """The old one stays until another has replaced it."""
    kill_after(filled, KILLS["new key added"])
    pending = filled.root_key_file.with_name("root.key.new")
    lost = pending.read_bytes()
    pending.unlink()
    with open_vault(filled) as vault:
        assert not vault.root_key_rotation.rotate(actor="alice").was_interrupted
        assert vault.root_key_rotation.unfinished is None
    new = filled.root_key_file.read_bytes()
    filled.root_key_file.write_bytes(lost)
    with pytest.raises(RootKeyError), open_vault(filled):
        pass
    filled.root_key_file.write_bytes(new)
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"


@pytest.mark.sqlite("a file on one machine is replaced in one step")
def test_a_linked_root_key_is_replaced_where_the_link_leads(filled: Settings, tmp_path: Path) -> None:
    """The link stays: whoever made it keeps the key there."""
    elsewhere = tmp_path / "elsewhere" / "the.key"
    elsewhere.parent.mkdir(mode=0o700)
    shutil.move(filled.root_key_file, elsewhere)
    filled.root_key_file.symlink_to(elsewhere)
    old = elsewhere.read_bytes()
    with open_vault(filled) as vault:
        vault.root_key_rotation.rotate(actor="alice")
    assert filled.root_key_file.is_symlink() and elsewhere.read_bytes() != old
    assert [path.name for path in elsewhere.parent.iterdir()] == ["the.key"]
    with open_vault(filled) as vault:
        assert shown(vault, "x") == b"kept"


def test_a_root_key_that_cannot_be_written_is_not_replaced(
    filled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has what to do, the audit record is of a failure, and the old root key stays."""
    old = filled.root_key_file.read_bytes()

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(root_key_sources, "write_private_file", refuse)
    with open_vault(filled) as vault:
        with pytest.raises(HostError, match="cannot be written: Permission denied") as caught:
            vault.root_key_rotation.rotate(actor="alice")
        assert "writable" in str(caught.value.hint)
        [record] = vault.audit.show(action="key.rotate_root")
        assert record.outcome == "host" and vault.audit.show(action="key.add_root") == []
    assert filled.root_key_file.read_bytes() == old


@pytest.fixture
def kept(filled: Settings, tmp_path: Path) -> tuple[Settings, Path]:
    """Settings with a command that prints the root key, and the file that it prints."""
    file = tmp_path / "kept elsewhere.key"
    shutil.move(filled.root_key_file, file)
    return replace(
        filled, root_key_command=f"cat '{file}'", command_environ=(("PATH", os.environ["PATH"]),)
    ), file


def test_a_command_prints_the_root_key(kept: tuple[Settings, Path]) -> None:
    """Its words are split as by a shell, but `$` and pipes mean nothing; it gets only a few variables."""
    settings, file = kept
    with open_vault(settings) as vault:
        assert shown(vault, "x") == b"kept"
    command = f"""{sys.executable} -c 'import os, sys
assert set(os.environ) <= {{"PATH", "LC_CTYPE"}}, os.environ
assert sys.argv[1:] == ["$(id)", "|", "*"] and not sys.stdin.read()
print(open("{file}").read())' '$(id)' '|' '*'"""
    with open_vault(replace(settings, root_key_command=command)) as vault:
        assert shown(vault, "x") == b"kept"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/no/such/program", "cannot be run: No such file"),
        ("false", "failed with status 1"),
        ("sh -c 'kill -40 $$'", "was ended by signal 40"),
        ("true", "printed nothing"),
        ("echo nonsense", "is not a root key"),
        ("sleep 60", "did not end within 0.3 s"),
    ],
)
def test_a_command_that_fails_is_named(
    kept: tuple[Settings, Path], command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words, with its program."""
    monkeypatch.setattr(root_key_sources, "COMMAND_TIMEOUT", 0.3)
    with pytest.raises(RootKeyError, match=message), open_vault(replace(kept[0], root_key_command=command)):
        pass


def test_the_error_of_a_command_does_not_repeat_the_key(kept: tuple[Settings, Path]) -> None:
    """Standard error is shown, but for what looks like a key; standard output never."""
    settings, file = kept
    key = file.read_bytes().strip()
    command = f'sh -c \'cat "{file}"; echo no session with the HSM: >&2; cat "{file}" >&2; exit 3\''
    with pytest.raises(RootKeyError) as caught, open_vault(replace(settings, root_key_command=command)):
        pass
    text = f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert "no session with the HSM" in text and key.partition(b":")[2].decode() not in text


@pytest.mark.parametrize("command", ["'unbalanced", "  "])
def test_a_command_that_is_none_is_refused(settings: Settings, command: str) -> None:
    """Before anything is created."""
    with (
        pytest.raises(UsageError, match="root_key_command"),
        open_vault(replace(settings, root_key_command=command)),
    ):
        pass
    assert not settings.home.exists()


def test_a_root_key_that_gusset_cannot_replace_is_replaced_in_two_steps(kept: tuple[Settings, Path]) -> None:
    """The old one is dropped only when this machine and every manager that is alive use the new one."""
    settings, file = kept
    with open_vault(settings) as manager, open_vault(settings) as vault:
        manager.managers.report("far.example.com")
        pending = vault.root_key_rotation.rotate(actor="alice").pending_file
        assert pending is not None and pending.stat().st_mode & 0o777 == 0o600
        assert "rotate --root --finish" in str(vault.root_key_rotation.unfinished)
        with pytest.raises(Conflict, match="is being replaced"):
            vault.key_rotation.rotate(actor="alice")
        with pytest.raises(Conflict, match="is still the old root key"):
            vault.root_key_rotation.finish(actor="alice")
        shutil.copy(pending, file)
        with pytest.raises(Conflict, match=r"use another root key: far\.example\.com"):
            vault.root_key_rotation.finish(actor="alice")
        put(manager, "y", b"meanwhile")
        manager.managers.report("far.example.com")
        assert [each.root_key_id for each in vault.managers.alive()] == [keyring_of(vault).root_keys[1]]
        vault.root_key_rotation.finish(actor="alice")
        put(manager, "z", b"afterwards")
        assert vault.root_key_rotation.unfinished is None
        with pytest.raises(Conflict, match="no replacement"):
            vault.root_key_rotation.finish(actor="alice")
    with open_vault(settings) as vault:
        assert shown(vault, "z") == b"afterwards"
        assert vault.audit.verify().problems == ()


def test_a_root_key_that_several_machines_share_is_replaced_in_two_steps(
    home: Path, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    """Each has a file of its own. `finish` puts the new one in place on the machine where it is run."""
    here = settings_in(home, database=new_database())
    with open_vault(here) as vault:
        put(vault, "x", b"kept")
    there = settings_in(tmp_path / "there", database=here.database)
    there.home.mkdir(mode=0o700)
    shutil.copy(here.root_key_file, there.root_key_file)
    with open_vault(there) as manager, open_vault(here) as vault:
        manager.managers.report("there")
        pending = vault.root_key_rotation.rotate(actor="alice").pending_file
        assert pending == home / "root.key.new"
        with pytest.raises(Conflict, match="use another root key: there"):
            vault.root_key_rotation.finish(actor="alice")
        assert not pending.exists()
        shutil.copy(here.root_key_file, there.root_key_file)
        manager.managers.report("there")
        vault.root_key_rotation.finish(actor="alice")
        put(manager, "y", b"later")
        assert manager.audit.verify().problems == ()
    for settings in (here, there):
        with open_vault(settings) as vault:
            assert shown(vault, "y") == b"later"


def test_a_new_root_key_that_nobody_has_is_dropped_by_cancelling(kept: tuple[Settings, Path]) -> None:
    """Then it opens nothing. Nothing is cancelled where it is in use."""
    settings, file = kept
    old = file.read_bytes()
    with open_vault(settings) as vault:
        pending = vault.root_key_rotation.rotate(actor="alice").pending_file
        shutil.copy(str(pending), file)
        with pytest.raises(Conflict, match="is the new root key"):
            vault.root_key_rotation.cancel(actor="alice")
        file.write_bytes(old)
        vault.root_key_rotation.cancel(actor="alice")
        assert vault.root_key_rotation.unfinished is None
        outcomes = [record.outcome for record in vault.audit.show(action="key.rotate_root")]
        assert outcomes == ["conflict", "ok"]
    shutil.copy(str(pending), file)
    with pytest.raises(RootKeyError), open_vault(settings):
        pass
    file.write_bytes(old)
    with open_vault(settings) as vault:
        assert shown(vault, "x") == b"kept"
        assert vault.audit.verify().problems == ()


def test_a_manager_that_has_left_holds_up_nothing(kept: tuple[Settings, Path]) -> None:
    """It has removed its report."""
    settings, file = kept
    with open_vault(settings) as manager, open_vault(settings) as vault:
        manager.managers.report("far.example.com")
        pending = vault.root_key_rotation.rotate(actor="alice").pending_file
        shutil.copy(str(pending), file)
        manager.managers.leave()
        vault.root_key_rotation.finish(actor="alice")


def test_a_systemd_credential_is_the_root_key(filled: Settings, tmp_path: Path) -> None:
    """Only where no setting names a file or a command; an ACL of systemd's shows as the group's right to read."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    shutil.move(filled.root_key_file, folder / "gusset-root-key")
    (folder / "gusset-root-key").chmod(0o440)
    environ = {
        "GUSSET_HOME": str(filled.home),
        "GUSSET_DATABASE": filled.database,
        "GUSSET_SETTINGS": str(tmp_path / "none"),
        "CREDENTIALS_DIRECTORY": str(folder),
    }
    with open_vault(Settings.load(environ)) as vault:
        assert shown(vault, "x") == b"kept"
    named = Settings.load(environ | {"GUSSET_ROOT_KEY_FILE": str(tmp_path / "other.key")})
    with pytest.raises(RootKeyError, match=r"no root key at .*other\.key"), open_vault(named):
        pass
    (folder / "gusset-root-key").chmod(0o444)
    with pytest.raises(RootKeyError, match="other accounts can access"), open_vault(Settings.load(environ)):
        pass


def test_two_sources_of_the_root_key_are_refused(tmp_path: Path) -> None:
    """The error names both."""
    environ = {"GUSSET_SETTINGS": str(tmp_path / "settings.toml"), "GUSSET_ROOT_KEY_COMMAND": "cat x"}
    (tmp_path / "settings.toml").write_text('root_key_file = "/x"\n')
    with pytest.raises(UsageError, match="root_key_file and root_key_command"):
        Settings.load(environ)
    named = Settings.load(environ | {"GUSSET_ROOT_KEY_COMMAND": ""})
    with pytest.raises(UsageError, match="root_key_file and root_key_command"):
        named.with_root_key_command("cat y")


PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def protected(filled: Settings) -> Iterator[Settings]:
    """Settings of a vault whose root key a passphrase protects."""
    with open_vault(filled) as vault:
        vault.root_key_rotation.protect(SecretValue(PASSPHRASE))
    yield filled


@pytest.mark.slow
@pytest.mark.sqlite("a file on one machine is replaced in one step")
def test_a_passphrase_protects_the_root_key(protected: Settings) -> None:
    """The right one opens it, a wrong one or none does not, and the key is not in the file."""
    with pytest.raises(RootKeyError, match="a passphrase protects"), open_vault(protected):
        pass
    for wrong in (b"", b"wrong", PASSPHRASE + b"\n"):
        with (
            pytest.raises(RootKeyError, match="passphrase does not open"),
            open_vault(protected, ask_passphrase=lambda _, wrong=wrong: SecretValue(wrong)),  # type: ignore[misc]
        ):
            pass
    with open_vault(protected, ask_passphrase=lambda _: SecretValue(PASSPHRASE)) as vault:
        assert shown(vault, "x") == b"kept"
        root = vault._parts.keys.source.read()
        assert not leaks_in(protected.root_key_file.read_bytes(), root.key)
        vault.root_key_rotation.rotate(actor="alice")
        vault.root_key_rotation.protect(None)
    with open_vault(protected) as vault:
        assert shown(vault, "x") == b"kept"


def test_a_passphrase_comes_from_a_file_too(protected: Settings, tmp_path: Path) -> None:
    """Which others may not read; a new vault's root key is then protected from the beginning."""
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE + b"\n")
    file.chmod(0o600)
    with open_vault(replace(protected, root_key_passphrase_file=file)) as vault:
        assert shown(vault, "x") == b"kept"
    new = Settings.load({"GUSSET_HOME": str(tmp_path / "new"), "GUSSET_SETTINGS": str(tmp_path / "none")})
    with open_vault(replace(new, root_key_passphrase_file=file)) as vault:
        put(vault, "y", b"value")
    with pytest.raises(RootKeyError, match="a passphrase protects"), open_vault(new):
        pass
    file.chmod(0o644)
    with (
        pytest.raises(RootKeyError, match="can access"),
        open_vault(replace(protected, root_key_passphrase_file=file)),
    ):
        pass


@pytest.mark.parametrize("cost", ["0,65536,4", "3,99999999999,4", "3,65536", "x,y,z", "3,1,4"])
def test_a_damaged_protected_root_key_is_refused(protected: Settings, cost: str) -> None:
    """It takes neither all memory nor an end with a traceback."""
    data = protected.root_key_file.read_text().replace("3,65536,4", cost)
    protected.root_key_file.write_text(data)
    with (
        pytest.raises(RootKeyError),
        open_vault(protected, ask_passphrase=lambda _: SecretValue(PASSPHRASE)),
    ):
        pass


def test_a_request_is_recognised_after_a_rotation_of_the_idempotency_key(vault: Vault) -> None:
    """By the key that it was recorded with."""
    stored = keyring_of(vault).request_macs(b"POST /v1/secrets")[0]
    vault.key_rotation.rotate(["idempotency"], actor="alice")
    macs = keyring_of(vault).request_macs(b"POST /v1/secrets")
    assert stored in macs and stored != macs[0]


@pytest.mark.sqlite("a file on one machine is replaced in one step")
def test_no_key_is_in_the_files_of_the_vault(
    filled: Settings, leaking_files: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """After rotations of all of them, and with the root key in its own file only."""
    with open_vault(filled) as vault:
        vault.key_rotation.rotate(list(KINDS), actor="alice")
        vault.root_key_rotation.rotate(actor="alice")
        keys = [key.secret for key in keyring_of(vault).keys().values()]
        for key in keys:
            assert leaking_files([filled.home], key) == []
        root = parse_root_key(filled.root_key_file.read_bytes(), "root.key")
        assert leaking_files([filled.home], root.key) == [filled.root_key_file]
        assert not leaks_in(
            repr([keyring_of(vault), root, keyring_of(vault).keys()]).encode(), root.key, *keys
        )


@pytest.mark.sqlite("a file on one machine is replaced in one step")
@pytest.mark.skipif(not shutil.which("setpriv") and os.getuid() == 0, reason="root writes everywhere")
def test_a_key_folder_that_is_read_only_is_an_error_in_words(filled: Settings, tmp_path: Path) -> None:
    """By the command itself; nothing is replaced."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    shutil.move(filled.root_key_file, folder / "root.key")
    folder.chmod(0o500)
    environ = os.environ | {
        "GUSSET_HOME": str(filled.home),
        "GUSSET_SETTINGS": "/nowhere",
        "GUSSET_ROOT_KEY_FILE": str(folder / "root.key"),
    }
    command = [*as_ordinary_process(), sys.executable, "-m", "gusset", "key", "rotate", "--root"]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60)
    folder.chmod(0o700)
    assert done.returncode == 11, done.stderr.decode()
    assert b"cannot be written" in done.stderr and b"Traceback" not in done.stderr
    with open_vault(replace(filled, root_key_file=folder / "root.key")) as vault:
        assert shown(vault, "x") == b"kept"
        assert [record.outcome for record in vault.audit.show(action="key.rotate_root")] == ["host"]


FORGED_MANIFEST = (
    "INSERT INTO keyring (kind, number, root_key_id, wrapped, created_at) "
    "VALUES ('manifest', ?, 'x', x'00', 'x')"
)


@pytest.mark.parametrize(
    "number",
    [
        "newer",
        "older",
        pytest.param("a text", marks=pytest.mark.sqlite),
    ],  # PostgreSQL's columns have one type
)
@pytest.mark.parametrize("act", ["write", "report"])
@pytest.mark.slow
def test_a_forged_manifest_is_refused_only_as_long_as_it_is_there(
    filled: Settings, sql: Sql, number: str, act: str
) -> None:
    """A manager that remembered its number would refuse the keyring that is left when it is removed again."""
    with open_vault(filled) as vault:
        acts: dict[str, Callable[[], object]] = {
            "write": lambda: vault.secrets.writer.set("y", SecretValue(b"v"), actor="alice"),
            "report": lambda: vault.managers.report("host"),
        }
        acts[act]()
        sql(FORGED_MANIFEST, {"newer": 999, "older": 0, "a text": "x"}[number])
        if number != "older":
            for each in acts.values():
                with pytest.raises(IntegrityError, match="the keyring was altered"):
                    each()
        with pytest.raises(IntegrityError, match="the keyring was altered"), open_vault(filled):
            pass
        sql("DELETE FROM keyring WHERE root_key_id = 'x'")
        for each in acts.values():
            each()
        assert vault.audit.verify().problems == ()
