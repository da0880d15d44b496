"""How much of its time a manager gives to the verification of its vault."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gusset.manager.integrity_watch import pause_seconds

PIECE = 0.005  # seconds


def test_an_idle_manager_verifies_half_of_the_time() -> None:
    assert pause_seconds(PIECE, busy=0.0, running=0.0) == pytest.approx(PIECE)
    assert pause_seconds(PIECE, busy=0.0, running=3600.0) == pytest.approx(PIECE)


def test_a_busy_manager_verifies_a_fiftieth_of_the_time_and_a_tenth_when_it_is_late() -> None:
    pauses = [pause_seconds(PIECE, busy=1.0, running=60.0 * minute) for minute in range(16)]

    assert pauses[0] == pytest.approx(50 * PIECE)
    assert pauses[10:] == pytest.approx([10 * PIECE] * 6)
    assert all(later <= earlier for earlier, later in pairwise(pauses))


def test_the_busier_a_manager_is_the_longer_are_the_pauses() -> None:
    pauses = [pause_seconds(PIECE, busy=tenths / 10, running=0.0) for tenths in range(11)]

    assert all(less < more for less, more in pairwise(pauses))
