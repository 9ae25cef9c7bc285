"""Describes a bundle in words, for `eri inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eri_runtime import executors
from eri_runtime.bundle import (
    COMPONENTS,
    Bundle,
    ComponentSpec,
    LevelSpec,
    LoraSpec,
    TensorSpec,
)
from eri_runtime.units import megabytes

WITHOUT = {  # consequences of a missing component
    "vae_decoder": "returns latents, no images",
    "vae_encoder": "no image to image, no previews",
    "text_encoder": "needs prompt_embeds instead of prompts",
    "text_encoder_2": "needs prompt_embeds instead of prompts",
    "text_encoder_3": "zeros stand for its part of a prompt",
}


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Yields lines: a summary, each component with its shapes, plans, and usable backends."""
    name, size = bundle.root.resolve().name, megabytes(bundle.size)
    yield f"{name}: {bundle.family}, {size} in {len(bundle.files)} files, all verified"
    yield _schedule(bundle)
    yield _defaults(bundle)
    for lora in bundle.baked:
        yield f"LoRA {lora.file} merged in, scale {lora.scale:g}"
    for name, component in bundle.components.items():
        yield ""
        yield from _component(bundle, name, component)
    yield ""
    yield from describe_missing(bundle)
    for name, tokenizer in bundle.tokenizers.items():
        yield f"{name}: up to {tokenizer.max_length} tokens, filled with {tokenizer.pad_id}"
    for file in bundle.plans:
        yield describe_plan(bundle, file)
    yield ""
    if bundle.gate == "quick":
        yield "compared with PyTorch on one case of each component only: --gate quick"
    yield "built with " + ", ".join(f"{name} {v}" for name, v in bundle.built_with.items())
    yield from executors.describe_backends(bundle)


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Returns what `eri inspect --json` says about a verified bundle, as values of JSON."""
    return {
        "bundle": str(bundle.root),
        "family": bundle.family,
        "bytes": bundle.size,
        "files": sorted(bundle.files),
        "components": {name: _facts(each) for name, each in bundle.components.items()},
        "defaults": {
            "width": bundle.defaults.width,
            "height": bundle.defaults.height,
            "steps": bundle.defaults.num_inference_steps,
            "sampler": bundle.defaults.sampler,
            "guidance": bundle.defaults.guidance_scale,
        },
        "gate": bundle.gate,
        "plans": sorted(bundle.plans),
        "backends": {
            name: {"runs": not (reasons := executors.refusals(bundle, name)), "reasons": reasons}
            for name in executors.BACKENDS
        },
    }


def component_facts(component: ComponentSpec) -> dict[str, Any]:
    """Returns what every command's `--json` says about a component."""
    return {
        "precision": component.precision,
        "parameters": component.parameters,
        "error": component.parity,
    }


def _facts(component: ComponentSpec) -> dict[str, Any]:
    """Returns the facts about one component."""
    return {
        **component_facts(component),
        "ranges": {
            name: {"min": sizes.min, "opt": sizes.opt, "max": sizes.max}
            for name, sizes in component.ranges.items()
        },
    }


def describe_plan(bundle: Bundle, file: str) -> str:
    """Returns a line: the engine and GPUs of a TensorRT plan, and how its attention is computed."""
    plan = bundle.plans[file]
    variant = f" ({', '.join(plan.flags)})" if plan.flags else ""
    profiles = f"{len(plan.profiles)} profile{'s' * (len(plan.profiles) > 1)}"
    return (
        f"{file}: {plan.engine} {plan.version}{variant}, compute capability "
        f"{' and '.join(plan.capabilities)}, {megabytes(bundle.files[file].size)}, "
        f"{profiles}, {plan.fused} of {plan.attention} attention layers fused"
    )


def _schedule(bundle: Bundle) -> str:
    """Returns the line about the noise schedule and the latents."""
    schedule, latents = bundle.schedule, bundle.latents
    step = latents.factor * latents.patch
    return (
        f"{schedule.kind} schedule predicting {schedule.prediction}; latents of "
        f"{latents.channels} channels at 1/{latents.factor}; sizes are multiples of {step}"
    )


def _defaults(bundle: Bundle) -> str:
    """Returns the line about the defaults of a call."""
    defaults = bundle.defaults
    return (
        f"defaults: {defaults.width}x{defaults.height}, {defaults.num_inference_steps} steps of "
        f"{defaults.sampler}, guidance {defaults.guidance_scale:g}"
    )


