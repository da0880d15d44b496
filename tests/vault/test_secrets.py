"""What the vault promises of secrets: exact values, versions, names, deletion, refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gusset.errors import Conflict, IntegrityError, InvalidName, InvalidValue, SecretNotFound, UsageError
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from tests.vault.conftest import settings_in

EXAMPLES = 10_000 if os.environ.get("GUSSET_LONG") else 60


def put(vault: Vault, name: str, value: bytes, **more: Any) -> Any:
    return vault.secrets.writer.set(name, SecretValue(value), actor="alice", **more)


def shown(vault: Vault, name: str, version: int | None = None) -> bytes:
    return vault.secrets.delivery.reveal(name, version=version, actor="alice").reveal()


@pytest.mark.slow
@hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.one_of(st.integers(0, 200), st.integers(0, 65_536)), seed=st.randoms(use_true_random=False))
def test_any_bytes_come_back_exact(vault: Vault, size: int, seed: Any) -> None:
    """Random bytes of any length that a secret may have are delivered byte for byte."""
    value = seed.randbytes(size)
    put(vault, "x", value)
    delivered = vault.source(actor="serve", deployment="d").read(["x"])
    assert delivered["x"].value.reveal() == value == shown(vault, "x")


@pytest.mark.parametrize("value", [b"", b"\n", b"a\n", b"\0\xff\r\n", "grüße".encode(), bytes(65_536)])
def test_awkward_values_outlive_the_process(settings: Settings, value: bytes) -> None:
    """Empty, binary and newline-ended values are the same when the vault is opened again."""
    with open_vault(settings) as vault:
        put(vault, "x", value)
    with open_vault(settings) as vault:
        assert shown(vault, "x") == value


def test_a_value_that_is_too_long_is_refused(vault: Vault) -> None:
    """65,537 bytes are one too many, and nothing is stored."""
    with pytest.raises(InvalidValue):
        put(vault, "x", bytes(65_537))
    assert vault.secrets.reader.list() == []


@pytest.mark.parametrize("name", ["", "..", ".", "..x", "a/b", "a\n", "a b", "é", "x" * 254])
def test_a_bad_name_is_refused(vault: Vault, name: str) -> None:
    """A name that breaks the rule never reaches the database."""
    with pytest.raises(InvalidName):
        put(vault, name, b"v")


def test_writing_again_makes_a_version_and_keeps_id_and_creation(vault: Vault) -> None:
    """A second write is version 2 of the same secret; version 1 can still be read."""
    first, second = put(vault, "x", b"one"), put(vault, "x", b"two")
    assert (first.version, second.version) == (1, 2)
    assert (first.id, first.created_at) == (second.id, second.created_at)
    assert (shown(vault, "x"), shown(vault, "x", 1)) == (b"two", b"one")


def test_another_spelling_is_a_conflict_that_names_the_first(vault: Vault) -> None:
    """hf-access-token does not overwrite hf_access_token, and the message says what is there."""
    put(vault, "hf_access_token", b"v")
    with pytest.raises(Conflict, match="hf_access_token"):
        put(vault, "hf-access-token", b"w")
    assert shown(vault, "hf_access_token") == b"v"


def test_another_spelling_overwrites_when_the_setting_says_so(home: Path) -> None:
    """With name_collisions = "overwrite" it is a new version, listed as first typed."""
    with open_vault(settings_in(home, name_collisions="overwrite")) as vault:
        put(vault, "hf_access_token", b"v")
        assert put(vault, "hf-access-token", b"w").version == 2
        assert [info.name for info in vault.secrets.reader.list()] == ["hf_access_token"]


def test_a_deployment_reads_by_its_own_spelling(vault: Vault) -> None:
    """What config.yaml spells with dashes is the secret that was typed with underscores."""
    put(vault, "hf_access_token", b"v")
    delivered = vault.source(actor="serve", deployment="d").read(["hf-access-token", "absent"])
    assert {name: found.value.reveal() for name, found in delivered.items()} == {"hf-access-token": b"v"}


def test_a_write_can_expect_a_version(vault: Vault) -> None:
    """Compare and set: only the version that the writer has seen is replaced; 0 means it must be new."""
    put(vault, "x", b"one", expect_version=0)
    put(vault, "x", b"two", expect_version=1)
    for stale in (0, 1):
        with pytest.raises(Conflict):
            put(vault, "x", b"three", expect_version=stale)
    assert shown(vault, "x") == b"two"


def test_note_and_expiry_stay_until_they_are_changed(vault: Vault) -> None:
    """A later write without them leaves them; they are listed, and the value is not."""
    put(vault, "x", b"one", note="ask Ann", expires_at=datetime(2031, 1, 2, tzinfo=UTC))
    put(vault, "x", b"two")
    [info] = vault.secrets.reader.list()
    assert (info.note, info.expires_at, info.version) == ("ask Ann", "2031-01-02T00:00:00.000Z", 2)


@pytest.mark.parametrize("text", ["a\0b", "a\udcffb"])
def test_a_text_that_cannot_be_stored_is_refused_as_a_note_or_address(vault: Vault, text: str) -> None:
    """Such as an argument of a command that is not UTF-8."""
    put(vault, "x", b"one")
    with pytest.raises(InvalidValue):
        vault.secrets.writer.annotate("x", note=text, actor="alice")
    with pytest.raises(UsageError):
        vault.invitations.invite(f"{text}@example.com", role="member", team_ids=[], actor="alice")


def test_rolling_back_makes_a_new_version_of_the_old_value(vault: Vault) -> None:
    """History only grows: version 1 comes back as version 3."""
    put(vault, "x", b"one")
    put(vault, "x", b"two")
    assert vault.secrets.writer.rollback("x", 1, actor="alice").version == 3
    assert shown(vault, "x") == b"one"
    assert [version.state for version in vault.secrets.reader.history("x")] == ["older", "older", "current"]


def test_a_destroyed_version_is_gone_and_the_newest_left_is_current(
    vault: Vault, sql: Callable[..., list[Any]]
) -> None:
    """Its sealed bytes are gone from the database while its row stays in the history."""
    put(vault, "x", b"one")
    put(vault, "x", b"two")
    assert vault.secrets.writer.destroy("x", [2], actor="alice").version == 1
    assert shown(vault, "x") == b"one"
    with pytest.raises(SecretNotFound):
        shown(vault, "x", 2)
    assert sql("SELECT sealed IS NULL FROM secret_versions ORDER BY version") == [(0,), (1,)]


def test_a_secret_with_every_version_destroyed_is_missing(vault: Vault) -> None:
    """Nothing is delivered, and a new value is version 2, never 1 again."""
    put(vault, "x", b"one")
    assert vault.secrets.writer.destroy("x", actor="alice").version is None
    assert vault.source(actor="serve", deployment="d").read(["x"]) == {}
    assert put(vault, "x", b"two").version == 2


def test_a_deleted_secret_is_gone_and_comes_back_whole(vault: Vault) -> None:
    """Deletion is soft: restored, the secret has its id, versions and value."""
    before = put(vault, "x", b"one")
    vault.secrets.writer.delete("x", actor="alice")
    with pytest.raises(SecretNotFound):
        shown(vault, "x")
    assert vault.source(actor="serve", deployment="d").read(["x"]) == {}
    assert vault.secrets.reader.list() == []
    assert [info.id for info in vault.secrets.reader.list(include_deleted=True)] == [before.id]
    assert vault.secrets.writer.restore("x", actor="alice").id == before.id
    assert shown(vault, "x") == b"one"


def test_a_deleted_name_can_be_made_anew_and_then_not_restored(vault: Vault) -> None:
    """The new secret has its own id and begins at version 1; the old one would collide with it."""
    old = put(vault, "x", b"old")
    vault.secrets.writer.delete("x", actor="alice")
    new = put(vault, "x", b"new")
    assert (new.id != old.id, new.version) == (True, 1)
    with pytest.raises(Conflict):
        vault.secrets.writer.restore("x", actor="alice")
    vault.secrets.writer.delete("x", actor="alice")
    vault.secrets.writer.restore(old.id, actor="alice")
    assert shown(vault, "x") == b"old"


def test_the_error_for_a_missing_secret_names_the_nearest_one(vault: Vault) -> None:
    """After a typing error the hint has the name that was meant."""
    put(vault, "hf_access_token", b"v")
    with pytest.raises(SecretNotFound) as caught:
        shown(vault, "hf_acess_token")
    assert "hf_access_token" in str(caught.value.hint)


def test_several_values_are_written_all_or_none(vault: Vault) -> None:
    """One conflict among them leaves nothing behind."""
    put(vault, "a_b", b"v")
    pairs = [("new", SecretValue(b"1")), ("a-b", SecretValue(b"2"))]
    with pytest.raises(Conflict):
        vault.secrets.writer.set_many(pairs, actor="alice")
    assert [info.name for info in vault.secrets.reader.list()] == ["a_b"]


def test_a_secret_is_found_by_its_id_only_in_its_own_team(vault: Vault) -> None:
    """Live or deleted; an id that another team's page shows leads to nothing here."""
    made = vault.secrets.writer.set("a", SecretValue(b"1"), actor="alice")
    team = vault.teams.create("other", actor="alice")
    other = vault.secrets_of(team.id, team.name)
    assert vault.secrets.reader.by_id(made.id) == made
    assert other.reader.by_id(made.id) is None
    gone = vault.secrets.writer.delete("a", actor="alice")
    found = vault.secrets.reader.by_id(made.id)
    assert found and found.deleted_at == gone.deleted_at


