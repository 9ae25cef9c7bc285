"""Components exported by themselves, without the rest of their bundle."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import pytest

from eri_export.choices import make_ranges
from eri_export.graphs.passes.cuda import cuda_form
from eri_export.graphs.recipes.base import Recipe
from eri_export.graphs.step_graph import compose
from eri_export.plan import plan as planner
from eri_export.plan.plan import spec_of
from eri_export.publishing.export_bundle import WITH_FORMS, save_form
from eri_export.weights.weights_file import bind, conversions, write_weights
from eri_runtime.bundle.spec import ShapeRange

STATIC = make_ranges(size="48x32", static=True)


@contextmanager
def only(names: Collection[str] | None) -> Iterator[None]:
    """Exports in this context have these components alone; None: all."""
    every = planner.recipes_for

    def fewer(*arguments):
        return [each for each in every(*arguments) if names is None or each.name in names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "recipes_for", fewer)
        yield


def write_component(
    model: ir.Model, recipe: Recipe, home: Path, *, with_cuda_form: bool = False
) -> Path:
    """Write `home/model.onnx`, the step graph if it has one, and the weights; the graph's path.

    And the CUDA form of both, where bundles have one.
    """
    home.mkdir(parents=True, exist_ok=True)
    items = conversions(model, recipe.source.tensors)
    bind(model, write_weights(home / "weights.safetensors", items).tensors)
    ir.save(model, home / "model.onnx")
    with_step = spec_of(recipe).step is not None
    if with_cuda_form and recipe.name in WITH_FORMS:
        save_form(cuda_form(model), home / "model.onnx", "cuda", with_step=with_step)
    if with_step:
        compose(model)
        ir.save(model, home / "step.onnx")
    return home / "model.onnx"


def up_to(usual: int, most: int) -> ShapeRange:
    """From one to `most`."""
    return ShapeRange(min=1, opt=usual, max=most)
