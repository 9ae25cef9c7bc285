"""Byte counts as text."""

from __future__ import annotations

import math
import re

from eri_runtime.errors import UsageError, short

PREFIXES = "KMGT"
UNITS = {
    "": 1,
    **{f"{each}B": 10 ** (3 * power) for power, each in enumerate(PREFIXES, 1)},
    **{each: 2 ** (10 * power) for power, each in enumerate(PREFIXES, 1)},
    **{f"{each}IB": 2 ** (10 * power) for power, each in enumerate(PREFIXES, 1)},
}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def megabytes(size: int) -> str:
    """Formats a byte count in MB (1 MB = 10⁶ bytes), or in kB if it is below 0.1 MB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def parse_bytes(name: str, text: str) -> int:
    """Parses a byte count: `4GB` is 4·10⁹, `4GiB` and `4G` are 4·2³⁰, `4` is 4.

    Args:
        name: What it is for, named in the error.
        text: The byte count. Case does not matter.

    Raises:
        UsageError: If it is anything else, or 0.
    """
    match = AMOUNT.fullmatch(text.strip())
    size = float(match[1]) * UNITS.get(match[2].upper(), 0) if match else 0.0
    if size < 1 or math.isinf(size):
        raise UsageError(name, got=short(text), expected="a number of bytes, such as 4GB or 4GiB")
    return int(size)
