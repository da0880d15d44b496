"""When a replica renews its lease."""

from __future__ import annotations

import pytest

from gusset.client.replica_lease import seconds_to_renewal


@pytest.mark.parametrize("now", [0.0, 1_790_000_000.0, 1_790_000_000.1, 1_790_000_000.2499, -0.3])
def test_renewals_of_all_replicas_meet_at_quarters_of_a_second(now: float) -> None:
    """Less than 8 s after the last one, whatever the clock says; and not all replicas at the same one."""
    delays = [seconds_to_renewal(now) for _ in range(500)]
    assert all(7.0 <= delay <= 7.8 for delay in delays)
    quarters = {round((now + delay) * 4, 3) for delay in delays}
    assert all(quarter == round(quarter) for quarter in quarters)
    assert len(quarters) >= 3
