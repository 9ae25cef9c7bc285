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
from eri_export.choices import USUAL, USUAL_MEMORY, Gate, Ranges, make_gate
from eri_export.disk import require_space
from eri_export.gate.cases import too_costly
from eri_export.gate.parity import Compared, compare
from eri_export.gate.real_inputs import real_inputs
from eri_export.gate.report import Report
from eri_export.gate.step_graph import STEP
from eri_export.graphs.memory.activations import envelope
from eri_export.graphs.passes.cpu import cpu_form, has_cpu_form
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
from eri_runtime.bundle import Bundle, ComponentSpec, FileRecord, GateKind
from eri_runtime.executors.ort.provider import form_of

log = logging.getLogger(__name__)

REPORT = "parity.json"
WITH_FORMS = ("denoiser", "vae_decoder", "vae_encoder")
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
    gate: GateKind = "full",
    gate_memory: int | str = USUAL_MEMORY,
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
        gate: What to compare with PyTorch: "full", every case of each component, or "quick", one
            case of each, which the manifest records.
        gate_memory: Memory that the process may take while it compares, in bytes or as text such
            as "4GB". Networks that need more are compared as a whole too, but run a part at a time,
            at least one layer.
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
        UnknownNameError: If a precision, component or gate is unknown.
        UsageError: If another argument is invalid, or `output` exists and is not a bundle.
        DiskError: If the disk is full or fails.
        ExportError: If a network cannot be traced.
        ParityError: If a graph does not agree with PyTorch.

    Example:
        With a checkpoint in `./sdxl`:

            bundle = export("./sdxl", "engines/sdxl", precision="fp16")
            print(bundle.components["denoiser"].parity)
    """
    chosen = make_gate(gate, gate_memory)
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
        bundle = _build(plan, folder, chosen, progress)
    return dataclasses.replace(bundle, root=target)


def _build(plan: Plan, folder: Path, gate: Gate, listener: Listener) -> Bundle:
    """Builds the planned bundle in `folder`, including its manifest."""
    require_space(folder.parent, plan.nbytes)
    write_tokenizers(plan.tokenizers, folder)
    planned = dataclasses.replace(plan.bundle, root=folder, gate=gate.kind)
    exported = _components(planned, plan.recipes, gate, listener)
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
    planned: Bundle, recipes: Iterable[Recipe], gate: Gate, listener: Listener
) -> dict[str, Exported]:
    """Exports every component, the denoiser last: its real inputs are the others' outputs."""
    costly, outputs = too_costly(recipes, gate.kind), dict[str, Arrays]()
    exported: dict[str, Exported] = {}
    for recipe in sorted(recipes, key=lambda recipe: ORDER.index(recipe.name)):
        compared = recipe.loose if costly and recipe.loose is not None else recipe
        real = real_inputs(planned, compared, outputs) if gate.kind == "full" else None
        component = _component(recipe, compared, planned, real, gate, listener)
        exported[recipe.name] = component
        if component.compared.outputs is not None:
            outputs[recipe.name] = component.compared.outputs
    return exported


def _component(
    recipe: Recipe,
    subject: Recipe,
    planned: Bundle,
    real: Arrays | None,
    gate: Gate,
    listener: Listener,
) -> Exported:
    """Traces, writes and compares one component; `subject` is the recipe to compare.

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
        forms = device_forms(model, spec) if recipe.name in WITH_FORMS else {}
        if spec.step is not None:
            spec = write_cache_parts(model, graph, write_segments(model, graph, spec))
            compose(model)
            ir.save(model, graph.with_name(STEP))
        for device, form in forms.items():
            save_form(form, graph, device, with_step=spec.step is not None)
    with stage(listener, recipe.name, "compare"):
        compared = compare(subject, graph, spec, real, anew=subject is not recipe, gate=gate)
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


def device_forms(model: ir.Model, spec: ComponentSpec) -> dict[str, ir.Model]:
    """Returns the forms of `model` by device."""
    forms = {"cuda": cuda_form(model)}
    return forms | ({"cpu": cpu_form(model)} if has_cpu_form(spec) else {})


def save_form(form: ir.Model, graph: Path, device: str, *, with_step: bool) -> None:
    """Saves a form of `graph` next to it, and that of its step graph; changes `form`."""
    ir.save(form, form_of(graph, device))
    if with_step:
        compose(form)
        ir.save(form, form_of(graph.with_name(STEP), device))
