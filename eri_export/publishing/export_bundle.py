"""Exports a checkpoint to a published bundle: runs every stage in order."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import onnx_ir as ir

from eri_export.checkpoints.tokenizers import write_tokenizers
from eri_export.choices import USUAL, Ranges
from eri_export.disk import require_space
from eri_export.gate.cases import too_costly
from eri_export.gate.parity import Compared, compare
from eri_export.gate.real_inputs import real_inputs
from eri_export.gate.report import Report
from eri_export.gate.step_graph import STEP
from eri_export.graphs.memory.activations import envelope
from eri_export.graphs.passes.cuda import cuda_form
from eri_export.graphs.passes.first_block import write_cache_parts
from eri_export.graphs.passes.lora_inputs import with_loras
from eri_export.graphs.passes.slice_attention import with_slices
from eri_export.graphs.passes.split_segments import write_segments
from eri_export.graphs.recipes.base import Arrays, Recipe
from eri_export.graphs.step_graph import compose
from eri_export.graphs.trace import trace
from eri_export.plan.plan import Plan, Slice, Sources, make_plan, unneeded
from eri_export.progress import WHOLE, Listener, silent, stage
from eri_export.publishing.atomic_publish import records, staging, write_manifest
from eri_export.weights.merged_loras import Lora
from eri_export.weights.weights_file import bind, conversions, write_weights
from eri_runtime.bundle import Bundle, ComponentSpec, FileRecord
from eri_runtime.executors.ort.provider import cuda_form_of

log = logging.getLogger(__name__)

REPORT = "parity.json"
CUDA_FORMS = ("denoiser", "vae_decoder", "vae_encoder")
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
    """An exported component: its spec, the record of its weights file, and its comparison."""

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
    lora_partial: bool = False,
    progress: Listener = silent,
    **sources: Unpack[Sources],
) -> Bundle:
    """Exports every component of a checkpoint to a bundle.

    Every graph is compared with PyTorch before the bundle is published. If anything fails, nothing
    is published and an existing bundle stays as it was.

    Args:
        checkpoint: A diffusers folder, a safetensors file, or an id of the Hugging Face Hub,
            OWNER/NAME or OWNER/NAME:FILE, which is downloaded.
        output: The bundle's folder; an existing bundle there is replaced.
        precision: "fp32", "fp16" or "bf16", or one per component, such as "fp16,vae=fp32" or
            {"*": "fp16", "vae": "fp32"}.
        ranges: Sizes to serve, made by `make_ranges`; default: the family's usual ones.
        lora_rank: Let the denoiser take LoRAs up to this rank as inputs, so that each image of a
            batch can have its own; a static graph always computes with the full rank. Default: no
            such inputs.
        attention_slice: Compute attention in the denoiser and the VAE so many heads at a time, to
            save memory: a number, "max" for one head, "auto" for half of them; default: all.
        loras: Files and scales of LoRAs to merge into the weights permanently.
        lora_partial: Leave out keys of a LoRA that match no weight, with a warning, instead of
            raising an error.
        progress: A function to call with each `Progress` event.
        **sources: Where the checkpoint's parts are read from: `config`, `vae`, `text_encoders`,
            `variant`, `revision` and `scheduler` of `open_checkpoint`.

    Returns:
        The published bundle.

    Raises:
        NotACheckpointError: If the path is no checkpoint, or a file of it is missing.
        PickleError: If the weights are pickled.
        CheckpointError: If the model cannot be exported or its configs do not fit.
        DamagedWeightsError: If weights are missing, of the wrong shape, NaN or Inf.
        HubError: If the Hub's repository cannot be downloaded.
        LoraError: If a LoRA does not fit the checkpoint.
        SizeError: If the networks do not support the requested sizes.
        UnknownNameError: If a precision or component is unknown.
        UsageError: If another argument is invalid, or `output` exists and is not a bundle.
        DiskError: If the disk is full or fails.
        ExportError: If a network cannot be traced.
        ParityError: If a graph does not agree with PyTorch.

    Example:
        With a checkpoint in `./sdxl`:

            bundle = export("./sdxl", "engines/sdxl", precision="fp16")
            print(bundle.components["denoiser"].parity)
    """
    plan = make_plan(
        checkpoint,
        precision=precision,
        ranges=ranges,
        lora_rank=lora_rank,
        attention_slice=attention_slice,
        loras=loras,
        lora_partial=lora_partial,
        **sources,
    )
    target = Path(output)
    with staging(target) as folder:
        bundle = _build(plan, folder, progress)
    return dataclasses.replace(bundle, root=target)


def _build(plan: Plan, folder: Path, listener: Listener) -> Bundle:
    """Builds the planned bundle in `folder`, including its manifest."""
    require_space(folder.parent, plan.nbytes)
    write_tokenizers(plan.tokenizers, folder)
    planned = dataclasses.replace(plan.bundle, root=folder)
    exported = _components(planned, plan.recipes, listener)
    report = sum((each.compared.report for each in exported.values()), Report(()))
    with stage(listener, WHOLE, "publish"):
        (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
        known = {each.spec.weights: each.weights for each in exported.values()}
        bundle = dataclasses.replace(
            planned,
            components={name: exported[name].spec for name in planned.components},
            files=records(folder, known),
        )
        write_manifest(bundle)
    return bundle


def _components(
    planned: Bundle, recipes: Iterable[Recipe], listener: Listener
) -> dict[str, Exported]:
    """Exports every component, the denoiser last: its real inputs are the others' outputs."""
    costly, outputs = too_costly(recipes), dict[str, Arrays]()
    exported: dict[str, Exported] = {}
    for recipe in sorted(recipes, key=lambda recipe: ORDER.index(recipe.name)):
        gate = recipe.loose if costly and recipe.loose is not None else recipe
        component = _component(recipe, gate, planned, real_inputs(planned, gate, outputs), listener)
        exported[recipe.name] = component
        if component.compared.outputs is not None:
            outputs[recipe.name] = component.compared.outputs
    return exported


def _component(
    recipe: Recipe, gate: Recipe, planned: Bundle, real: Arrays | None, listener: Listener
) -> Exported:
    """Traces, writes and compares one component; `gate` is the recipe to compare.

    Raises `ParityError` if the graph does not agree with PyTorch.
    """
    spec = planned.components[recipe.name]
    graph, weights = planned.path(spec.graph), planned.path(spec.weights)
    graph.parent.mkdir()
    with stage(listener, recipe.name, "trace"):
        model = trace(recipe)
        spec = with_slices(model, with_loras(model, recipe, spec))
    items = conversions(model, recipe.source.tensors)
    with stage(listener, recipe.name, "write", sum(item.nbytes for item in items)) as advance:
        written = write_weights(weights, items, advance)
        bind(model, written.tensors)
        ir.save(model, graph)
        form = cuda_form(model) if recipe.name in CUDA_FORMS else None
        if spec.step is not None:
            spec = write_cache_parts(model, graph, write_segments(model, graph, spec))
            compose(model)
            ir.save(model, graph.with_name(STEP))
        if form is not None:
            save_cuda_form(form, graph, with_step=spec.step is not None)
    with stage(listener, recipe.name, "compare"):
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


def save_cuda_form(form: ir.Model, graph: Path, *, with_step: bool) -> None:
    """Saves the CUDA form of `graph` next to it, and of its step graph; changes `form`."""
    ir.save(form, cuda_form_of(graph))
    if with_step:
        compose(form)
        ir.save(form, cuda_form_of(graph.with_name(STEP)))
