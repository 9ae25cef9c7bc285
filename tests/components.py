"""One component exported by itself, without the rest of its bundle."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from eri_export.plan import spec_of
from eri_export.recipes.base import Recipe
from eri_export.step import compose
from eri_export.weights import bind, conversions, write_weights
from eri_runtime.spec import ShapeRange


def write_component(model: ir.Model, recipe: Recipe, home: Path) -> Path:
    """Write `home/model.onnx`, the step graph if it has one, and the weights; the graph's path."""
    home.mkdir(parents=True, exist_ok=True)
    items = conversions(model, recipe.source.tensors)
    bind(model, write_weights(home / "weights.safetensors", items).tensors)
    ir.save(model, home / "model.onnx")
    if spec_of(recipe).step is not None:
        compose(model)
        ir.save(model, home / "step.onnx")
    return home / "model.onnx"


def up_to(usual: int, most: int) -> ShapeRange:
    """From one to `most`."""
    return ShapeRange(min=1, opt=usual, max=most)
