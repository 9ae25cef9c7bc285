"""What the user decides: the sizes a bundle serves (`ranges`) and its `precision`.

It uses only the runtime's errors and bundle types, so importing it does not load torch.
"""

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
    "KEPT",
    "TIME_EMBEDDINGS",
    "USUAL",
    "VAE_HALVES",
    "Policy",
    "Ranges",
    "RequestedSizes",
    "make_policy",
    "make_ranges",
]
