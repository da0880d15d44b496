"""Verification that goes on while the vault is in use: what it finds, and that it finds nothing in a sound one."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from gusset.errors import IntegrityError, VaultError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit import continuous
from gusset.vault.audit.continuous import ContinuousVerification
from gusset.vault.services.issuers import new_issuer
from tests.vault.conftest import Sql


def go_on() -> bool:
    return False


def verify(verification: ContinuousVerification) -> str:
    verification.verify_new_records(go_on)
    verification.verify_rows(go_on)
    return "\n".join(verification.result.problems)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "PIECE", 3)


@pytest.fixture
def vault(vault: Vault) -> Vault:
    for number in range(8):
        vault.secrets.writer.set(f"s{number}", SecretValue(b"v"), actor="alice")
    vault.secrets.writer.set("s0", SecretValue(b"w"), actor="alice")
    return vault


def test_a_sound_vault_has_no_problems(vault: Vault) -> None:
    """The result says up to which record, and when; later runs read only what is new."""
    verification = vault.verification()
    assert verify(verification) == ""
    assert verification.result.records == 10
    assert verification.result.records_at is not None
    assert verification.result.rows_at is not None
    vault.secrets.writer.set("s1", SecretValue(b"w"), actor="alice")
    vault.secrets.writer.delete("s2", actor="alice")
    vault.key_rotation.rotate(actor="alice")
    assert verify(verification) == ""
    assert verification.result.records > 12


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE secrets SET note = 'x' WHERE name = 's5'", "the secret s5 was altered"),
        ("UPDATE teams SET name = 'x'", "the team x was altered"),
        ("DELETE FROM secrets WHERE name = 's7'", "(secret.create s7) is missing"),
        ("DELETE FROM secret_versions WHERE version = 2", "(secret.write s0) is missing"),
        (
            "INSERT INTO secret_versions SELECT secret_id, 9, sealed, created_at, created_by, destroyed_at,"
            " changed_seq, mac, write_id FROM secret_versions WHERE version = 2",
            "no record says that it was written",
        ),
    ],
)
def test_an_altered_row_is_found(vault: Vault, sql: Sql, statement: str, problem: str) -> None:
    """Whatever was done to a row; once it is right again, it is no problem any more."""
    verification = vault.verification()
    assert verify(verification) == ""
    sql("DROP INDEX IF EXISTS secrets_live_name")
    sql(statement)
    assert problem in verify(verification)


def test_a_row_that_was_rolled_back_is_found(vault: Vault, sql: Sql) -> None:
    """With the HMAC that it had."""
    [old] = sql("SELECT note, updated_at, revision, changed_seq, mac FROM secrets WHERE name = 's3'")
    vault.secrets.writer.annotate("s3", note="new", actor="alice")
    verification = vault.verification()
    assert verify(verification) == ""
    sql(
        "UPDATE secrets SET note = ?, updated_at = ?, revision = ?, changed_seq = ?, mac = ?"
        " WHERE name = 's3'",
        *old,
    )
    assert "the secret s3 was rolled back to its state of record" in verify(verification)


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 9])
@pytest.mark.slow
def test_rows_with_one_key_are_found(vault: Vault, sql: Sql, copies: int) -> None:
    """Copies of a right row hide no older one behind the end of a piece; the rows after them are read, too."""
    [(name,)] = sql("SELECT name FROM secrets ORDER BY id LIMIT 1 OFFSET 2")
    [older] = sql("SELECT * FROM secrets WHERE name = ?", name)
    vault.secrets.writer.annotate(name, note="new", actor="alice")
    verification = vault.verification()
    assert verify(verification) == ""
    sql("DROP INDEX secrets_live_name")
    sql("ALTER TABLE secrets RENAME TO former")  # its rows have a key
    sql("CREATE TABLE secrets AS SELECT * FROM former")
    for _ in range(copies):
        sql("INSERT INTO secrets SELECT * FROM former WHERE name = ?", name)
    sql(f"INSERT INTO secrets VALUES ({', '.join('?' * len(older))})", *older)
    [(later,)] = sql("SELECT max(id) FROM secrets")
    sql("DELETE FROM secrets WHERE id = ?", later)
    problems = verify(verification).splitlines(), list(vault.audit.verify().problems)
    sql("DROP TABLE secrets")
    sql("ALTER TABLE former RENAME TO secrets")
    for found in problems:
        assert found.count(f"secrets: the secret {name} is in the database more than once") == 1
        [missing] = [each for each in found if each.endswith("is missing")]
        assert missing.startswith(f"secrets: the row {later} of")


COLUMNS = "at, actor, action, target, outcome, details, changes, hash, mac"


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE seq = 12", "record 12 was altered or moved"),
        (
            f"INSERT INTO audit (seq, {COLUMNS}) SELECT 13, {COLUMNS} FROM audit WHERE seq = 12",
            "record 13 was altered or moved",
        ),
        ("DELETE FROM audit WHERE seq = 11", "records 11 to 11 are missing"),
        (
            "DELETE FROM audit WHERE seq = 10",
            "record 10, which was verified before, is not in the log any more",
        ),
    ],
    ids=["edited", "inserted", "removed", "removed after it was verified"],
)
def test_a_forged_record_is_found_in_the_next_minute(
    vault: Vault, sql: Sql, statement: str, problem: str
) -> None:
    """New records are verified without the older ones."""
    verification = vault.verification()
    verification.verify_new_records(go_on)
    for value in (b"w", b"x"):
        vault.secrets.writer.set("s1", SecretValue(value), actor="alice")
    sql(statement)
    verification.verify_new_records(go_on)
    assert verification.result.problems[0].startswith(problem)
    sql("DELETE FROM audit WHERE seq > 12")  # so that the vault closes


def test_a_problem_is_reported_before_all_records_are_verified(vault: Vault, sql: Sql) -> None:
    """After a burst of writes the verification takes a while, since it leaves time to requests."""
    sql("UPDATE audit SET actor = 'mallory' WHERE seq = 2")
    verification = vault.verification()
    verification.verify_new_records(lambda: True)
    assert verification.result.problems == ("record 2 was altered or moved",)
    assert verification.result.records < 10 and verification.result.records_at is None


def test_a_log_that_was_cut_short_is_found(vault: Vault, sql: Sql) -> None:
    """The newest verified record is remembered."""
    verification = vault.verification()
    verification.verify_new_records(go_on)
    [record] = sql("SELECT * FROM audit WHERE seq = 10")
    sql("DELETE FROM audit WHERE seq = 10")
    verification.verify_new_records(go_on)
    assert "record 10, which was verified before" in verification.result.problems[0]
    sql(f"INSERT INTO audit VALUES ({', '.join('?' * len(record))})", *record)  # so that the vault closes


@pytest.mark.parametrize(
    ("damage", "repair", "problem"),
    [
        (
            "UPDATE keyring SET kind = 'hidden' WHERE kind = 'manifest'",
            "UPDATE keyring SET kind = 'manifest' WHERE kind = 'hidden'",
            "the records cannot be verified: the keyring was altered: it has no manifest",
        ),
        (
            "INSERT INTO epochs VALUES (99, 3, 'x', 1, x'00')",
            "DELETE FROM epochs",
            "the records cannot be verified: the epoch 99 was altered",
        ),
        pytest.param(
            "UPDATE secrets SET note = CAST(x'ff' AS TEXT) WHERE name = 's5'",
            "UPDATE secrets SET note = NULL WHERE name = 's5'",
            "the rows cannot be verified: a text in the column note is not UTF-8",
            marks=pytest.mark.sqlite("PostgreSQL refuses such a text"),
        ),
        pytest.param(
            "UPDATE audit SET target = CAST(x'ff' AS TEXT) WHERE seq = 3",
            "UPDATE audit SET target = 's1' WHERE seq = 3",
            "the records cannot be verified: a text in the column target is not UTF-8",
            marks=pytest.mark.sqlite("PostgreSQL refuses such a text"),
        ),
    ],
)
def test_what_cannot_be_verified_is_a_problem(
    vault: Vault, sql: Sql, damage: str, repair: str, problem: str
) -> None:
    """Else one damaged row would hide whatever else was done, until it is repaired."""
    verification = vault.verification()
    sql(damage)
    for _ in range(2):
        with pytest.raises(IntegrityError):
            verify(verification)
        assert [each for each in verification.result.problems if each.startswith(problem)]
    sql(repair)
    assert verify(verification) == ""


@pytest.fixture
def tampered(vault: Vault, sql: Sql) -> Vault:
    """A vault with wrong rows in tables that are read after `issuers`."""
    vault.issuers.add(new_issuer("https://issuer.example", "https://issuer.example/keys"), actor="alice")
    sql("UPDATE secrets SET note = 'x' WHERE name = 's5'")
    sql("DELETE FROM secret_versions WHERE version = 2")
    return vault


def assert_others_are_named(problems: Sequence[str]) -> None:
    found = "\n".join(problems)
    assert "the secret s5 was altered" in found and "(secret.write s0) is missing" in found
    assert "issuers: the row" not in found


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_column_of_another_type_hides_no_problem_of_other_tables(tampered: Vault, sql: Sql) -> None:
    """Neither an altered row nor one that is missing; `audit verify` ends with all of it, too."""
    sql("ALTER TABLE issuers ALTER allow_private TYPE numeric")
    verification = tampered.verification()
    verify(verification)
    for problems in (verification.result.problems, tampered.audit.verify().problems):
        [problem] = [each for each in problems if each.startswith("issuers: ")]
        assert problem.startswith("issuers: cannot be read (TypeError): the type of a column was")
        assert_others_are_named(problems)


def test_a_table_without_a_column_hides_no_problem_of_others(tampered: Vault, sql: Sql) -> None:
    """What the database then refuses is a problem."""
    sql("ALTER TABLE issuers RENAME created_by TO maker")
    verification = tampered.verification()
    for _ in range(2):
        with pytest.raises(VaultError):
            verify(verification)
    problems = verification.result.problems
    assert problems[0].startswith("the rows cannot be verified: the database refused the statement")
    assert_others_are_named(problems)


def test_a_view_that_was_made_while_the_vault_is_open_is_found(vault: Vault, sql: Sql) -> None:
    """It could stand for a table. Once it is removed, it is no problem any more."""
    verification = vault.verification()
    assert verify(verification) == ""
    sql("CREATE VIEW spare AS SELECT * FROM users")
    for problems in (verify(verification), "\n".join(vault.audit.verify().problems)):
        assert problems == "the database has objects that gusset never creates: view spare"
    sql("DROP VIEW spare")
    assert verify(verification) == ""


def test_what_gusset_fails_by_is_a_problem(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: a fault in gusset itself hides no tampering unnoticed, until it is found."""
    verification = vault.verification()
    with monkeypatch.context() as patch:
        patch.setattr(continuous, "record_of", lambda _: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                verify(verification)
            assert verification.result.problems == (
                "the records cannot be verified: gusset fails by what the database holds (ZeroDivisionError)",
            )
    assert verify(verification) == ""


def test_writes_during_a_comparison_are_no_problems(settings: Settings, vault: Vault) -> None:
    """Rows that are added, changed and removed between two pieces agree with the log, too."""
    verification, done = vault.verification(), threading.Event()

    def write() -> None:
        with open_vault(settings) as other:
            for number in range(60):
                other.secrets.writer.set(f"s{number % 20}", SecretValue(b"%d" % number), actor="bob")
                if number % 3 == 0:
                    other.secrets.writer.delete(f"s{number % 20}", actor="bob")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        runs = 0
        while not done.is_set() or runs < 2:
            assert verify(verification) == ""
            runs += 1
    finally:
        writer.join()


def test_it_ends_between_two_pieces(vault: Vault) -> None:
    """A manager that stops does not wait for the rest."""
    verification = vault.verification()
    verification.verify_new_records(lambda: True)
    assert verification.result.records_at is None
