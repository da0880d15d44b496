"""The figures of `/metrics`."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, Metric, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gusset.vault.audit.continuous import Integrity

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, float("inf"))


class _Requests(Collector):
    """Requests by route and status, and their times by route.

    Counted without the locks of the library's own metrics, since only the event loop's thread counts.
    """

    def __init__(self) -> None:
        self._since = time.time()
        self._counts: Counter[tuple[str, int]] = Counter()
        self._in_buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def count(self, route: str, status: int, seconds: float) -> None:
        self._counts[route, status] += 1
        buckets = self._in_buckets.get(route)
        if buckets is None:
            buckets = self._in_buckets[route] = [0] * len(_BUCKETS)
            self._seconds[route] = 0.0
        buckets[bisect_left(_BUCKETS, seconds)] += 1
        self._seconds[route] += seconds

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "gusset_http_requests", "Requests by route and status.", labels=("route", "status")
        )
        for (route, status), number in self._counts.items():
            requests.add_metric((route, str(status)), number, created=self._since)
        yield requests
        times = HistogramMetricFamily(
            "gusset_http_request_seconds", "Duration of requests.", labels=("route",)
        )
        for route, buckets in self._in_buckets.items():
            limits = map(floatToGoString, _BUCKETS)
            sums = zip(limits, accumulate(buckets), strict=True)
            times.add_metric((route,), list(sums), self._seconds[route])
            times.add_sample(f"{times.name}_created", {"route": route}, self._since)
        yield times


class Metrics:
    """The figures of `/metrics`, for Prometheus. Their labels are routes and statuses, never names."""

    def __init__(self, streams: Callable[[], float], integrity: Callable[[], Integrity]) -> None:
        """`streams` is the number of open streams of changes; `integrity`, what verification has found."""
        self.registry = CollectorRegistry()
        self._requests = _Requests()
        self.registry.register(self._requests)
        Gauge(
            "gusset_watch_streams", "Replicas that watch for changes.", registry=self.registry
        ).set_function(streams)
        Gauge(
            "gusset_integrity_problems",
            "Records and rows of the vault that were altered, removed or rolled back.",
            registry=self.registry,
        ).set_function(lambda: len(integrity().problems))
        verified = Gauge(
            "gusset_integrity_verified_timestamp_seconds",
            "When new audit records, and all signed rows, were last verified; 0 before the first time.",
            ("what",),
            registry=self.registry,
        )
        verified.labels("records").set_function(lambda: _seconds_of(integrity().records_at))
        verified.labels("rows").set_function(lambda: _seconds_of(integrity().rows_at))

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.count(route, status, seconds)

    def exposition(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry)


def _seconds_of(at: str | None) -> float:
    return datetime.fromisoformat(at).timestamp() if at else 0.0
