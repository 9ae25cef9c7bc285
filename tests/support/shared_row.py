"""The step graph of older bundles, in which all images of a call share one row.

Nothing exports it any more: tests make old bundles with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from eri_export.graphs.step_graph import _Builder, _free_names, _input, _named, _names
from eri_export.publishing.atomic_publish import records, write_manifest
from eri_runtime.bundle import Bundle, manifest
from eri_runtime.executors.ort.provider import DEVICES, form_of
from eri_runtime.sampling import MAX_V, MAX_W


def old_bundle(root: Path, target: Path) -> Bundle:
    """Copies a bundle as it would have been exported before step graphs took a row per image.

    Its steps could not be cached then.
    """
    shutil.copytree(root, target, ignore=shutil.ignore_patterns("compiled"))
    bundle = manifest.read(target)
    spec = bundle.components["denoiser"]
    graph, step = bundle.path(spec.graph), bundle.path(spec.step)
    forms = [(form_of(graph, device), form_of(step, device)) for device in DEVICES]
    for bare, composed in ((graph, step), *(pair for pair in forms if pair[0].exists())):
        model = ir.load(bare)
        compose_shared_row(model)
        ir.save(model, composed)
    gone = {name for name in bundle.files if "/cache-" in name}
    for name in gone:
        bundle.path(name).unlink()
    known = {
        name: file
        for name, file in bundle.files.items()
        if "/step." not in name and name not in gone
    }
    (target / "manifest.json").unlink()
    components = {
        **bundle.components,
        "denoiser": replace(spec, step_per_image=False, step_cache=()),
    }
    old = replace(bundle, components=components, files=records(target, known))
    write_manifest(old)
    return manifest.read(target)


def compose_shared_row(model: ir.Model) -> None:
    """Turns the denoiser `model` into its old step graph, in place.

    Inputs: `x` (images, …), `history` (W, images, …) and `noise` (V, images, …), newest first,
    `row`, the table's `COLUMNS`, `mix` (conditions, images), and the denoiser's inputs except
    `sample` and `timestep`, with a batch of conditions·images. Outputs: `x_next`, `history_next`,
    `denoised` (images, …), and `magnitude` (), the sum of |x_next|, finite if all of x_next is.
    """
    graph = model.graph
    sample, timestep = (each for each in graph.inputs if each.name in ("sample", "timestep"))
    (predicted,) = graph.outputs
    rest = tuple(sample.shape or ())[1:]
    conditions = [each for each in graph.inputs if each not in (sample, timestep)]
    _free_names(
        model, {"x", "history", "noise", "row", "mix", "x_next", "history_next", "denoised"}
    )

    x = _input("x", "images", *rest)
    history, noise = (
        _input(name, width, "images", *rest)
        for name, width in (("history", MAX_W), ("noise", MAX_V))
    )
    row, mix = _input("row", len(_names())), _input("mix", "conditions", "images")

    build = _Builder()
    columns = dict(zip(_names(), build.split(row, len(_names())), strict=True))
    replacements = _network_inputs(build, columns, x, mix, len(rest))
    for old, new in zip((sample, timestep), replacements, strict=True):
        ir.convenience.replace_all_uses_with(old, new)
    graph.insert_before(graph[0], build.nodes)

    before = len(build.nodes)
    outputs = _solver(build, columns, x, history, noise, mix, predicted, len(rest))
    graph.extend(build.nodes[before:])
    for constant in build.constants.values():
        graph.initializers.add(constant)
    graph.inputs[:] = [x, history, noise, row, mix, *conditions]
    shapes = {
        "x_next": x.shape,
        "history_next": history.shape,
        "denoised": x.shape,
        "magnitude": ir.Shape([]),
    }
    graph.outputs[:] = [
        _named(outputs[name], name, ir.Shape(shape or ())) for name, shape in shapes.items()
    ]


def _network_inputs(
    build: _Builder, row: Mapping[str, ir.Value], x: ir.Value, mix: ir.Value, rank: int
) -> tuple[ir.Value, ir.Value]:
    """Returns c_in·x (K·B, …) and the timestep t (K·B,), repeated for every condition."""
    count = build("Shape", mix, start=0, end=1)
    repeats = build("Concat", count, build.integers(*(1,) * rank), axis=0)
    sample = build("Tile", build("Mul", row["c_in"], x), repeats)
    return sample, build("Expand", row["t"], build("Shape", sample, start=0, end=1))


def _solver(
    build: _Builder,
    row: Mapping[str, ir.Value],
    x: ir.Value,
    history: ir.Value,
    noise: ir.Value,
    mix: ir.Value,
    predicted: ir.Value,
    rank: int,
) -> dict[str, ir.Value]:
    """Computes the state after the row from the predictions (K·B, …).

    The operations are in the order of the NumPy loop.
    """

    def plus(total: ir.Value, column: str, value: ir.Value) -> ir.Value:
        return build("Add", total, build("Mul", row[column], value))

    stacked = build("Concat", build("Shape", mix), build("Shape", x, start=1), axis=0)
    weights = build("Unsqueeze", mix, build.integers(*range(2, rank + 2)))
    weighted = build("Mul", weights, build("Reshape", predicted, stacked))
    mixed = build("ReduceSum", weighted, build.integers(0), keepdims=0)
    denoised = plus(build("Mul", row["c_skip"], x), "c_out", mixed)
    memory = plus(build("Mul", row["p"], x), "q", denoised)
    newest = build("Unsqueeze", memory, build.integers(0))
    older = build.split(history, MAX_W)[:-1]
    x_next = plus(build("Mul", row["A"], x), "B0", memory)
    for j, value in enumerate(older, start=1):
        x_next = plus(x_next, f"B{j}", value)
    for j, value in enumerate(build.split(noise, MAX_V)):
        x_next = plus(x_next, f"C{j}", value)
    x_next = build("Squeeze", x_next, build.integers(0))
    return {
        "x_next": x_next,
        "history_next": build("Concat", newest, *older, axis=0),
        "denoised": denoised,
        "magnitude": build("ReduceSum", build("Abs", x_next), keepdims=0),
    }
