"""The memory that a comparison may take, and what of a network fits in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eri_export.choices import Gate
from eri_export.machine import resident_memory

# of a network that is run in one piece, or of a part: float32 in PyTorch; or the file's bytes, a
# float32 copy and one in the order that an engine multiplies in
BYTES_PER_PARAMETER = 10

LEAST = 64_000_000  # bytes: what a comparison takes at least, whatever the process has loaded


@dataclass(frozen=True)
class Window:
    """The bytes left for a comparison."""

    nbytes: int

    def holds(self, parameters: int) -> bool:
        """Returns whether a network of so many parameters can be run in one piece."""
        return BYTES_PER_PARAMETER * parameters <= self.nbytes

    def parts(self, parameters: int) -> int:
        """Returns the number of equal parts to run such a network in."""
        return math.ceil(BYTES_PER_PARAMETER * parameters / self.nbytes)


def window_of(gate: Gate) -> Window:
    """Returns what is left of the gate's memory beside all that the process has loaded."""
    return Window(max(LEAST, gate.memory - resident_memory()))
