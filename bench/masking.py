"""How fast a stream of log lines is masked, and what the masker costs to build and hold.

    python bench/masking.py [MEGABYTES [CHECKOUT]]

The data are log lines with addresses, ids and JSON. One line in 1,000 contains a
secret, as it is or encoded. Prints a Markdown table of MB per second of processor
time, the best of five runs: `mask` of chunks of 64 KiB, streams of chunks of 64
and 4 KiB, and the time for a line that arrives by itself; without hyperscan, and
with it where it is used. With the folder of another checkout, that one's gusset is
measured too, in turns, and the ratios to it are in parentheses. Then what `python -c pass`
takes on this machine, and the cost of ten values of 64 KiB.
"""

from __future__ import annotations

import base64
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from gusset.secrets.masking import Masker
from gusset.secrets.value import MAX_BYTES, SecretValue

RUNS = 5
ROUNDS = 3
SRC = Path(__file__).resolve().parents[1] / "src"
COUNTS = (1, 10, 100, 1_000, 10_000)
WITH_HYPERSCAN = (10, 100, 1_000)
RATES = range(3, 6)  # of the figures of `measure`; the one that follows is a time
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def make_secrets(count: int, rng: random.Random) -> list[bytes]:
    def word(length: int) -> str:
        return "".join(rng.choices(ALPHABET, k=length))

    kinds: Sequence[Callable[[], str]] = (
        lambda: f"hf_{word(34)}",
        lambda: f"sk-proj-{word(48)}",
        lambda: word(24),
        lambda: f"postgresql://app:{word(16)}@db.internal/main",
        lambda: rng.randbytes(20).hex(),
    )
    return [kinds[number % len(kinds)]().encode() for number in range(count)]


def make_log(size: int, secrets: Sequence[bytes], rng: random.Random) -> bytes:
    lines, length = [], 0
    while length < size:
        number = len(lines)
        line = (
            f"2026-01-02T03:04:{number % 60:02}.{rng.randrange(1000):03}Z INFO "
            f"request={rng.getrandbits(64):016x} POST /v1/models/model:predict 200 {rng.random() * 90:.2f}ms "
            f'{{"user": "user{number}@example.com", "url": "https://api.example.com/v1/items/{rng.randrange(10**6)}"}}\n'
        ).encode()
        if secrets and number % 1_000 == 999:
            secret = rng.choice(secrets)
            line = (
                b"token="
                + rng.choice([secret, base64.b64encode(secret), secret.hex().encode()])
                + b" "
                + line
            )
        lines.append(line)
        length += len(line)
    return b"".join(lines)


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def speed(mask: Callable[[list[bytes]], object], parts: list[bytes]) -> float:
    """MB/s, the best of several runs."""
    best = float("inf")
    for _ in range(RUNS):
        begin = time.process_time()
        mask(parts)
        best = min(best, time.process_time() - begin)
    return sum(map(len, parts)) / best / 1e6


def whole(masker: Masker) -> Callable[[list[bytes]], object]:
    return lambda parts: [masker.mask(part) for part in parts]


def streamed(masker: Masker) -> Callable[[list[bytes]], object]:
    def mask(parts: list[bytes]) -> None:
        stream = masker.stream()
        for part in parts:
            stream.feed(part)
        stream.flush()

    return mask


def main() -> None:
    from measure import print_bare_python  # not in `measure`: an older gusset may lack what it imports

    megabytes = sys.argv[1] if len(sys.argv) > 1 else "16"
    versions = {"automaton": SRC, "hyperscan": SRC}
    if len(sys.argv) > 2:
        versions = {"before": Path(sys.argv[2]) / "src", **versions}
    print(
        "| secrets | search | learn, ms | compile, ms | memory, MiB | whole, MB/s | stream 64 KiB | stream 4 KiB "
        "| line, µs |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for count in COUNTS:
        used = {name: src for name, src in versions.items() if name != "hyperscan" or count in WITH_HYPERSCAN}
        rounds = [
            {name: run_apart(src, megabytes, str(count), name) for name, src in used.items()}
            for _ in range(ROUNDS)
        ]
        for name in used:
            print(f"| {count:,} | {name} | {' | '.join(cells(rounds, name))} |", flush=True)
    print_bare_python()
    large_values(random.Random(7), int(megabytes) * 1_000_000)


def cells(rounds: list[dict[str, list[float]]], name: str) -> list[str]:
    """The best of each figure; in parentheses the median of its ratios to "before" within the rounds."""
    shown = []
    for at in range(len(rounds[0][name])):
        figures = [each[name][at] for each in rounds]
        figure = max(figures) if at in RATES else min(figures)
        text = f"{figure:.2f}" if figure < 10 else f"{figure:,.0f}"
        if "before" in rounds[0] and name != "before" and at >= RATES.start:
            text += f" ({median(each[name][at] / each['before'][at] for each in rounds):.2f})"
        shown.append(text)
    return shown


def run_apart(src: Path, *arguments: str) -> list[float]:
    """The figures of `measure`, from a process of its own that imports gusset from `src`."""
    command = [sys.executable, __file__, *arguments, "measure"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(src)}, check=True, capture_output=True
    )
    return [float(word) for word in done.stdout.split()]


def measure(megabytes: str, count: str, search: str) -> list[float]:
    if search != "hyperscan":
        sys.modules["hyperscan"] = None  # type: ignore[assignment]  # importing it fails
    rng = random.Random(7)
    secrets = make_secrets(int(count), rng)
    data = make_log(int(megabytes) * 1_000_000, secrets, rng)
    lines = data.splitlines(keepends=True)[:20_000]
    parts, small_parts = chunks(data, 65_536), chunks(data, 4_096)
    before, begin = resident(), time.process_time()
    masker = Masker(map(SecretValue, secrets))
    learned = (time.process_time() - begin) * 1e3
    begin = time.process_time()
    if search == "hyperscan":
        masker._index.search.compile()
    compiled = (time.process_time() - begin) * 1e3
    grown = (resident() - before) / 2**20
    rates = [
        speed(whole(masker), parts),
        speed(streamed(masker), parts),
        speed(streamed(masker), small_parts),
    ]
    each = sum(map(len, lines)) / speed(streamed(masker), lines) / len(lines)
    return [learned, compiled, grown, *rates, each]


def large_values(rng: random.Random, size: int) -> None:
    data = make_log(size, (), rng)
    values = [SecretValue(rng.randbytes(MAX_BYTES)) for _ in range(10)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    masker = Masker(values)
    learned = (time.process_time() - begin) * 1e3
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rate = speed(streamed(masker), chunks(data, 65_536))
    print(
        f"\nTen random values of 64 KiB: learned in {learned:.0f} ms, "
        f"peak memory +{grown:.0f} MiB, {rate:,.0f} MB/s"
    )


if __name__ == "__main__":
    if sys.argv[-1] == "measure":
        print(*measure(*sys.argv[1:-1]))
    else:
        main()