def describe_sampling(bundle: Bundle) -> str:
    """Describes the sampler, spacing and levels of a call that names none."""
    defaults, levels = bundle.defaults, bundle.defaults.levels
    options = [f"{name} {value:g}" for name, value in defaults.sampler_options.items()]
    words = [" ".join([defaults.sampler, *([f"({', '.join(options)})"] if options else [])])]
    words.append(f"{bundle.schedule.spacing} spacing")
    if levels is not None:
        words += _levels(levels)
    words.append(f"down to {FINAL[bundle.schedule.final]}")
    if defaults.thresholding:
        words.append(f"x_0 thresholded at {defaults.thresholding[0]:g}")
    if defaults.clip is not None:
        words.append(f"x_0 clipped to ±{defaults.clip:g}")
    return ", ".join(words)


FINAL = {"zero": "0", "sigma_min": "the smallest level of training", "last": "the last level"}
GRIDS = {"intervals": "N of N + 1 levels", "open": "N of N + 1 levels from 1"}


def _levels(levels: LevelSpec) -> Iterator[str]:
    """Yields what differs from the spacing's own levels."""
    if levels.grid == "distilled":
        yield f"timesteps of {levels.original_steps} distilled ones"
    elif levels.grid in GRIDS:
        yield GRIDS[levels.grid]
    if levels.spread != "none":
        ends = [f"{end:g}" for end in (levels.sigma_max, levels.sigma_min) if end is not None]
        yield f"{levels.spread} levels" + (f" with the ends {' and '.join(ends)}" if ends else "")


def _component(bundle: Bundle, name: str, component: ComponentSpec) -> Iterator[str]:
    """Yields the lines about one component."""
    weights, graph = bundle.files[component.weights], bundle.files[component.graph]
    yield (
        f"{name}: {component.precision}, {component.parameters:,} parameters, weights "
        f"{megabytes(weights.size)}, graph {megabytes(graph.size)}, "
        f"error against PyTorch {component.parity:.1e}{_other_engines(component)}"
    )
    for arrow, tensors in (("<-", component.plain_inputs), ("->", component.outputs)):
        for tensor in tensors:
            yield f"  {arrow} {tensor.name} {tensor.dtype} {_shape(tensor)}"
    if component.lora is not None:
        yield f"  {_loras(component.lora)}"
    if component.step is not None:
        size = megabytes(bundle.files[component.step].size)
        rows = "a row for each image" if component.step_per_image else "one row for all images"
        yield f"  step graph {size}: guidance and solver in one call, {rows}"
    if component.step_cache:
        yield "  cut at the first block, for --step-cache"
    if component.segments:
        yield f"  {len(component.segments)} segments, to run with the weights of one in memory"
    if component.attention_slice is not None:
        yield f"  {describe_slicing(component.attention_slice)}"
    for dimension, sizes in component.ranges.items():
        yield f"     {dimension}: {sizes.min} to {sizes.max}, tuned for {sizes.opt}"


def _loras(lora: LoraSpec) -> str:
    """Returns one line about the LoRA inputs, of which a graph has two per linear weight."""
    return (
        f"<- lora_A.W, lora_B.W float32 of {len(lora.targets)} linear weights W: LoRAs up to rank "
        f"{lora.rank}, one for all rows or one each; convolutions take none"
    )


def describe_slicing(heads: int) -> str:
    """Returns how many attention heads the graph computes at once."""
    return f"attention {heads} head{'s' * (heads > 1)} at a time"


def describe_missing(bundle: Bundle) -> Iterator[str]:
    """Yields a line per component that the bundle lacks, with the consequence."""
    for name in COMPONENTS[bundle.family]:
        if name not in bundle.components:
            yield f"no {name}: {WITHOUT[name]}"


def _other_engines(component: ComponentSpec) -> str:
    """Returns the errors on engines other than ONNX Runtime."""
    return "".join(f", on {name} {error:.1e}" for name, error in component.compared.items())


def _shape(tensor: TensorSpec) -> str:
    """Returns a shape such as `(batch, 16, height, width)`."""
    return "(" + ", ".join(map(str, tensor.shape)) + ")"
