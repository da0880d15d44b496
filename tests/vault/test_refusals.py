"""Repeated refusals are recorded in sums: nobody fills the audit log by being refused."""

from __future__ import annotations

from gusset.vault.audit.actions import Action
from gusset.vault.audit.actor import Actor
from gusset.vault.audit.events import AuditEvent
from gusset.vault.audit.refusals import MAX_SUMS, MAX_TARGETS, WINDOW, RefusalSums


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refusal(address: str = "192.0.2.1", target: str = "GET /v1/secrets") -> AuditEvent:
    return AuditEvent(Actor("somebody", address), Action.REQUEST_REFUSE, target, outcome="not_signed_in")


def test_the_first_is_recorded_at_once_and_then_one_sum_for_each_window() -> None:
    clock = Clock()
    sums = RefusalSums(clock)
    assert len(sums.admit([refusal()])) == 1
    for _ in range(3):
        for _ in range(500):
            assert sums.admit([refusal()]) == []
        assert sums.take_due() == []
        clock.now += WINDOW
        [event] = sums.take_due()
        assert event.stored_details() == {"repeated": 500, "seconds": 60, "from": "192.0.2.1"}
    clock.now += WINDOW
    assert sums.take_due() == []
    assert len(sums.admit([refusal()])) == 1  # a window without any has passed


def test_sums_that_could_not_be_recorded_are_counted_again() -> None:
    sums = RefusalSums()
    for _ in range(10):
        sums.admit([refusal()])
    sums.put_back(sums.take_due(all_of_them=True))
    sums.admit([refusal()])
    [event] = sums.take_due(all_of_them=True)
    assert event.details["repeated"] == 10


def test_what_succeeds_is_always_recorded() -> None:
    done = AuditEvent("ada", Action.SECRET_WRITE, "x")
    assert RefusalSums().admit([done, done]) == [done, done]


def test_many_addresses_and_targets_are_counted_in_bounded_memory() -> None:
    """None is lost: those recorded and those in sums are all there were."""
    sums = RefusalSums()
    recorded = sum(len(sums.admit([refusal(f"address {number}")])) for number in range(5000))
    assert recorded == MAX_SUMS + 1
    recorded += sum(len(sums.admit([refusal("a 2nd", f"GET /{number}")])) for number in range(5000))
    events = sums.take_due(all_of_them=True)
    assert recorded + sum(event.details["repeated"] for event in events) == 10_000
    assert len(events) <= MAX_SUMS


def test_one_caller_has_few_records_however_many_targets() -> None:
    sums = RefusalSums()
    recorded = sum(len(sums.admit([refusal(target=f"secret {number}")])) for number in range(3000))
    assert recorded == MAX_TARGETS + 1
