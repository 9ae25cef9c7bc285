"""The whole route from a checkpoint to a published bundle."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import onnx_ir as ir

from eri_export.activations import envelope
from eri_export.baking import Lora
from eri_export.disk import require_space
from eri_export.gate.cases import too_costly
from eri_export.gate.parity import Compared, compare
from eri_export.gate.real import real_inputs
from eri_export.gate.report import Report
from eri_export.gate.steps import STEP
from eri_export.passes.lora_inputs import with_loras
from eri_export.passes.segments import write_segments
from eri_export.passes.slice_attention import with_slices
from eri_export.plan import Plan, Slice, Sources, make_plan, unneeded
from eri_export.progress import WHOLE, Listener, silent, stage
from eri_export.publish import records, staging, write_manifest
from eri_export.ranges import USUAL, Ranges
from eri_export.recipes.base import Arrays, Recipe
from eri_export.step import compose
from eri_export.tokenizers import write_tokenizers
from eri_export.trace import trace
from eri_export.weights import bind, conversions, write_weights
from eri_runtime.spec import Bundle, ComponentSpec, FileRecord

log = logging.getLogger(__name__)

REPORT = "parity.json"
ORDER = (
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "vae_encoder",
    "vae_decoder",
    "denoiser",
)


@dataclass(frozen=True)
class Exported:
    """A component in the bundle, and how it compared."""

    spec: ComponentSpec
    weights: FileRecord
    compared: Compared


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    precision: str | Mapping[str, str] = "fp32",
    ranges: Ranges = USUAL,
    lora_rank: int | None = None,
    attention_slice: Slice = None,
    loras: Sequence[Lora] = (),
    progress: Listener = silent,
    **sources: Unpack[Sources],
) -> Bundle:
    """Export every component of a checkpoint into the bundle `output`, and publish it.

    `checkpoint` is a diffusers folder, a Hub id or a single file; `sources` are explained at
    `Sources`. `precision` is one for all, or `fp16,vae=fp32`, or a mapping with `*` for the rest.
    `ranges` are the sizes to serve, by `make_ranges`; the family's usual ones if left. With a
    `lora_rank` the denoiser takes LoRAs up to that rank as inputs, so that each image of a batch
    can have its own; a static graph computes with them all even where there are none. With an
    `attention_slice` the denoiser and the VAE compute attention so many heads at a time, in less
    memory: a number, `max` for one head or `auto` for half of them. `loras` are files and scales
    to merge into the weights for good.
    Raises `CheckpointError` for what cannot be exported, `LoraError` for a LoRA that does not fit,
    `ParityError` for a graph that does not agree with PyTorch, `DiskError` for no room and
    `UsageError` for a bad argument; nothing is published then.
    """
    plan = make_plan(
        checkpoint,
        precision=precision,
        ranges=ranges,
        lora_rank=lora_rank,
        attention_slice=attention_slice,
        loras=loras,
        **sources,
    )
    target = Path(output)
    with staging(target) as folder:
        bundle = _build(plan, folder, progress)
    return dataclasses.replace(bundle, root=target)


def _build(plan: Plan, folder: Path, tell: Listener) -> Bundle:
    """Build what was planned in `folder`, manifest and all."""
    require_space(folder.parent, plan.nbytes)
    write_tokenizers(plan.tokenizers, folder)
    planned = dataclasses.replace(plan.bundle, root=folder)
    exported = _components(planned, plan.recipes, tell)
    report = sum((each.compared.report for each in exported.values()), Report(()))
    with stage(tell, WHOLE, "publish"):
        (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
        known = {each.spec.weights: each.weights for each in exported.values()}
        bundle = dataclasses.replace(
            planned,
            components={name: exported[name].spec for name in planned.components},
            files=records(folder, known),
        )
        write_manifest(bundle)
    return bundle


def _components(planned: Bundle, recipes: Iterable[Recipe], tell: Listener) -> dict[str, Exported]:
    """Every component, the denoiser last: its real inputs are what the others made of theirs."""
    costly, made = too_costly(recipes), dict[str, Arrays]()
    exported: dict[str, Exported] = {}
    for recipe in sorted(recipes, key=lambda recipe: ORDER.index(recipe.name)):
        gate = recipe.loose if costly and recipe.loose is not None else recipe
        each = _component(recipe, gate, planned, real_inputs(planned, gate, made), tell)
        exported[recipe.name] = each
        if each.compared.made is not None:
            made[recipe.name] = each.compared.made
    return exported


def _component(
    recipe: Recipe, gate: Recipe, planned: Bundle, real: Arrays | None, tell: Listener
) -> Exported:
    """Traces and writes one component, and compares it as `gate`; raises `ParityError`."""
    spec = planned.components[recipe.name]
    graph, weights = planned.path(spec.graph), planned.path(spec.weights)
    graph.parent.mkdir()
    with stage(tell, recipe.name, "trace"):
        model = trace(recipe)
        spec = with_slices(model, with_loras(model, recipe, spec))
    items = conversions(model, recipe.source.tensors)
    with stage(tell, recipe.name, "write", sum(item.nbytes for item in items)) as advance:
        written = write_weights(weights, items, advance)
        bind(model, written.tensors)
        ir.save(model, graph)
        if spec.step is not None:
            spec = write_segments(model, graph, spec)
            compose(model)
            ir.save(model, graph.with_name(STEP))
    with stage(tell, recipe.name, "compare"):
        compared = compare(gate, graph, spec, real, anew=gate is not recipe)
    worst = compared.report.worst(recipe.name)
    log.info("%s: relative error %.2g against PyTorch", recipe.name, worst)
    parameters = sum(math.prod(tensor.shape) for tensor in written.tensors.values())
    spec = dataclasses.replace(
        spec,
        parameters=parameters,
        parity=worst,
        compared=compared.others,
        unneeded=unneeded(recipe, written.tensors),
        activations=envelope(model, recipe.ranges, spec.attention_slice),
    )
    return Exported(spec, written.record, compared)
