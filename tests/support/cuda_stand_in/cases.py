"""Components of the tiny checkpoints, each exported by itself to run on the stand-in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np

import eri_export
from eri_export.choices import USUAL
from eri_export.graphs.recipes.base import Recipe
from eri_export.graphs.trace import trace
from eri_export.plan.plan import make_plan, spec_of
from eri_runtime.bundle import COMPONENTS, ComponentSpec, Precision
from eri_runtime.executors import Array, Layout, Row, even_layout
from eri_runtime.executors.base import Arrays
from eri_runtime.executors.ort.provider import graph_for
from eri_runtime.sampling import COLUMNS, MAX_V, MAX_W
from tests.support import checkpoints
from tests.support.components import STATIC, write_component
from tests.support.once import once
from tests.support.trace_cache import cached

FAMILIES = ("sdxl", "sd35", "flux")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
USUAL_PRECISION: dict[str, Precision] = {"sdxl": "fp16", "sd35": "fp16", "flux": "bf16"}


@dataclass(frozen=True)
class Case:
    """One component: of which family, in which precision, with which sizes and graphs.

    A `plain` one has no CUDA form.
    """

    family: str
    precision: Precision
    component: str
    static: bool = False
    plain: bool = False

    def __str__(self) -> str:
        sizes = "static" if self.static else "dynamic"
        plain = "-plain" if self.plain else ""
        return f"{self.family}-{self.precision}-{self.component}-{sizes}{plain}"


# every component of every family and precision, with dynamic sizes
COMPONENT_CASES = tuple(
    Case(family, precision, component)
    for family in FAMILIES
    for precision in PRECISIONS
    for component in COMPONENTS[family]
)
STATIC_CASES = tuple(
    Case(family, USUAL_PRECISION[family], "denoiser", static=True) for family in FAMILIES
)
DYNAMIC_CASES = tuple(Case(family, USUAL_PRECISION[family], "denoiser") for family in FAMILIES)
STEP_CASES = (
    *(case for case in COMPONENT_CASES if case.component == "denoiser"),
    *STATIC_CASES,
)


@dataclass(frozen=True)
class Opened:
    """An exported component: its graph, and the step graph beside it if it is a denoiser."""

    recipe: Recipe
    folder: Path

    @property
    def graph(self) -> Path:
        """The component's graph, or its CUDA form if it has one."""
        return graph_for(self.folder / "model.onnx", "cuda")

    @property
    def step(self) -> Path:
        """The step graph, or its CUDA form if it has one."""
        return graph_for(self.folder / "step.onnx", "cuda")

    @cached_property
    def spec(self) -> ComponentSpec:
        """The component's entry of a manifest."""
        return spec_of(self.recipe)

    def inputs(self, seed: int = 0, example: int = 0) -> Arrays:
        """Draws inputs of the component at an example's sizes."""
        return self.recipe.sample(self.recipe.sizes[example], seed)


class Exports:
    """Exports cases, each once for all processes that share the folder."""

    def __init__(self, folder: Path, traces: Path) -> None:
        """Takes the folder to export to, and the one that keeps traces for later runs.

        A trace is used again only if the exporter's sources have not changed.
        """
        self._folder = folder
        self._trace = cached(trace, traces / sources())

    def __call__(self, case: Case) -> Opened:
        """Returns the exported component."""
        make = getattr(checkpoints, f"tiny_{case.family}")
        checkpoint = once(self._folder / "checkpoints" / case.family, make)
        ranges = STATIC if case.static else USUAL
        plan = make_plan(checkpoint, precision=case.precision, ranges=ranges)
        (recipe,) = (each for each in plan.recipes if each.name == case.component)
        folder = self._folder / "components" / str(case)
        form = not case.plain

        def write(home: Path) -> None:
            write_component(self._trace(recipe), recipe, home, with_cuda_form=form)

        once(folder, write)
        return Opened(recipe, folder)


def sources() -> str:
    """Returns a digest of the exporter's sources and the libraries that it traces with."""
    digest = hashlib.sha256()
    libraries = ("torch", "onnx", "onnx-ir", "onnxscript", "diffusers", "transformers")
    digest.update(json.dumps([version(name) for name in libraries]).encode())
    root = Path(eri_export.__file__).parent
    for file in sorted([*root.rglob("*.py"), Path(checkpoints.__file__)]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Trajectory:
    """Random inputs of a few steps: the start, a row and noises for each step, the conditions."""

    x: Array
    remembered: tuple[Array, ...]
    rows: tuple[Row, ...]
    mix: Array
    layout: Layout
    conditions: Arrays


def trajectory(opened: Opened, seed: int, steps: int = 5, example: int = 0) -> Trajectory:
    """Draws a trajectory at an example's sizes, with two conditions if the batch allows."""
    inputs = dict(opened.inputs(seed, example))
    sample = np.asarray(inputs.pop("sample"), np.float32)
    del inputs["timestep"]
    count = 2 if len(sample) % 2 == 0 else 1
    x = sample[: len(sample) // count]
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    return Trajectory(
        x=x,
        remembered=tuple(normal(*x.shape) for _ in range(MAX_W)),
        rows=tuple(
            Row("pass", normal(len(x), sum(COLUMNS.values())), tuple(normal(MAX_V, *x.shape)))
            for _ in range(steps)
        ),
        mix=normal(count, len(x)),
        layout=even_layout(count, len(x)),
        conditions=inputs,
    )
