"""What the benchmarks share: interleaved rounds, medians and ratios, a Markdown table.

A machine's speed drifts; so everything that is compared is measured in turns
(A B C A B C ...), and what is quoted is the median and the ratio within rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from gusset import is_compiled


def interleave(parts: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """One figure of each part per round, in turns; name -> figures in order of rounds."""
    results: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, once in parts.items():
            results[name].append(once())
    return results


def print_bare_python() -> None:
    """Print the processor time of `python -c pass`: how fast this machine is now, to compare figures of several runs."""
    least = min(_bare_python() for _ in range(30))
    print(f"\n`python -c pass` takes {least:.1f} ms of processor time, the least of 30.")


def _bare_python() -> float:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return (used.ru_utime + used.ru_stime) * 1000


def table(
    title: str, unit: str, results: Mapping[str, Sequence[float]], against: str, digits: int = 0
) -> None:
    """Print median, least, most, and the median of the ratios to `against` within each round."""
    print(f"\n### {title}{' (gusset compiled)' if is_compiled() else ''}\n")
    print(f"| what | median {unit} | min | max | × {against} |")
    print("|---|---:|---:|---:|---:|")
    for name, figures in results.items():
        ratio = statistics.median(a / b for a, b in zip(figures, results[against], strict=True))
        cells = [f"{f(figures):,.{digits}f}" for f in (statistics.median, min, max)]
        print(f"| {name} | {' | '.join(cells)} | {ratio:,.2f} |")
