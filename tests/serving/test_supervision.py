"""What the supervisors of models and of images have in common."""

from __future__ import annotations

import logging
import time

import pytest

from gusset.backoff import Backoff
from gusset.runtime.supervision import Announcer, RestartBackoff, SecretIntake
from gusset.secrets.recent_values import REMEMBERED
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import SecretValue


@pytest.fixture(autouse=True)
def _propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `caplog` see the records, also after a test that has configured the logger."""
    monkeypatch.setattr(logging.getLogger("gusset"), "propagate", True)


def test_each_delay_is_twice_the_one_before_up_to_the_longest() -> None:
    backoff = Backoff(0.5, longest=3)
    assert [backoff.next_delay() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    backoff.reset()
    assert backoff.next_delay() == 0.5


def test_only_a_replica_that_was_ready_for_long_resets_the_restart_backoff() -> None:
    """One that fails after a slow start, or soon after it was ready, waits longer each time."""
    backoff, now = RestartBackoff(), time.monotonic()

    def delay_after_end(started_at: float, *, was_ready: bool) -> float:
        backoff.note_end(started_at=started_at, was_ready=was_ready)
        return backoff.next_delay()

    first = delay_after_end(now, was_ready=True)
    assert delay_after_end(now - 3600, was_ready=False) == 2 * first
    assert delay_after_end(now, was_ready=True) == 4 * first
    assert delay_after_end(now - 3600, was_ready=True) == first


def test_the_address_is_announced_once_even_if_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Standard output may be closed: the deployment is served all the same."""
    announced = []

    def announce(address: str) -> None:
        announced.append(address)
        raise BrokenPipeError(32, "Broken pipe")

    announcer = Announcer("http://127.0.0.1:8080", announce)
    assert not announcer.is_done
    announcer.announce()
    announcer.announce()
    assert announcer.is_done
    assert announced == ["http://127.0.0.1:8080"]
    assert "Broken pipe" in caplog.text


def test_the_masker_knows_each_accepted_value() -> None:
    intake = SecretIntake()
    intake.accept(_values(token=b"the-first-value"))
    intake.accept(_values(token=b"the-second-value"))
    assert intake.masker.mask(b"the-first-value the-second-value") == b"*** ***"


def test_the_masker_forgets_values_of_long_ago() -> None:
    """Else a server whose secrets are rotated for months would grow. The last changes stay masked."""
    intake = SecretIntake()
    rotated = [b"value number %04d" % number for number in range(100)]
    for count, value in enumerate(rotated, 1):
        intake.accept(_values(token=value, other=b"a value that stays"))
        masked = [intake.masker.mask(each) == b"***" for each in rotated[:count]]
        assert all(masked[-REMEMBERED:])
        assert sum(masked) < 2 * REMEMBERED
        assert intake.masker.mask(b"a value that stays") == b"***"


def test_the_masker_keeps_values_that_a_slow_replica_may_use() -> None:
    """However many changes follow; once it has swapped, they are forgotten."""
    intake = SecretIntake()
    rotated = [b"value number %04d" % number for number in range(100)]
    for number, value in enumerate(rotated[:80]):
        intake.accept(_values(token=value), number=number, in_use=min(number, 40))
    assert intake.masker.mask(b" ".join(rotated[40:80])) == b" ".join([b"***"] * 40)
    for number, value in enumerate(rotated[80:], 80):
        intake.accept(_values(token=value), number=number, in_use=number)
    assert intake.masker.mask(rotated[40]) == rotated[40]


def test_what_brings_no_new_value_makes_the_masker_forget_none() -> None:
    """The end of an overlap is one such change, and an attempt that is repeated."""
    intake = SecretIntake()
    intake.accept(_values(token=b"the-first-value"))
    for _ in range(10 * REMEMBERED):
        intake.accept(_values(token=b"the-second-value"))
    assert intake.masker.mask(b"the-first-value") == b"***"


def test_each_warning_about_a_value_is_given_once_per_name(caplog: pytest.LogCaptureFixture) -> None:
    """A rotation of one secret repeats nothing about the others, and a new name is warned of."""
    intake = SecretIntake()
    for values in ({"a": b"tiny"}, {"a": b"wee"}, {"a": b"wee", "b": b"short"}):
        with caplog.at_level(logging.WARNING):
            intake.accept(_values(**values))
    warnings = [record.getMessage() for record in caplog.records]
    assert [text.rpartition(": ")[2] for text in warnings if "Too short" in text] == ["a", "b"]
    exposed = [text for text in warnings if "environment" in text]
    assert ["TRUSS_SECRET_a" in text for text in exposed] == [True, False]
    assert ["TRUSS_SECRET_b" in text for text in exposed] == [False, True]


def _values(**values: bytes) -> dict[str, Delivered]:
    return {
        name: Delivered(SecretValue(value), None, f"TRUSS_SECRET_{name}") for name, value in values.items()
    }
