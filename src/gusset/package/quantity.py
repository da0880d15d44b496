"""Amounts of CPU, memory and time as `config.yaml` writes them.

Checking a folder and serving it use the same functions, so that what
`gusset check` accepts can be served.
"""

from __future__ import annotations

import math

_MEMORY_UNITS = {
    **{unit: 1000**power for power, unit in enumerate("kMGTPE", start=1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
MEMORY_UNITS = tuple(_MEMORY_UNITS)

MAX_SECONDS = 10**9
"""The longest duration: longer than any process lives, and short enough for every clock."""

# Container engines take nanoseconds of CPU per second, and bytes, as signed 64-bit integers.
_MAX = 2**63 - 1
_MAX_CORES = _MAX // 10**9


def parse_cpu(text: str) -> float:
    """The number of cores: `"2"`, `"1.5"`, `"1e3"`, or `"500m"` for thousandths of a core.

    Raises:
        ValueError: `text` is not an amount of CPU; the exception does not contain it.
    """
    thousandths = text.endswith("m")
    cores = _plain_number(text[:-1]) / 1000 if thousandths else _number(text)
    return _in_range(cores, _MAX_CORES)


def parse_memory(text: str) -> int:
    """The number of bytes: `"1024"`, `"1e9"`, or a decimal number and a unit, as in `"2Gi"` and `"1.5G"`.

    Raises:
        ValueError: `text` is not an amount of memory; the exception does not contain it.
    """
    for unit in sorted(_MEMORY_UNITS, key=len, reverse=True):
        if text.endswith(unit):
            return int(_in_range(_plain_number(text.removesuffix(unit)) * _MEMORY_UNITS[unit], _MAX))
    return int(_in_range(_number(text), _MAX))


def _number(text: str) -> float:
    """What `float` reads; it ignores outer spaces, as Truss does."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("not a number") from None


def _plain_number(text: str) -> float:
    """Digits with at most one point: before a unit there is no sign, exponent or space."""
    if not text.isascii() or not text.replace(".", "", 1).isdigit():
        raise ValueError("not a number")
    return float(text)


def _in_range(number: float, largest: int) -> float:
    if math.isfinite(number) and 0 <= number < largest:
        return number
    raise ValueError("out of range")
