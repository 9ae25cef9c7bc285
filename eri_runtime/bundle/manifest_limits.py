"""The numbers that a manifest may hold, so that all later code can count, divide and allocate.

A number without an entry here is a count, if it is an integer, or else any finite float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eri_runtime.bundle.component_spec import ComponentSpec, ShapeRange, TensorSpec
from eri_runtime.bundle.level_spec import LevelSpec
from eri_runtime.bundle.schedule_spec import ScheduleSpec
from eri_runtime.bundle.spec import Defaults, FileRecord, LatentSpec, PlanSpec, TokenizerSpec

Limits = tuple[float, float]  # the smallest and the largest value

COUNT: Limits = (0, 1 << 53)  # what a float still counts exactly
FINITE: Limits = (-1e30, 1e30)  # within float32, with room for arithmetic
POSITIVE: Limits = (1e-12, 1e12)
FRACTION: Limits = (0, 1)
STEPS: Limits = (1, 1_000_000)
SIZE: Limits = (1, (1 << 31) - 1)  # what engines take

LIMITS: Mapping[type, Mapping[str, Limits]] = {
    ShapeRange: {"min": SIZE, "opt": SIZE, "max": SIZE},
    TensorSpec: {"shape": SIZE},
    ComponentSpec: {"attention_slice": SIZE},
    TokenizerSpec: {"max_length": (2, 1 << 16), "pad_id": (0, (1 << 31) - 1)},
    LatentSpec: {
        "channels": (1, 1024),
        "factor": (1, 256),
        "patch": (1, 64),
        "scale": POSITIVE,
        "std": POSITIVE,
    },
    Defaults: {
        "num_inference_steps": STEPS,
        "height": SIZE,
        "width": SIZE,
        "max_sequence_length": (0, 1 << 16),
        "clip": POSITIVE,
    },
    FileRecord: {"size": (0, 1 << 62)},
    PlanSpec: {"level": (0, 100)},
    LevelSpec: {"original_steps": STEPS, "sigma_min": (0, 1e12), "sigma_max": POSITIVE},
    ScheduleSpec: {
        "num_train_timesteps": STEPS,
        "steps_offset": (0, 1_000_000),
        "beta_start": FRACTION,
        "beta_end": FRACTION,
        "trained_betas": FRACTION,
        "shift": (1e-6, 1e6),
        "base_shift": (-100, 100),
        "max_shift": (-100, 100),
        "base_tokens": SIZE,
        "max_tokens": SIZE,
        "shift_terminal": FRACTION,
        "sigma_min": POSITIVE,
        "sigma_max": POSITIVE,
        "sigma_data": POSITIVE,
        "rho": POSITIVE,
    },
}


def number_out_of_limits(record: type, field: str, value: Any) -> tuple[float, str] | None:
    """Returns the first number of a field that is not allowed, and which are; None if all are.

    Args:
        record: The dataclass that the field belongs to.
        field: Its name.
        value: Its value, already of the annotated type; numbers in tuples and mappings count too.
    """
    own = LIMITS.get(record, {}).get(field)
    for number in _numbers(value):
        low, high = own or (COUNT if isinstance(number, int) else FINITE)
        if not low <= number <= high:
            return number, f"a number, {low:g} to {high:g}"
    return None


def _numbers(value: Any) -> Iterator[float]:
    """Yields the numbers in a value, its tuples and its mappings; a bool is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(each)
