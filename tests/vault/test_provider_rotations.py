"""Rotations by a provider's program in the vault: steps in order, one process at a time, handles, schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypedDict

import pytest

from gusset.errors import (
    Conflict,
    IntegrityError,
    InvalidName,
    InvalidValue,
    NotFound,
    SecretNotFound,
)
from gusset.rotation.state import LEASE_SECONDS, Step
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.services.provider_rotations import ProviderRotations
from gusset.vault.services.rotation_schedules import RotationSchedules
from tests.vault.conftest import Clock, Sql

HOUR = timedelta(hours=1)


class Who(TypedDict):
    holder: str
    actor: str


WHO: Who = {"holder": "h", "actor": "ada"}


@pytest.fixture
def vault(settings: Settings, clock: Clock) -> Iterator[Vault]:
    with open_vault(settings, clock=clock) as vault:
        vault.secrets.writer.set("db", SecretValue(b"value one"), actor="ada")
        yield vault


@pytest.fixture
def rotations(vault: Vault) -> ProviderRotations:
    team = vault.teams.all()[0]
    return vault.provider_rotations_of(team.id, team.name)


@pytest.fixture
def schedules(vault: Vault) -> RotationSchedules:
    team = vault.teams.all()[0]
    return vault.rotation_schedules_of(team.id, team.name)


def rotate(rotations: ProviderRotations, handle: str, *, revoke: bool = True) -> None:
    """A whole rotation; without `revoke`, until the credentials before are to be revoked."""
    rotations.begin("db", **WHO)
    value = SecretValue(b"value of " + handle.encode())
    rotations.set("db", value, handle=handle, overlap=HOUR, **WHO)
    rotations.advance("db", Step.USE, **WHO)
    state = rotations.advance("db", Step.REVOKE, **WHO)
    if revoke:
        for old in state.revoke:
            rotations.revoked("db", old, **WHO)
        rotations.finish("db", **WHO)


def test_each_step_is_stored_and_audited(vault: Vault, rotations: ProviderRotations) -> None:
    """A rotation goes through its steps in order; the new version, its handle and the overlap come together."""
    begun = rotations.begin("db", **WHO, current_handle="key-1")
    assert (begun.step, begun.current, begun.version) == (Step.CREATE, "key-1", None)

    team = vault.teams.all()[0]
    rotate(rotations, "key-2", revoke=False)
    state = rotations.get("db")
    assert (state.step, state.version, state.handle, state.revoke) == (Step.REVOKE, 2, "key-2", ["key-1"])
    overlap = vault.rotations_of(team.id, team.name).get("db").overlap
    assert overlap is not None and overlap.version == 1
    with pytest.raises(Conflict, match="not revoked yet"):
        rotations.finish("db", **WHO)

    rotations.revoked("db", "key-1", **WHO)
    rotations.finish("db", **WHO)
    with pytest.raises(NotFound):
        rotations.get("db")
    assert vault.rotations_of(team.id, team.name).get("db").overlap is None
    records = [each for each in vault.audit.show(action="rotation.", substring=True) if each.outcome == "ok"]
    assert [each.action.removeprefix("rotation.") for each in sorted(records, key=lambda each: each.seq)] == [
        "begin",
        "resume",
        "set",
        "advance",
        "advance",
        "revoke",
        "finish",
    ]
    assert rotations.begin("db", **WHO).current == "key-2"
    assert vault.audit.verify().problems == ()


def test_a_step_out_of_order_is_refused(rotations: ProviderRotations) -> None:
    """Nothing is revoked before the replicas were waited for, and no second version is set."""
    rotations.begin("db", **WHO)
    for step in (Step.USE, Step.REVOKE):
        with pytest.raises(Conflict):
            rotations.advance("db", step, **WHO)
    with pytest.raises(Conflict):
        rotations.revoked("db", "key", **WHO)
    rotations.set("db", SecretValue(b"value two"), handle="key-2", overlap=HOUR, **WHO)
    with pytest.raises(Conflict):
        rotations.set("db", SecretValue(b"value three"), handle="key-3", overlap=HOUR, **WHO)
    with pytest.raises(InvalidValue):
        rotations.advance("db", Step.CREATE, **WHO)


def test_a_second_process_is_refused_until_the_first_is_silent(
    vault: Vault, rotations: ProviderRotations, clock: Clock
) -> None:
    """The refusal is recorded. Who was replaced after a silence cannot go on, and the rotation keeps its id."""
    first = rotations.begin("db", holder="one", actor="ada")
    with pytest.raises(Conflict, match="another process"):
        rotations.begin("db", holder="two", actor="bob")
    outcomes = {record.outcome for record in vault.audit.show(action="rotation.begin")}
    assert outcomes == {"ok", "conflict"}

    clock.now += timedelta(seconds=LEASE_SECONDS - 1)
    rotations.renew("db", holder="one")
    clock.now += timedelta(seconds=LEASE_SECONDS - 1)
    with pytest.raises(Conflict):
        rotations.begin("db", holder="two", actor="bob")
    clock.now += timedelta(seconds=2)
    assert rotations.begin("db", holder="two", actor="bob").id == first.id
    with pytest.raises(Conflict):
        rotations.set("db", SecretValue(b"x"), handle="k", overlap=HOUR, holder="one", actor="ada")
    with pytest.raises(Conflict):
        rotations.renew("db", holder="one")


def test_a_stopped_rotation_is_free_at_once(rotations: ProviderRotations) -> None:
    """After a failure the next run need not wait."""
    rotations.begin("db", holder="one", actor="ada")
    rotations.stop("db", holder="one", actor="ada", code="provider_failed")
    assert rotations.begin("db", holder="two", actor="ada").step is Step.CREATE


def test_nothing_is_revoked_after_another_value_was_set(vault: Vault, rotations: ProviderRotations) -> None:
    """A person rolled back to the old credential: revoking it would break what is in use."""
    rotate(rotations, "key-1")
    rotate(rotations, "key-2", revoke=False)
    vault.secrets.writer.rollback("db", 2, actor="bob")
    with pytest.raises(Conflict, match="another value"):
        rotations.renew("db", holder="h")

    rotations.cancel("db", **WHO)
    assert rotations.begin("db", **WHO).current == "key-1"  # the rollback keeps its handle
    state = rotations.set("db", SecretValue(b"value three"), handle="key-3", overlap=HOUR, **WHO)
    assert sorted(state.revoke) == ["key-1", "key-2"]
    assert vault.audit.verify().problems == ()


@pytest.mark.parametrize("handle", ["", "x" * 1001, "line\nline"])
def test_a_bad_handle_is_refused(rotations: ProviderRotations, handle: str) -> None:
    """Handles are short printable texts."""
    with pytest.raises(InvalidValue):
        rotations.begin("db", **WHO, current_handle=handle)


def test_a_secret_that_does_not_exist_is_not_rotated(rotations: ProviderRotations) -> None:
    """The first value is set by a person."""
    with pytest.raises(SecretNotFound):
        rotations.begin("other", **WHO)


def test_a_secret_is_due_by_its_interval_its_expiry_date_or_an_unfinished_rotation(
    vault: Vault, rotations: ProviderRotations, schedules: RotationSchedules, clock: Clock
) -> None:
    """A secret is due by its interval, by its expiry date, and while a rotation is unfinished."""
    writer = vault.secrets.writer
    assert schedules.plans() == []
    writer.annotate("db", actor="ada", rotate_every=timedelta(days=30))
    writer.set("soon", SecretValue(b"v"), actor="ada", expires_at=clock.now + timedelta(days=13))
    writer.set("later", SecretValue(b"v"), actor="ada", expires_at=clock.now + timedelta(days=15))
    plans = {plan.name: plan for plan in schedules.plans()}
    due = {name: plan.due(clock.now) for name, plan in plans.items()}
    assert due == {"db": None, "soon": "expiry", "later": None}
    assert (plans["db"].rotate_at or "").startswith("2026-01-31T00:00:00")
    assert plans["db"].due(clock.now + timedelta(days=30)) == "interval"

    def db_is_due() -> str | None:
        [plan] = [plan for plan in schedules.plans() if plan.name == "db"]
        return plan.due(clock.now)

    clock.now += timedelta(days=30)
    assert db_is_due() == "interval"
    rotate(rotations, "key-2", revoke=False)
    assert db_is_due() == "unfinished"
    rotations.finish("db", **WHO)
    assert db_is_due() is None
    writer.annotate("db", actor="ada", rotate_every="never")
    assert "db" not in [plan.name for plan in schedules.plans()]
    with pytest.raises(InvalidValue):
        writer.annotate("db", actor="ada", rotate_every=timedelta(days=4000))
    assert vault.audit.verify().problems == ()


@pytest.mark.sqlite("how the database is altered")
def test_an_altered_handle_is_refused(rotations: ProviderRotations, sql: Sql) -> None:
    """Whoever can only write the database cannot have another credential revoked."""
    rotate(rotations, "key-1")
    sql("UPDATE secret_credentials SET handle = 'other'")
    with pytest.raises(IntegrityError):
        rotations.begin("db", **WHO)


@pytest.mark.parametrize("name", ["ghp_" + "a1B2c3D4e5" * 3 + "a1B2c3", "a\0b"])
def test_a_text_that_is_no_name_is_refused_before_anything_is_recorded(
    vault: Vault, rotations: ProviderRotations, name: str
) -> None:
    """It may be a credential in the wrong place."""
    value = SecretValue(b"value two")
    steps: list[Callable[[], object]] = [
        lambda: rotations.begin(name, **WHO),
        lambda: rotations.renew(name, holder="h"),
        lambda: rotations.set(name, value, handle="key-2", overlap=HOUR, **WHO),
        lambda: rotations.advance(name, Step.USE, **WHO),
        lambda: rotations.revoked(name, "key-1", **WHO),
        lambda: rotations.finish(name, **WHO),
        lambda: rotations.stop(name, code="conflict", **WHO),
        lambda: rotations.cancel(name, **WHO),
    ]
    before = vault.audit.show()
    for step in steps:
        with pytest.raises(InvalidName):
            step()
    assert vault.audit.show() == before
