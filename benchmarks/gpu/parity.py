"""Every backend against its reference: component by component, and whole short trajectories.

The reference of a tiny bundle is ONNX Runtime on the CPU with NumPy's loop, and that of a
full-size one PyTorch on the device, in the bundle's own precision.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.gpu.settings import LIMITS, Case, Settings
from benchmarks.gpu.subjects import begin, loops_of, pipeline
from eri_runtime.executors.base import Arrays
from eri_runtime.spec import ComponentSpec

REFERENCES = {"tiny": "cpu/numpy", "full": "torch/eager"}
# what each input is drawn from where a normal would be nothing it was made for: low and high
RANGES = {"timestep": (0, 1000), "guidance": (1, 8), "time_ids": (0, 1024), "image": (-1, 1)}
RUNS = 3  # of a loop that is compared: by then one that captures itself has
TOLD = 1500  # characters of an error
POSITIONS = ("img_ids", "txt_ids")


def reference_of(case: Case) -> str:
    """The subject that the others are compared with."""
    return REFERENCES[case.spec.scale]


def verdict(found: Arrays, expected: Arrays, kind: str, case: Case) -> dict[str, Any]:
    """`error`, `limit` and `passed`; the error of what is not finite is None."""
    error = max(_error(found[name], value) for name, value in expected.items())
    limit = LIMITS[kind][case.spec.precision]
    finite = bool(np.isfinite(error))
    return {"error": error if finite else None, "limit": limit, "passed": finite and error <= limit}


def final(pipe: eri.Pipeline, steps: int) -> Arrays:
    """The latents at the end."""
    return {"latents": list(begin(pipe, steps))[-1].x}


def compare(settings: Settings, case: Case, subject: str) -> Iterator[dict[str, Any]]:
    """The rows of one backend, `subject`: components, loops beside the reference and each other."""
    reference = reference_of(case)
    with pipeline(settings, case, reference) as pipe:
        expected = final(pipe, settings.steps)
        names = list(pipe.bundle.components) if case.spec.scale == "tiny" else ["denoiser"]
        inputs = {name: drawn(pipe.bundle.components[name]) for name in names}
        outputs = {name: pipe.run(name, each) for name, each in inputs.items()}
    about = {"against": reference}
    made: dict[str, Arrays] = {}
    for loop in loops_of(subject):
        name = f"{subject}/{loop}"
        try:
            with pipeline(settings, case, name) as pipe:
                if loop == "numpy":
                    yield from _components(pipe, subject, about, case, inputs, outputs)
                made[loop], *later = (final(pipe, settings.steps) for _ in range(RUNS))
        except Exception as error:  # the other loops may run all the same
            yield failure(name, error)
            continue
        found = verdict(made[loop], expected, "trajectory", case)
        yield {"subject": name, "what": "trajectory", **about, **found}
        if loop == "numpy":
            continue
        found = verdict(later[-1], made[loop], "loop", case)
        yield {"subject": name, "what": "again", "against": "its own first run", **found}
        if "numpy" in made:
            found = verdict(made[loop], made["numpy"], "loop", case)
            yield {"subject": name, "what": "loop", "against": f"{subject}/numpy", **found}


def _components(
    pipe: eri.Pipeline,
    subject: str,
    about: Mapping[str, str],
    case: Case,
    inputs: Mapping[str, Arrays],
    outputs: Mapping[str, Arrays],
) -> Iterator[dict[str, Any]]:
    for name, each in inputs.items():
        try:
            found = verdict(pipe.run(name, each), outputs[name], "component", case)
        except Exception as error:
            yield {**failure(subject, error), "what": name}
            continue
        yield {"subject": subject, "what": name, **about, **found}


def failure(subject: str, error: BaseException) -> dict[str, Any]:
    """The row of what raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(each.filename).name}:{each.lineno})" for each in frame)
    text = f"{type(error).__name__}: {str(error)[:TOLD]}{where}"
    return {"subject": subject, "status": "error", "error": text}


def drawn(spec: ComponentSpec) -> dict[str, Any]:
    """Inputs of a component at its best sizes, the same every time."""
    rng = np.random.default_rng(0)
    sizes = {name: each.opt for name, each in spec.ranges.items()}
    made: dict[str, Any] = {}
    for tensor in spec.inputs:
        shape = tuple(each if isinstance(each, int) else sizes[each] for each in tensor.shape)
        if tensor.dtype == "int64":
            made[tensor.name] = rng.integers(0, 100, shape)
        elif tensor.name in POSITIONS:
            made[tensor.name] = rng.integers(0, 64, shape).astype(np.float32)
        elif tensor.name in RANGES:
            made[tensor.name] = rng.uniform(*RANGES[tensor.name], shape).astype(np.float32)
        else:
            made[tensor.name] = rng.standard_normal(shape, np.float32)
    return made


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value."""
    if found.shape != expected.shape:
        return float("inf")
    largest, difference = np.abs(expected).max(), np.abs(found - expected).max()
    return float(difference / largest) if largest else float("inf")
