"""What the user decides: a bundle's sizes (`ranges`), its `precision`, and its `gate`.

It uses only the runtime's errors and bundle types, so importing it does not load torch.
"""

from eri_export.choices.gate import GATES, USUAL_GATE, USUAL_MEMORY, Gate, make_gate
from eri_export.choices.precision import (
    ALIASES,
    COMPONENTS,
    KEPT,
    TIME_EMBEDDINGS,
    VAE_HALVES,
    Policy,
    make_policy,
)
from eri_export.choices.ranges import USUAL, Ranges, RequestedSizes, make_ranges

__all__ = [
    "ALIASES",
    "COMPONENTS",
    "GATES",
    "KEPT",
    "TIME_EMBEDDINGS",
    "USUAL",
    "USUAL_GATE",
    "USUAL_MEMORY",
    "VAE_HALVES",
    "Gate",
    "Policy",
    "Ranges",
    "RequestedSizes",
    "make_gate",
    "make_policy",
    "make_ranges",
]
