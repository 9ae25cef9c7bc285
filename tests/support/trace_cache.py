"""Traced graphs, each made once for all workers of a test run and kept as files.

Tracing takes seconds, whatever the size of a network, and dozens of exports trace the same tiny
ones. A graph depends on nothing but what its key holds.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from eri_export.graphs.passes.hidden_weights import restore_weights, weights_of
from eri_export.graphs.recipes.base import Recipe
from tests.support.once import once

Trace = Callable[[Recipe], ir.Model]


def cached(trace: Trace, folder: Path) -> Trace:
    """`trace`, whose graphs are in `folder` by the sha256 of what decides them."""
    read: dict[str, ir.Model] = {}

    def traced(recipe: Recipe) -> ir.Model:
        key = _key(recipe)
        if key not in read:
            file = once(folder / f"{key}.onnx", lambda path: _write(trace(recipe), path))
            read[key] = _read(file)
        return read[key].clone()

    return traced


def _key(recipe: Recipe) -> str:
    specs = (*(each.spec for each in recipe.inputs), *recipe.outputs)
    decides = (
        recipe.name,
        recipe.source.class_name,
        json.dumps(dict(recipe.source.config), sort_keys=True),
        recipe.precision,
        sorted(recipe.kept_float32),
        sorted(recipe.source.tensors),
        specs,
        sorted(recipe.constants.items()),
    )
    return hashlib.sha256(repr(decides).encode()).hexdigest()


def _write(model: ir.Model, file: Path) -> None:
    """The graph with its weights as inputs, as they have no bytes; their names and notes beside."""
    weights = [value.name for value in weights_of(model)]
    order, meta = list(model.graph.initializers), dict(model.graph.meta)
    for name in weights:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    ir.save(model, file)
    file.with_suffix(".pickle").write_bytes(pickle.dumps((weights, order, meta)))


def _read(file: Path) -> ir.Model:
    weights, order, meta = pickle.loads(file.with_suffix(".pickle").read_bytes())  # noqa: S301
    model = ir.load(file)
    restore_weights(model, frozenset(weights), {name: name for name in weights})
    values = [model.graph.initializers.pop(name) for name in order]
    for value in values:
        model.graph.initializers.add(value)
    model.graph.meta.update(meta)
    return model
