"""Leases of replicas: kept in memory, written in batches, and seen by other managers of the same vault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gusset.errors import Conflict, Denied, NotFound
from gusset.manager.live.change_feed import revision_of
from gusset.printable import printable
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.actions import Action
from gusset.vault.audit.events import AuditEvent
from gusset.vault.commit.writer import WriteResult
from gusset.vault.services.deployments import DeploymentInfo, Grant, ReplicaInfo
from gusset.vault.services.leases import LeaseReport
from gusset.vault.storage.connection import Transaction
from tests.vault.conftest import Clock, Sql


@pytest.fixture
def first(settings: Settings, clock: Clock) -> Iterator[Vault]:
    """The vault of one manager."""
    with open_vault(settings, clock=clock) as vault:
        vault.secrets.writer.set("mine", SecretValue(b"value one"), actor="ada")
        yield vault


@pytest.fixture
def second(first: Vault, settings: Settings, clock: Clock) -> Iterator[Vault]:
    """The same vault, of another manager."""
    with open_vault(settings, clock=clock) as vault:
        yield vault


@pytest.fixture
def grant(first: Vault) -> Grant:
    team = first.teams.all()[0]
    token = first.deployments.register(team.id, "d", ["mine"], actor="ada")[1]
    return first.deployments.grant(token)


def begin(vault: Vault, grant: Grant) -> tuple[str, str]:
    """Begin a lease as a delivery does; its id and session key."""

    def write(transaction: Transaction) -> WriteResult[str]:
        return WriteResult(vault.leases.begin(transaction, grant, {"mine": 1}), [])

    lease = vault._parts.writer.run(AuditEvent("gusset", Action.REPLICA_REPORT, "d"), write)
    return lease, vault.leases.session_key_of(grant, lease)


def deployment(vault: Vault, grant: Grant) -> DeploymentInfo:
    [info] = vault.deployments.of_teams([grant.team_id])
    return info


def replica(vault: Vault, grant: Grant) -> ReplicaInfo:
    [found] = deployment(vault, grant).replicas
    return found


HOLDS_ONE = LeaseReport(host="h", versions={"mine": 1})


def test_a_lease_lasts_twenty_seconds_after_its_last_renewal(
    first: Vault, grant: Grant, clock: Clock
) -> None:
    lease, key = begin(first, grant)
    assert replica(first, grant).live
    for _ in range(5):
        clock.advance(8)
        first.leases.renew(grant, lease, key, LeaseReport())
    clock.advance(19.9)
    assert replica(first, grant).live
    clock.advance(0.2)
    assert not replica(first, grant).live
    first.leases.renew(grant, lease, key, LeaseReport())  # it was only cut off
    assert replica(first, grant).live


def test_renewals_of_many_replicas_are_one_commit_that_other_managers_read(
    first: Vault, second: Vault, grant: Grant, clock: Clock
) -> None:
    leases = [begin(first, grant) for _ in range(120)]
    for lease, key in leases:
        first.leases.renew(grant, lease, key, HOLDS_ONE)
    first.leases.flush()
    clock.advance(15)
    before = first.commits()
    for lease, key in leases:
        first.leases.renew(grant, lease, key, LeaseReport())
        clock.advance(0.02)
    assert first.commits() == before
    first.leases.flush()
    assert first.commits() == before + 1
    clock.advance(10)
    found = deployment(second, grant).replicas
    assert len(found) == 120 and all(each.live and each.versions == {"mine": 1} for each in found)
    first.leases.flush()  # nothing has changed since
    assert first.commits() == before + 1


def test_a_report_counts_before_it_is_written(first: Vault, grant: Grant) -> None:
    """For the refusal to delete what is in use, and for what people see."""
    lease, key = begin(first, grant)
    with pytest.raises(Conflict, match="d"):  # it may be loading with what it was delivered
        first.secrets.writer.delete("mine", actor="ada")
    first.leases.renew(grant, lease, key, HOLDS_ONE)
    assert replica(first, grant).versions == {"mine": 1}
    with pytest.raises(Conflict, match="d"):
        first.secrets.writer.delete("mine", actor="ada")
    first.leases.renew(grant, lease, key, LeaseReport(stopped=True))
    first.secrets.writer.delete("mine", actor="ada")


def test_any_manager_renews_a_lease_and_the_newest_report_stays(
    first: Vault, second: Vault, grant: Grant, clock: Clock
) -> None:
    lease, key = begin(first, grant)
    first.leases.renew(grant, lease, key, HOLDS_ONE)
    first.secrets.writer.set("mine", SecretValue(b"value two"), actor="ada")
    clock.advance(1)
    second.leases.renew(grant, lease, key, LeaseReport(host="h", versions={"mine": 2}))
    second.leases.flush(reports_only=True)
    first.leases.flush()
    for vault in (first, second):
        assert replica(vault, grant).versions == {"mine": 2}
    clock.advance(15)
    first.leases.renew(grant, lease, key, LeaseReport())
    assert replica(first, grant).versions == {"mine": 2} and replica(first, grant).live
    with pytest.raises(Denied):
        second.leases.renew(grant, lease, key + "x", LeaseReport())
    with pytest.raises(Conflict, match="no version 3"):
        second.leases.renew(grant, lease, key, LeaseReport(used={"mine": 3}))
    second.leases.renew(grant, lease, key, LeaseReport(stopped=True))
    second.leases.flush()
    assert not replica(first, grant).live


def test_a_lease_is_renewed_at_any_manager_after_the_audit_key_was_replaced(
    first: Vault, second: Vault, settings: Settings, clock: Clock, grant: Grant
) -> None:
    """Whichever managers have been restarted since, and whether it began before or after that."""
    old = begin(first, grant)
    with open_vault(settings, clock=clock) as elsewhere:
        elsewhere.key_rotation.rotate(["audit"], actor="ada")
    with open_vault(settings, clock=clock) as restarted:
        new = begin(restarted, grant)
        for vault in (restarted, second, first):
            for lease, key in (new, old):
                vault.leases.renew(grant, lease, key, LeaseReport())
                assert vault.leases.resume(grant, key) is not None
            with pytest.raises(Denied):
                vault.leases.renew(grant, new[0], old[1], LeaseReport())
            with pytest.raises(Denied):
                vault.leases.renew(grant, new[0], new[1] + "x", LeaseReport())
        lease, key = begin(first, grant)  # with the newest key, as its writes are
        assert key == restarted.leases.session_key_of(grant, lease)


@pytest.mark.parametrize("host", ["a\0b", "a\ud800b"])
def test_a_host_that_no_database_stores_keeps_no_report_from_being_written(
    first: Vault, second: Vault, grant: Grant, host: str
) -> None:
    for (lease, key), name in zip([begin(first, grant) for _ in range(2)], (host, "h"), strict=True):
        first.leases.renew(grant, lease, key, LeaseReport(host=name, versions={"mine": 1}))
    first.leases.flush()
    written = {each.host: each.versions for each in deployment(second, grant).replicas}
    assert written == {printable(host): {"mine": 1}, "h": {"mine": 1}}
    assert not first.leases.has_reports


def test_clients_that_only_fetched_leave_nothing_behind(first: Vault, grant: Grant, clock: Clock) -> None:
    """A replica that has reported once is shown as gone for a day."""
    lease, key = begin(first, grant)
    first.leases.renew(grant, lease, key, HOLDS_ONE)
    begin(first, grant)
    for seconds, left in ((21, 1), (86_300, 1), (200, 0)):
        clock.advance(seconds)
        other, other_key = begin(first, grant)
        first.leases.renew(grant, other, other_key, LeaseReport(stopped=True))
        first.leases.flush()
        assert len([each for each in deployment(first, grant).replicas if each.id == lease]) == left
    assert not any(not each.versions and each.live for each in deployment(first, grant).replicas)
    with pytest.raises(NotFound):
        first.leases.renew(grant, lease, key, LeaseReport())


def test_equal_numbers_with_other_values_have_another_revision(
    settings: Settings, first: Vault, grant: Grant
) -> None:
    """As after an older copy of the database was restored, and another value was stored."""
    keys = frozenset({(grant.team_id, "mine")})
    poller = first.change_poller()
    found = poller.revisions(keys)
    poller.close()
    [(key, revision)] = found.items()
    other = {key: revision._replace(write_id="0" * 32)}
    assert revision.write_id and revision_of(keys, found, 1) != revision_of(keys, other, 1)
    assert revision_of(keys, found, 1) != revision_of(keys, found, 2)
    delivered = first.secrets.delivery.deliver(["mine"], actor="d", deployment="d")
    assert delivered.revisions == {"mine": revision}


@pytest.mark.sqlite("columns of PostgreSQL hold only their type")
@pytest.mark.parametrize("column", ["id", "host", "started_at", "seen_at", "reported_at", "stopped_at"])
@pytest.mark.slow
def test_a_replica_with_a_column_of_another_type_is_in_nobodys_way(
    first: Vault, grant: Grant, sql: Sql, column: str
) -> None:
    begin(first, grant)
    sql(f"UPDATE replicas SET delivered = NULL, {column} = x'00ff'")  # as of a lease of an older gusset

    assert first.rotations_of(grant.team_id, "default").get("mine").version == 1
    first.deployments.register(grant.team_id, "d", ["mine"], actor="ada")
    seen = replica(first, grant)
    assert {type(text) for text in (seen.id, seen.host, seen.started_at, seen.seen_at)} == {str}
    assert first.deployments.remove(grant.team_id, "d", actor="ada").name == "d"


@pytest.mark.parametrize("column", ["versions", "used", "delivered"])
@pytest.mark.parametrize(
    "text",
    ["[", "[1]", '{"mine": "one"}', "[" * 100_000, '{"mine": -1}', f'{{"mine": {2**70}}}', '{"\\ud800": 1}'],
    ids=lambda text: text[:16],
)
@pytest.mark.slow
def test_a_replica_with_an_altered_report_is_in_nobodys_way(
    first: Vault, grant: Grant, sql: Sql, column: str, text: str
) -> None:
    """It counts as one that has reported nothing."""
    lease, key = begin(first, grant)
    sql(f"UPDATE replicas SET {column} = ?", text)

    first.deployments.register(grant.team_id, "d", ["mine"], actor="ada")
    assert replica(first, grant).versions == {}
    assert first.rotations_of(grant.team_id, "default").get("mine").version == 1
    first.leases.renew(grant, lease, key, HOLDS_ONE)
    assert replica(first, grant).versions == {"mine": 1}
    first.deployments.remove(grant.team_id, "d", actor="ada")
    assert first.deployments.of_teams([grant.team_id]) == []
