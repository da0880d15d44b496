"""Rotations: which replicas count, what they have acknowledged, and overlaps of two versions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta

import pytest

from gusset.errors import IntegrityError, InvalidValue, SecretNotFound
from gusset.secrets.sources.source import Previous
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.actions import Action
from gusset.vault.audit.log_state import LogState
from gusset.vault.services.deployments import Grant
from gusset.vault.services.leases import LeaseReport
from gusset.vault.services.rotations import Rotation
from tests.vault.conftest import Clock, Sql

HOUR = timedelta(hours=1)


@pytest.fixture
def vault(settings: Settings, clock: Clock) -> Iterator[Vault]:
    """The vault of one manager."""
    with open_vault(settings, clock=clock) as opened:
        put(opened, "value one")
        yield opened


@pytest.fixture
def other(vault: Vault, settings: Settings, clock: Clock) -> Iterator[Vault]:
    """The same vault, of another manager."""
    with open_vault(settings, clock=clock) as opened:
        yield opened


@pytest.fixture
def grant(vault: Vault) -> Grant:
    team = vault.teams.all()[0]
    return vault.deployments.grant(vault.deployments.register(team.id, "d", ["x", "y"], actor="ada")[1])


class Replica:
    """A replica that has fetched secrets through one manager."""

    def __init__(self, vault: Vault, grant: Grant, names: Collection[str] = ("x",)) -> None:
        self.grant = grant
        self.key = ""
        self.fetch(vault, names)

    def fetch(self, vault: Vault, names: Collection[str] = ("x",)) -> None:
        lease = vault.leases.resume(self.grant, self.key) if self.key else None

        def on_read(transaction, versions):  # type: ignore[no-untyped-def]
            if lease is None:
                self.id = vault.leases.begin(transaction, self.grant, versions)
            else:
                vault.leases.extend(transaction, self.grant, lease, versions)

        vault.secrets.delivery.deliver(names, actor="d", deployment="d", on_read=on_read)
        self.key = vault.leases.session_key_of(self.grant, self.id)

    def report(self, vault: Vault, **fields: object) -> None:
        vault.leases.renew(self.grant, self.id, self.key, LeaseReport(**fields))  # type: ignore[arg-type]


def put(vault: Vault, value: str, overlap: timedelta | None = None) -> int:
    info = vault.secrets.writer.set("x", SecretValue(value.encode()), actor="ada", overlap=overlap)
    return info.version or 0


def rotation(vault: Vault, version: int | None = None) -> Rotation:
    team = vault.teams.all()[0]
    return vault.rotations_of(team.id, team.name).get("x", version)


def states(vault: Vault, version: int | None = None) -> list[str]:
    return [replica.state for replica in rotation(vault, version).replicas]


def previous(vault: Vault) -> Previous | None:
    return vault.secrets.delivery.deliver(["x"], actor="d", deployment="d").values["x"].previous


def test_a_fetch_is_no_acknowledgement(vault: Vault, grant: Grant) -> None:
    """Neither one before the commit, whose response may still be on its way, nor one after it."""
    replica = Replica(vault, grant)
    put(vault, "value two")
    assert states(vault) == ["waiting"]
    replica.fetch(vault)
    assert states(vault) == ["waiting"]
    replica.report(vault, versions={"x": 1})
    assert states(vault) == ["waiting"]
    replica.report(vault, versions={"x": 2}, used={"x": 1})
    [shown] = rotation(vault).replicas
    assert (shown.state, shown.version, shown.used) == ("acknowledged", 2, 1)


def test_replicas_that_began_with_the_new_version_do_not_count(vault: Vault, grant: Grant) -> None:
    """They never had an older one. Those of secrets that they did not fetch do not count either."""
    put(vault, "value two")
    Replica(vault, grant)
    other = Replica(vault, grant, ["y"])
    assert states(vault) == []
    other.fetch(vault, ["x", "y"])
    assert states(vault) == []
    put(vault, "value three")
    assert states(vault) == ["waiting", "waiting"]


def test_a_replica_that_acknowledged_a_later_version_is_through(vault: Vault, grant: Grant) -> None:
    """Two rotations of one secret at once: each waits for its own version or a newer one."""
    replica = Replica(vault, grant)
    put(vault, "value two")
    put(vault, "value three")
    replica.report(vault, versions={"x": 2})
    assert (states(vault, 2), states(vault, 3)) == (["acknowledged"], ["waiting"])
    replica.report(vault, versions={"x": 3})
    assert (states(vault, 2), states(vault, 3)) == (["acknowledged"], ["acknowledged"])


def test_a_lease_that_lapses_is_unknown_and_one_that_ends_in_order_has_stopped(
    vault: Vault, grant: Grant, clock: Clock
) -> None:
    """Also when it lapses while somebody waits, and when the rows of gone replicas are cleaned up."""
    lapsing, stopping = Replica(vault, grant), Replica(vault, grant)
    put(vault, "value two")
    clock.advance(15)
    stopping.report(vault, stopped=True)
    assert sorted(states(vault)) == ["stopped", "waiting"]
    clock.advance(6)
    vault.leases.flush()
    assert sorted(states(vault)) == ["stopped", "unknown"]
    lapsing.report(vault, versions={"x": 1})  # it was only cut off
    assert sorted(states(vault)) == ["stopped", "waiting"]


def test_replicas_without_a_lease_at_the_commit_do_not_count(
    vault: Vault, grant: Grant, clock: Clock
) -> None:
    Replica(vault, grant).report(vault, stopped=True)
    lost = Replica(vault, grant)
    clock.advance(22)
    put(vault, "value two")
    assert states(vault) == []
    lost.report(vault, versions={"x": 1})  # it comes back with the old value
    assert states(vault) == ["waiting"]


def test_another_manager_knows_a_report_when_it_is_written(vault: Vault, other: Vault, grant: Grant) -> None:
    """Until then it waits for longer, never for less."""
    replica = Replica(other, grant)
    put(vault, "value two")
    assert states(vault) == ["waiting"]
    replica.report(other, versions={"x": 2})
    assert (states(vault), states(other)) == (["waiting"], ["acknowledged"])
    other.leases.flush(reports_only=True)
    assert states(vault) == ["acknowledged"]


def test_a_clone_that_reports_an_older_version_takes_the_acknowledgement_back(
    vault: Vault, grant: Grant
) -> None:
    """A copy of a whole machine has the same session key."""
    replica = Replica(vault, grant)
    put(vault, "value two")
    replica.report(vault, versions={"x": 2})
    replica.report(vault, versions={"x": 1})
    assert states(vault) == ["waiting"]


def test_a_version_that_never_was_has_no_rotation(vault: Vault) -> None:
    with pytest.raises(SecretNotFound, match="no version 7"):
        rotation(vault, 7)


# --- overlaps


def test_the_version_before_is_delivered_during_an_overlap(vault: Vault, clock: Clock) -> None:
    """Until it is over; the audit records have its version."""
    put(vault, "value two", HOUR)
    kept = previous(vault)
    assert kept is not None and (kept.value.reveal(), kept.version) == (b"value one", 1)
    assert rotation(vault).overlap is not None
    clock.advance(3600)
    assert previous(vault) is None and rotation(vault).overlap is None
    records = vault.audit.show(action=Action.SECRET_DELIVER, limit=10)
    assert ['"previous": {"x": 1}' in record.details for record in records] == [True, False]


def test_an_overlap_without_a_version_before_keeps_nothing(vault: Vault) -> None:
    vault.secrets.writer.set("new", SecretValue(b"a value"), actor="ada", overlap=HOUR)
    vault.secrets.writer.destroy("x", actor="ada")
    put(vault, "value two", HOUR)
    assert previous(vault) is None
    with pytest.raises(InvalidValue, match="overlap"):
        put(vault, "value three", timedelta(days=400))


@pytest.mark.parametrize("how", ["destroy", "destroy the new one", "delete", "set", "rollback"])
def test_an_overlap_ends_at_once(vault: Vault, how: str) -> None:
    """By `destroy` of its version, a forced delete, and whenever another version becomes current."""
    put(vault, "value two", HOUR)
    writer = vault.secrets.writer
    if how == "destroy":
        writer.destroy("x", [1], actor="ada")
    elif how == "destroy the new one":
        writer.destroy("x", [2], actor="ada")
    elif how == "delete":
        writer.delete("x", actor="ada", force=True)
        writer.restore("x", actor="ada")
    elif how == "set":
        put(vault, "value three")
    else:
        writer.rollback("x", 1, actor="ada")
    assert previous(vault) is None
    assert vault.audit.verify().problems == ()


def test_an_overlap_that_is_over_is_ended_once_and_watchers_notice(
    vault: Vault, other: Vault, clock: Clock
) -> None:
    """By one of several managers, with an audit record."""

    def revision() -> object:
        team = vault.teams.all()[0]
        return vault.change_poller().revisions([(team.id, "x")])[team.id, "x"].number

    put(vault, "value two", HOUR)
    before = revision()
    assert not vault.overlaps.end_due()
    clock.advance(3601)
    assert vault.overlaps.end_due()
    assert not other.overlaps.end_due()
    assert revision() != before
    [record] = vault.audit.show(action=Action.SECRET_END_OVERLAP, limit=10)
    assert record.target == "x"
    assert vault.audit.verify().problems == ()


def test_an_altered_overlap_keeps_no_other_from_being_ended(vault: Vault, clock: Clock, sql: Sql) -> None:
    """It stays, and is named each time."""
    names = ("a", "x", "z")
    for name in names:
        for value in (b"value one", b"value two"):
            vault.secrets.writer.set(name, SecretValue(value), actor="ada", overlap=HOUR)
    altered = sql("SELECT secret_id FROM secret_overlaps")[0][0]
    sql("UPDATE secret_overlaps SET successor = successor + 1 WHERE secret_id = ?", altered)
    sql("UPDATE secret_overlaps SET mac = mac WHERE secret_id <> ?", altered)  # PostgreSQL returns it first
    clock.advance(3601)
    for _ in range(2):
        with pytest.raises(IntegrityError):
            vault.overlaps.end_due()
        assert sql("SELECT secret_id FROM secret_overlaps") == [(altered,)]


def test_a_delivery_of_a_replaced_version_without_an_overlap_is_found(vault: Vault) -> None:
    """By the records alone: no overlap was begun, or it had ended."""
    put(vault, "value two", HOUR)
    previous(vault)
    assert vault.audit.verify().problems == ()
    state, records = LogState(), list(vault.audit.export())
    for record in records:
        state.follow(record)
    vault.secrets.writer.destroy("x", [1], actor="ada")
    for record in list(vault.audit.export())[len(records) :]:
        state.follow(record)
    delivered = next(record for record in records if '"previous"' in record.details)
    state.follow(delivered)
    assert state.problems == [
        f"record {delivered.seq} delivered the replaced version 1 of x, which no overlap kept readable"
    ]


def test_a_replica_that_was_lost_before_is_named_though_nobody_waits_for_it(
    vault: Vault, grant: Grant, clock: Clock
) -> None:
    """It may still use an older version. When it returns it counts, until it has acknowledged the newest."""
    lost = Replica(vault, grant)
    clock.advance(60)
    put(vault, "value two")
    found = rotation(vault)
    assert found.replicas == []
    assert [(each.id, each.state) for each in found.lost_before] == [(lost.id, "unknown")]
    lost.report(vault, versions={"x": 1})
    assert (states(vault), rotation(vault).lost_before) == (["waiting"], [])
    lost.report(vault, versions={"x": 2})
    assert (states(vault), rotation(vault).lost_before) == (["acknowledged"], [])


def test_lost_replicas_are_remembered_until_a_providers_rotation_has_ended(
    vault: Vault, grant: Grant, clock: Clock
) -> None:
    """Else a rotation that is continued days later would revoke what they use. Then a day is enough."""
    lost = Replica(vault, grant)
    lost.report(vault, versions={"x": 1})
    team = vault.teams.all()[0]
    rotations = vault.provider_rotations_of(team.id, team.name)
    rotations.begin("x", holder="holder-1", actor="ada")
    put(vault, "value two")
    for _ in range(3):
        clock.advance(86_400)
        Replica(vault, grant).report(vault, host="h")  # so that there is something to write
        vault.leases.flush()
    assert "unknown" in states(vault)
    rotations.cancel("x", holder="holder-1", actor="ada")
    Replica(vault, grant).report(vault, host="h")
    vault.leases.flush()
    assert states(vault) == []


def test_versions_of_another_secret_of_the_name_do_not_count_for_a_restored_one(
    vault: Vault, grant: Grant, clock: Clock
) -> None:
    """A replica began with the other one, and acknowledged its fifth version: it has none of this one's."""
    writer = vault.secrets.writer
    first = writer.delete("x", actor="ada", force=True)
    for number in range(4):
        put(vault, f"of the other {number}")
    replica = Replica(vault, grant)
    replica.report(vault, versions={"x": 4}, used={"x": 4})
    clock.advance(1)
    writer.delete("x", actor="ada", force=True)
    writer.restore(first.id, actor="ada")
    assert put(vault, "value two") == 2
    assert rotation(vault).secret_id == first.id
    assert states(vault) == ["waiting"]
    clock.advance(1)
    replica.report(vault, versions={"x": 2})
    [shown] = rotation(vault).replicas
    assert (shown.state, shown.used) == ("acknowledged", None)
