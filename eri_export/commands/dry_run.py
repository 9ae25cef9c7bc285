"""The output of `eri export --dry-run`: the checkpoint, what it would write, and how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eri_export.checkpoints import Component
from eri_export.checkpoints.config_keys import honoured_keys
from eri_export.commands.export_time import approximate_times, estimate_export_time
from eri_export.commands.usable_backends import planned_line
from eri_export.disk import free_space, require_space
from eri_export.gate.cases import BYTES_PER_PARAMETER, reduced_for_machine, too_costly
from eri_export.gate.parity import SMALL
from eri_export.graphs.recipes.base import Recipe
from eri_export.machine import available_memory
from eri_export.plan.plan import Plan, lora_targets
from eri_export.publishing.atomic_publish import replaces
from eri_runtime.bundle import Family, GateKind
from eri_runtime.commands.describe_bundle import (
    describe_missing,
    describe_sampling,
    describe_slicing,
)
from eri_runtime.units import megabytes

SHOWN = 2  # files of a component to name

# the description of a model, from its config
MODELS: Mapping[Family, Callable[[Plan], str]] = {
    "sdxl": lambda plan: (
        f"SDXL predicting {plan.bundle.schedule.prediction}"
        + (", guidance embedded" if plan.bundle.guidance_embedding else "")
    ),
    "sd35": lambda plan: "Stable Diffusion 3 or 3.5, {num_layers} blocks, {dual} dual".format(
        dual=len(plan.checkpoint.denoiser.config.get("dual_attention_layers") or ()),
        **plan.checkpoint.denoiser.config,
    ),
    "flux": lambda plan: (
        "Flux.1, {num_layers} double and {num_single_layers} single blocks, ".format(
            **plan.checkpoint.denoiser.config
        )
        + ("guidance embedded" if plan.bundle.guidance_embedding else "no guidance embedding")
    ),
}


def dry_run_lines(plan: Plan, target: Path, gate: GateKind = "full") -> Iterator[str]:
    """Yields the lines; raises `UsageError` and `DiskError` as an export to `target` would."""
    replaced = replaces(target)
    require_space(target.absolute().parent, plan.nbytes)
    yield f"{plan.checkpoint.root}: {plan.checkpoint.layout}, {MODELS[plan.bundle.family](plan)}"
    for component in plan.checkpoint.components.values():
        yield f"  {_component(component)}"
    for line in describe_missing(plan.bundle):
        yield f"  {line}"
    for lora in plan.bundle.baked:
        yield f"  with {lora.file} merged in, scale {lora.scale:g}"
    what = "replacing the bundle there, with --force" if replaced else "a new folder"
    yield f"would write {target}, {what}"
    for recipe in plan.recipes:
        yield f"  {_written(recipe, plan.weights[recipe.name])}"
    if (heads := plan.bundle.components["denoiser"].attention_slice) is not None:
        yield f"  {describe_slicing(heads)}, where a layer of the denoiser or the VAE has more"
    factor = plan.bundle.latents.factor
    yield f"  sizes are MIN:OPT:MAX; a height or width is in latents of {factor} pixels"
    total = megabytes(plan.nbytes)
    yield f"  {total} of weights in all, {megabytes(free_space(target))} free there"
    yield f"a call that says nothing draws with {describe_sampling(plan.bundle)}, {_call(plan)}"
    yield "keys of the configs"
    for line in _read_keys(plan):
        yield f"  {line}"
    yield "would compare with PyTorch" + (", one case of each" if gate == "quick" else "")
    for line in _compared(plan, gate):
        yield f"  {line}"
    yield _time(plan, gate)
    if (unusable := planned_line(plan.bundle)) is not None:
        yield unusable


def dry_run_facts(plan: Plan, target: Path, gate: GateKind = "full") -> dict[str, Any]:
    """Returns what `eri export --dry-run --json` says, as values of JSON."""
    return {
        "bundle": str(target),
        "replaces": replaces(target),
        "gate": gate,
        "family": plan.bundle.family,
        "bytes": plan.nbytes,
        "free": free_space(target),
        "components": {
            recipe.name: {"precision": recipe.precision, "bytes": plan.weights[recipe.name]}
            for recipe in plan.recipes
        },
        "estimate": round(estimate_export_time(plan, gate).total, 1),
    }


def _component(component: Component) -> str:
    """Describes an opened component in one line, such as

    `vae: AutoencoderKL, 83,819,683 parameters, 167.6 MB of F16 in ae.safetensors (167.7 MB)`.
    """
    tensors = component.tensors.values()
    nbytes = megabytes(sum(tensor.nbytes for tensor in tensors))
    dtypes = " and ".join(sorted({tensor.stored_as for tensor in tensors}))
    files = sorted({span.file for tensor in tensors for span in tensor.spans})
    names = [f"{file.name} ({megabytes(file.stat().st_size)})" for file in files]
    where = ", ".join(names[:SHOWN]) + (f" and {len(names[SHOWN:])} more" if names[SHOWN:] else "")
    return (
        f"{component.name}: {component.class_name}, {component.parameters:,} parameters, "
        f"{nbytes} of {dtypes} in {where}"
    )


def _call(plan: Plan) -> str:
    """Describes the steps and the guidance of a call that names none."""
    defaults = plan.bundle.defaults
    return f"in {defaults.num_inference_steps} steps at guidance {defaults.guidance_scale:g}"


def _read_keys(plan: Plan) -> Iterator[str]:
    """Yields which keys of each config were honoured, and which change nothing."""
    for name, read, others in honoured_keys(plan.checkpoint):
        rest = f"; without effect: {', '.join(others)}" if others else ""
        yield f"{name}: honoured {', '.join(read) or 'no keys'}{rest}"


def _written(recipe: Recipe, nbytes: int) -> str:
    """Describes a component to write in one line, such as

    `denoiser: fp16 but for time_embedding, 5,149.5 MB; batch 1:2:16, height 4:128:256`.
    """
    kept = f" but for {', '.join(recipe.kept_float32)}" if recipe.kept_float32 else ""
    ranges = ", ".join(f"{name} {r.min}:{r.opt}:{r.max}" for name, r in recipe.ranges.items())
    loras = f"; {_loras(recipe)}" if recipe.lora_rank is not None else ""
    shape = ranges or "static"
    return f"{recipe.name}: {recipe.precision}{kept}, {megabytes(nbytes)}; {shape}{loras}"


def _loras(recipe: Recipe) -> str:
    """Describes the LoRA inputs of a recipe and the bytes of a LoRA of the full rank."""
    targets = lora_targets(recipe)
    nbytes = sum(4 * (recipe.lora_rank or 0) * (out + width) for out, width in targets.values())
    return (
        f"LoRAs up to rank {recipe.lora_rank} as inputs of {len(targets)} linear layers, "
        f"{megabytes(nbytes)} each (convolutions take none)"
    )


def _compared(plan: Plan, gate: GateKind) -> Iterator[str]:
    """Yields which networks the gate would compare as copies on this machine, and which whole."""
    costly, whole = too_costly(plan.recipes, gate), []
    for recipe in plan.recipes:
        if (copy := reduced_for_machine(recipe)) is not None:
            needed = megabytes(BYTES_PER_PARAMETER * recipe.source.parameters)
            free = megabytes(available_memory())
            memory = f"the whole takes minutes: {needed} of float32 twice, and {free} are available"
            yield f"{recipe.name}: a copy, {copy.depth}; {memory}"
        elif costly and recipe.loose is not None:
            yield f"{recipe.name}: {SMALL}, as its own size takes too long"
        else:
            whole.append(recipe.name)
    if whole:
        yield f"{', '.join(whole)}: whole"


def _time(plan: Plan, gate: GateKind) -> str:
    estimate = estimate_export_time(plan, gate)
    parts = (estimate.trace, estimate.write, estimate.compare)
    total, trace, write, compare = approximate_times(parts)
    return (
        f"would take about {total}: trace {trace}, write {write}, compare {compare}; by the speed "
        "of two shared CPU cores, so it will differ here"
    )
