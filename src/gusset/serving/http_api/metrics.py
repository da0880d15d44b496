"""Metrics for Prometheus: counted while requests pass, rendered when they are scraped.

The text is written here rather than by `prometheus_client`: importing that
library costs each worker 2 MB and stops its event loop for 15 ms at the first
scrape, and afterwards gusset could no longer see whether the model itself uses
it. No label value needs escaping: routes are constants, names of secrets have
neither quotes nor backslashes.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from gusset.runtime.caller_auth import CallerAuth
from gusset.runtime.exchange import Exchange
from gusset.runtime.exposition import caller_metrics, head, masked_metrics
from gusset.secrets.hits import Hit

# The upper bounds of the histogram's buckets, in seconds.
_BOUNDS: Final[Sequence[float]] = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class _RouteFigures:
    """The requests of one route: by status, by duration, and all their seconds."""

    __slots__ = ("buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: defaultdict[int, int] = defaultdict(int)
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0


class Metrics:
    """Requests by route and status, and their durations; `observe` is called for each that is over."""

    def __init__(
        self,
        versions: Callable[[], Mapping[str, int | None]],
        hits: Callable[[], Mapping[Hit, int]],
        *,
        mask: Callable[[bytes], bytes],
        caller_auth: CallerAuth | None,
    ) -> None:
        """`versions`: those of the secrets that the model holds. `hits`: how often values were masked.

        `mask` masks the model's own metrics. `caller_auth` counts the requests of callers.
        """
        self._versions = versions
        self._hits = hits
        self._caller_auth = caller_auth
        self._mask = mask
        self._routes: dict[str, _RouteFigures] = {}

    def observe(self, exchange: Exchange, status: int) -> None:
        """Count a request that is over. Probes, which have no `route`, are not counted."""
        route = exchange.route
        if route is None:
            return
        seconds = perf_counter() - exchange.received_at
        figures = self._routes.get(route)
        if figures is None:
            figures = self._routes[route] = _RouteFigures()
        figures.statuses[status] += 1
        figures.buckets[bisect_left(_BOUNDS, seconds)] += 1
        figures.seconds += seconds

    def exposition(self, *, waiting: int, source_is_up: bool) -> bytes:
        """All metrics in Prometheus's text format, followed by those that the model has registered."""
        lines = [
            *head("gusset_requests_total", "counter", "Finished requests by route and status."),
            *(
                f'gusset_requests_total{{route="{route}",status="{status}"}} {count}'
                for route, figures in sorted(self._routes.items())
                for status, count in sorted(figures.statuses.items())
            ),
            *head(
                "gusset_request_seconds", "histogram", "From a complete request to the end of its response."
            ),
            *(line for route, figures in self._routes.items() for line in _histogram(route, figures)),
            *head("gusset_requests_waiting", "gauge", "Predictions that wait for a slot."),
            f"gusset_requests_waiting {waiting}",
            *head("gusset_model_ready", "gauge", "Whether the model has loaded."),
            "gusset_model_ready 1",
            *head("gusset_secret_version", "gauge", "The version of each secret that the model holds."),
            *(
                f'gusset_secret_version{{name="{name}"}} {version}'
                for name, version in sorted(self._versions().items())
                if version is not None
            ),
            *masked_metrics(self._hits()),
            *head("gusset_secrets_source_up", "gauge", "Whether changes of secrets reach this deployment."),
            f"gusset_secrets_source_up {int(source_is_up)}",
            *caller_metrics(self._caller_auth),
        ]
        model = self._mask(_model_exposition())
        if b"\n# TYPE process_cpu_seconds_total " not in model:
            lines += _process_metrics()
        return "\n".join(lines).encode() + b"\n" + model


def _histogram(route: str, figures: _RouteFigures) -> Iterator[str]:
    total = 0
    for bound, count in zip((*map(str, _BOUNDS), "+Inf"), figures.buckets, strict=True):
        total += count
        yield f'gusset_request_seconds_bucket{{route="{route}",le="{bound}"}} {total}'
    yield f'gusset_request_seconds_sum{{route="{route}"}} {figures.seconds:.6f}'
    yield f'gusset_request_seconds_count{{route="{route}"}} {total}'


def _process_metrics() -> list[str]:
    """The worker's own figures, by the names and with the meanings that Prometheus's clients use."""
    own = Path("/proc/self")
    fields = (own / "stat").read_bytes().rpartition(b") ")[2].split()  # from the third field of proc(5) on
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / ticks
    figures: tuple[tuple[str, str, str, float], ...] = (
        (
            "cpu_seconds_total",
            "counter",
            "CPU time of the worker.",
            (int(fields[11]) + int(fields[12])) / ticks,
        ),
        ("resident_memory_bytes", "gauge", "Resident memory of the worker.", int(fields[21]) * page),
        ("virtual_memory_bytes", "gauge", "Virtual memory of the worker.", int(fields[20])),
        ("start_time_seconds", "gauge", "When the worker was started, since the epoch.", round(started, 2)),
        ("open_fds", "gauge", "Open file descriptors of the worker.", len(list((own / "fd").iterdir()))),
        ("max_fds", "gauge", "How many file descriptors the worker may open.", most_files),
    )
    lines: list[str] = []
    for name, kind, text, value in figures:
        lines += (*head(f"process_{name}", kind, text), f"process_{name} {value}")
    return lines


def _model_exposition() -> bytes:
    """What the model has registered with `prometheus_client`, if it has imported that."""
    library = sys.modules.get("prometheus_client")
    if library is None:
        return b""
    exposition: bytes = library.generate_latest()
    return exposition