def test_find_many_keeps_the_requested_spelling(vault: Vault) -> None:
    """In any spelling; what is missing or deleted is left out."""
    for name in ("a_b", "c"):
        vault.secrets.writer.set(name, SecretValue(b"1"), actor="alice")
    vault.secrets.writer.delete("c", actor="alice")
    known = vault.secrets.reader.find_many(["a-b", "a_b", "c", "nothing"])
    assert {name: info.name for name, info in known.items()} == {"a-b": "a_b", "a_b": "a_b"}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE secret_versions SET sealed = substr(sealed, 1, length(sealed) - 1) WHERE version = 2",
        "UPDATE secret_versions SET sealed = x'01' WHERE version = 2",
        "UPDATE secret_versions SET sealed = x'' WHERE version = 2",
        "UPDATE secret_versions SET sealed = zeroblob(200) WHERE version = 2",
        "UPDATE secret_versions SET sealed = (SELECT other.sealed FROM secret_versions other WHERE"
        " other.version = 1 AND other.secret_id = secret_versions.secret_id) WHERE version = 2",
    ],
    ids=["cut", "one byte", "emptied", "zeroes", "swapped"],
)
def test_a_damaged_row_is_named_and_does_not_affect_others(
    vault: Vault, sql: Callable[..., list[Any]], damage: str
) -> None:
    """Only the damaged secret fails, with an error that names it; others are read as before."""
    put(vault, "hurt", b"one")
    put(vault, "hurt", b"two")
    put(vault, "well", b"fine")
    sql(damage)
    source = vault.source(actor="serve", deployment="d")
    with pytest.raises(IntegrityError, match="hurt"):
        source.read(["hurt", "well"])
    with pytest.raises(IntegrityError, match="hurt"):
        shown(vault, "hurt")
    assert source.read(["well"])["well"].value.reveal() == b"fine"
    assert shown(vault, "hurt", 1) == b"one"


@pytest.mark.sqlite("looks into its files; test_postgres.py looks into the server's")
def test_no_file_holds_a_value_in_any_form(
    vault: Vault, home: Path, leaking_files: Callable[[Iterable[Path], bytes], list[Path]]
) -> None:
    """After writes, reads and refusals, neither database nor WAL nor witness has the value."""
    value = b"a value that must not be found 4711"
    put(vault, "x", value)
    shown(vault, "x")
    vault.source(actor="serve", deployment="d").read(["x"])
    with pytest.raises(Conflict):
        put(vault, "x", value, expect_version=9)
    assert (home / "vault.db-wal").stat().st_size > 0
    assert leaking_files([home], value) == []
