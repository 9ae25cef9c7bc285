"""What `eri export --dry-run` says: what was found, what it would write, how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from eri_export.checkpoint import Component
from eri_export.disk import free_space, require_space
from eri_export.estimate import about, estimate
from eri_export.gate.cases import BYTES_PER_PARAMETER, shallower, too_costly
from eri_export.gate.parity import SMALL
from eri_export.machine import available_memory
from eri_export.plan import Plan, lora_targets
from eri_export.publish import replaces
from eri_export.recipes.base import Recipe
from eri_runtime.inspection import absent, megabytes, sliced
from eri_runtime.spec import Family

SHOWN = 2  # files of a component that are named

# which of its family a model is, by what its config says
MODELS: Mapping[Family, Callable[[Plan], str]] = {
    "sdxl": lambda plan: f"SDXL predicting {plan.bundle.schedule.prediction}",
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


def forecast(plan: Plan, target: Path) -> Iterator[str]:
    """The lines. Raises what an export to `target` would: `UsageError`, `DiskError`."""
    replaced = replaces(target)
    require_space(target.absolute().parent, plan.nbytes)
    yield f"{plan.checkpoint.root}: {plan.checkpoint.layout}, {MODELS[plan.bundle.family](plan)}"
    for component in plan.checkpoint.components.values():
        yield f"  {_found(component)}"
    for line in absent(plan.bundle):
        yield f"  {line}"
    for lora in plan.bundle.baked:
        yield f"  with {lora.file} merged in, scale {lora.scale:g}"
    yield f"would write {target}, {'replacing the bundle there' if replaced else 'a new folder'}"
    for recipe in plan.recipes:
        yield f"  {_written(recipe, plan.weights[recipe.name])}"
    if (heads := plan.bundle.components["denoiser"].attention_slice) is not None:
        yield f"  {sliced(heads)}, where a layer of the denoiser or the VAE has more"
    factor = plan.bundle.latents.factor
    yield f"  sizes are MIN:OPT:MAX; a height or width is in latents of {factor} pixels"
    total = megabytes(plan.nbytes)
    yield f"  {total} of weights in all, {megabytes(free_space(target))} free there"
    yield "would compare with PyTorch"
    for line in _compared(plan):
        yield f"  {line}"
    yield _time(plan)


def _found(component: Component) -> str:
    """`vae: AutoencoderKL, 83,819,683 parameters, 167.6 MB of F16 in ae.safetensors (167.7 MB)`."""
    tensors = component.tensors.values()
    nbytes = megabytes(sum(tensor.nbytes for tensor in tensors))
    dtypes = " and ".join(sorted({tensor.dtype for tensor in tensors}))
    files = sorted({span.file for tensor in tensors for span in tensor.spans})
    names = [f"{file.name} ({megabytes(file.stat().st_size)})" for file in files]
    where = ", ".join(names[:SHOWN]) + (f" and {len(names[SHOWN:])} more" if names[SHOWN:] else "")
    return (
        f"{component.name}: {component.class_name}, {component.parameters:,} parameters, "
        f"{nbytes} of {dtypes} in {where}"
    )


def _written(recipe: Recipe, nbytes: int) -> str:
    """`denoiser: fp16 but for time_embedding, 5,149.5 MB; batch 1:2:16, height 4:128:256`."""
    kept = f" but for {', '.join(recipe.kept_float32)}" if recipe.kept_float32 else ""
    ranges = ", ".join(f"{name} {r.min}:{r.opt}:{r.max}" for name, r in recipe.ranges.items())
    loras = f"; {_loras(recipe)}" if recipe.lora_rank is not None else ""
    shape = ranges or "static"
    return f"{recipe.name}: {recipe.precision}{kept}, {megabytes(nbytes)}; {shape}{loras}"


def _loras(recipe: Recipe) -> str:
    """What a LoRA of the full rank is given to."""
    targets = lora_targets(recipe)
    nbytes = sum(4 * (recipe.lora_rank or 0) * (out + width) for out, width in targets.values())
    return (
        f"LoRAs up to rank {recipe.lora_rank} as inputs of {len(targets)} linear layers, "
        f"{megabytes(nbytes)} each (convolutions take none)"
    )


def _compared(plan: Plan) -> Iterator[str]:
    """What of each network the gate can run on this machine."""
    costly, whole = too_costly(plan.recipes), []
    for recipe in plan.recipes:
        if (copy := shallower(recipe)) is not None:
            needed = megabytes(BYTES_PER_PARAMETER * recipe.source.parameters)
            free = megabytes(available_memory())
            memory = f"the whole takes {needed} of memory and {free} are available"
            yield f"{recipe.name}: a copy, {copy.depth}; {memory}"
        elif costly and recipe.loose is not None:
            yield f"{recipe.name}: {SMALL}, as its own size takes too long"
        else:
            whole.append(recipe.name)
    if whole:
        yield f"{', '.join(whole)}: whole"


def _time(plan: Plan) -> str:
    guess = estimate(plan)
    return (
        f"would take about {about(guess.total)}: trace {about(guess.trace)}, write "
        f"{about(guess.write)}, compare {about(guess.compare)}; by the speed of two shared CPU "
        "cores, so it will differ here"
    )
