"""What Prometheus is told: counted here while requests pass, written down when it asks."""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping

from gusset.runtime.exchange import Exchange

_BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)  # seconds


class Metrics:
    """Requests by route and status, and how long they took; `observe` is called for each that is over."""

    def __init__(self, versions: Callable[[], Mapping[str, int | None]]) -> None:
        """`versions`: those of the secrets that the model holds."""
        self._versions = versions
        self._requests: Counter[tuple[str, int]] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def observe(self, exchange: Exchange, status: int) -> None:
        """A request is over; one that is not counted is somebody's probe."""
        route = exchange.counted_as
        if route is None:
            return
        seconds = time.perf_counter() - exchange.began
        self._requests[route, status] += 1
        latencies = self._latencies.get(route)
        if latencies is None:
            latencies = self._latencies[route] = [0] * (len(_BOUNDS) + 1)
            self._seconds[route] = 0.0
        latencies[bisect_left(_BOUNDS, seconds)] += 1
        self._seconds[route] += seconds

    def exposition(self, *, waiting: int, source_is_up: bool) -> bytes:
        """All of it in Prometheus's text format, with what the model itself has registered."""
        lines = [
            *_head("gusset_requests_total", "counter", "Requests answered, by route and status."),
            *(
                f'gusset_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self._requests.items())
            ),
            *_head(
                "gusset_request_seconds", "histogram", "From a complete request to the end of its answer."
            ),
            *(line for route in self._latencies for line in self._histogram(route)),
            *_head("gusset_requests_waiting", "gauge", "Predictions that wait for their turn."),
            f"gusset_requests_waiting {waiting}",
            *_head("gusset_model_ready", "gauge", "Whether the model has loaded."),
            "gusset_model_ready 1",
            *_head("gusset_secret_version", "gauge", "The version of each secret that the model holds."),
            *(
                f'gusset_secret_version{{name="{name}"}} {version}'
                for name, version in sorted(self._versions().items())
                if version is not None
            ),
            *_head("gusset_secrets_source_up", "gauge", "Whether changes of secrets can be heard of."),
            f"gusset_secrets_source_up {int(source_is_up)}",
        ]
        return "\n".join(lines).encode() + b"\n" + _of_the_model()

    def _histogram(self, route: str) -> list[str]:
        total, lines = 0, []
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._latencies[route], strict=True):
            total += count
            lines.append(f'gusset_request_seconds_bucket{{route="{route}",le="{bound}"}} {total}')
        lines.append(f'gusset_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}')
        lines.append(f'gusset_request_seconds_count{{route="{route}"}} {total}')
        return lines


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _of_the_model() -> bytes:
    """What the model has registered with Prometheus's own library, if it has imported it."""
    library = sys.modules.get("prometheus_client")
    if library is None:
        return b""
    exposed: bytes = library.generate_latest()
    return exposed
