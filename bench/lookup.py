"""What looking a secret up costs, beside a plain dict.

    python bench/lookup.py

Prints a markdown table: nanoseconds per look-up, the median of 15 rounds of
200,000 look-ups each.
"""

from __future__ import annotations

import statistics
import timeit

from gusset.secrets.mapping import Secrets
from gusset.secrets.value import SecretValue

ROUNDS, LOOKUPS = 15, 200_000


def nanoseconds(statement: str, names: dict[str, object]) -> float:
    timer = timeit.Timer(statement, globals=names)
    return statistics.median(timer.repeat(ROUNDS, LOOKUPS)) / LOOKUPS * 1e9


def main() -> None:
    values = {f"secret_{i}": f"value-{i}".encode() for i in range(20)}
    held = Secrets([*values, "unset"], {name: SecretValue(value) for name, value in values.items()})
    names: dict[str, object] = {"s": held, "plain": {name: held[name] for name in held}}
    print("| look-up | ns |\n| --- | --- |")
    for statement in (
        'plain["secret_7"]',
        's["secret_7"]',
        's.get("secret_7")',
        's.get("unset")',
        '"secret_7" in s',
        's.bytes("secret_7")',
    ):
        print(f"| `{statement}` | {nanoseconds(statement, names):.0f} |")


if __name__ == "__main__":
    main()
