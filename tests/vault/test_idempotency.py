"""Requests with a key of their own: what is stored of them, for how long, and what a repetition gets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gusset.errors import SecretNotFound
from gusset.secrets.info import SecretInfo
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.services.idempotency import AlreadyExecuted, OnceWriter, RequestId
from tests.vault.conftest import Clock, Sql, settings_in

HOUR = 3600.0
REQUEST = RequestId(caller="ada", route="POST /v1/secrets", key="5b0e7d3c")
PARTS = (b"/v1/secrets", b"", b"", b'{"name": "x", "value": "hunter2"}')


def once_writer(vault: Vault) -> OnceWriter:
    """A writer for the request, which stores the version that it makes as the response."""
    once = vault.idempotency.writer(REQUEST, vault.idempotency.digest(*PARTS))

    def render(info: SecretInfo) -> dict[str, Any]:
        return {"version": info.version}

    once.keep_response(render)
    return once


def execute(vault: Vault, once: OnceWriter | None = None) -> int | None:
    """Set the secret by the request; returns the version."""
    once = once or once_writer(vault)
    secrets = vault.with_writer(once).secrets
    return secrets.writer.set("x", SecretValue(b"hunter2"), actor="ada").version


def response(vault: Vault, *parts: bytes) -> Mapping[str, Any] | None:
    """The response that a request with the key gets; None if it is executed."""
    found = vault.idempotency.find(REQUEST, vault.idempotency.digest(*(parts or PARTS)))
    return found.response if found else None


def test_a_request_is_remembered_for_a_day(settings: Settings, clock: Clock, sql: Sql) -> None:
    """It is known 23 hours later; 25 hours later it is another request, and what was stored is deleted."""
    with open_vault(settings, clock=clock) as vault:
        assert execute(vault) == 1
        clock.advance(23 * HOUR)
        assert response(vault) == {"version": 1}
        with pytest.raises(AlreadyExecuted):
            execute(vault)
        clock.advance(2 * HOUR)
        assert response(vault) is None
        assert execute(vault) == 2
        assert response(vault) == {"version": 2}
    assert sql("SELECT count(*) FROM idempotency") == [(1,)]


def test_any_request_with_a_key_deletes_those_that_are_older_than_a_day(
    settings: Settings, clock: Clock, sql: Sql
) -> None:
    """So the table does not grow for ever."""
    with open_vault(settings, clock=clock) as vault:
        execute(vault)
        clock.advance(25 * HOUR)
        other = RequestId(caller="bob", route=REQUEST.route, key="other")
        execute(vault, vault.idempotency.writer(other, vault.idempotency.digest(b"other")))
    assert sql("SELECT caller FROM idempotency") == [("bob",)]


def test_a_stored_request_is_an_hmac_of_it(vault: Vault, sql: Sql, tmp_path: Path) -> None:
    """Whoever reads the database cannot test guesses of a value: a plain hash is the same in every vault."""
    execute(vault)
    [[mac]] = sql("SELECT mac FROM idempotency")
    digest = vault.idempotency.digest(*PARTS)
    plain = [*PARTS, b"".join(PARTS), digest]
    assert len(mac) == 32
    assert bytes(mac) not in [digest, *(hashlib.sha256(part).digest() for part in plain)]
    with open_vault(settings_in(tmp_path / "other")) as other:
        execute(other)
        with other._parts.store.read() as connection:
            cursor = connection.driver.execute("SELECT mac FROM idempotency")
            assert bytes(cursor.fetchone()[0]) != bytes(mac)


@pytest.mark.parametrize("changed", range(len(PARTS)))
def test_another_request_with_the_same_key_is_known_as_another(vault: Vault, changed: int) -> None:
    """Each part counts: path, query, condition and body."""
    execute(vault)
    parts = [part + b"!" if number == changed else part for number, part in enumerate(PARTS)]
    found = vault.idempotency.find(REQUEST, vault.idempotency.digest(*parts))
    assert found is not None and not found.same
    found = vault.idempotency.find(REQUEST, vault.idempotency.digest(*PARTS))
    assert found is not None and found.same


@pytest.mark.sqlite("its columns hold any type")
@pytest.mark.parametrize(
    ("damage", "same"), [("mac = 'x'", False), ("mac = 7", False), ("created_at = x'00'", True)]
)
def test_a_request_that_was_stored_with_another_type_is_not_executed_again(
    vault: Vault, sql: Sql, damage: str, same: bool
) -> None:
    """As one with another HMAC is not; a time that cannot be read is as good as now."""
    execute(vault)
    sql(f"UPDATE idempotency SET {damage}")
    found = vault.idempotency.find(REQUEST, vault.idempotency.digest(*PARTS))
    assert found is not None and found.same is same
    with pytest.raises(AlreadyExecuted):
        execute(vault)


def test_parts_of_a_request_that_only_meet_elsewhere_make_another_request(vault: Vault) -> None:
    """A path with a part of the body is no other path with the rest of it."""
    assert vault.idempotency.digest(b"ab", b"c") != vault.idempotency.digest(b"a", b"bc")


def test_a_request_that_was_sent_twice_at_once_is_executed_once(vault: Vault) -> None:
    """Both found nothing before; the second one to write gets the response of the first."""
    first, second = once_writer(vault), once_writer(vault)
    execute(vault, first)
    with pytest.raises(AlreadyExecuted) as error:
        execute(vault, second)
    assert (error.value.executed.same, error.value.executed.response) == (True, {"version": 1})
    assert [each.version for each in vault.secrets.reader.history("x")] == [1]


def test_a_response_is_stored_in_the_transaction_of_the_write(vault: Vault) -> None:
    """One commit: whoever is killed after it has stored both, whoever is killed before it neither."""
    before = vault.commits()
    execute(vault)
    assert vault.commits() == before + 1
    assert response(vault) == {"version": 1}


def test_a_refused_request_is_not_remembered(vault: Vault) -> None:
    """It can be sent again with its key."""
    with pytest.raises(SecretNotFound):
        vault.with_writer(once_writer(vault)).secrets.writer.rollback("x", 1, actor="ada")
    assert response(vault) is None
    assert execute(vault) == 1


def test_a_request_of_several_writes_is_known_without_a_response_after_the_first(
    settings: Settings, clock: Clock
) -> None:
    """It is in flight for a minute; its response is stored after the last write."""
    with open_vault(settings, clock=clock) as vault:
        once = vault.idempotency.writer(REQUEST, vault.idempotency.digest(*PARTS))
        assert [execute(vault, once), execute(vault, once)] == [1, 2]
        found = vault.idempotency.find(REQUEST, vault.idempotency.digest(*PARTS))
        assert found is not None and found.response is None
        clock.advance(59)
        assert vault.idempotency.is_recent(found, 60.0)
        clock.advance(2)
        assert not vault.idempotency.is_recent(found, 60.0)
        vault.idempotency.keep_response(REQUEST, {"version": 2})
        assert response(vault) == {"version": 2}
