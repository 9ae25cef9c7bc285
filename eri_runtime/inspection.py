"""A bundle in words, for `eri inspect`."""

from __future__ import annotations

from collections.abc import Iterator

from eri_runtime import executors
from eri_runtime.spec import COMPONENTS, Bundle, ComponentSpec, LoraSpec, TensorSpec

WITHOUT = {
    "vae_decoder": "gives latents and no images",
    "vae_encoder": "takes latents and no images",
    "text_encoder": "takes prompt_embeds and no prompts",
    "text_encoder_2": "takes prompt_embeds and no prompts",
    "text_encoder_3": "zeros stand for its part of a prompt",
}


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Lines: the whole, each component with its shapes, the files, what can run it here."""
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
    yield from absent(bundle)
    for name, tokenizer in bundle.tokenizers.items():
        yield f"{name}: up to {tokenizer.max_length} tokens, filled with {tokenizer.pad_id}"
    for file in bundle.plans:
        yield describe_plan(bundle, file)
    yield ""
    yield "built with " + ", ".join(f"{name} {v}" for name, v in bundle.built_with.items())
    yield from executors.described(bundle)


def describe_plan(bundle: Bundle, file: str) -> str:
    """A line: what a TensorRT plan is for, and how its attention was built."""
    plan = bundle.plans[file]
    variant = f" ({', '.join(plan.flags)})" if plan.flags else ""
    profiles = f"{len(plan.profiles)} profile{'s' * (len(plan.profiles) > 1)}"
    return (
        f"{file}: {plan.engine} {plan.version}{variant}, compute capability "
        f"{' and '.join(plan.capabilities)}, {megabytes(bundle.files[file].size)}, "
        f"{profiles}, {plan.fused} of {plan.attention} attention layers fused"
    )


def megabytes(size: int) -> str:
    """1 MB is 10⁶ bytes; small files in kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _schedule(bundle: Bundle) -> str:
    schedule, latents = bundle.schedule, bundle.latents
    step = latents.factor * latents.patch
    return (
        f"{schedule.kind} schedule predicting {schedule.prediction}; latents of "
        f"{latents.channels} channels at 1/{latents.factor}; sizes are multiples of {step}"
    )


def _defaults(bundle: Bundle) -> str:
    d = bundle.defaults
    return (
        f"defaults: {d.width}x{d.height}, {d.num_inference_steps} steps of {d.sampler}, "
        f"guidance {d.guidance_scale:g}"
    )


def _component(bundle: Bundle, name: str, component: ComponentSpec) -> Iterator[str]:
    weights, graph = bundle.files[component.weights], bundle.files[component.graph]
    yield (
        f"{name}: {component.precision}, {component.parameters:,} parameters, weights "
        f"{megabytes(weights.size)}, graph {megabytes(graph.size)}, "
        f"error against PyTorch {component.parity:.1e}{_others(component)}"
    )
    for arrow, tensors in (("<-", component.plain_inputs), ("->", component.outputs)):
        for tensor in tensors:
            yield f"  {arrow} {tensor.name} {tensor.dtype} {_shape(tensor)}"
    if component.lora is not None:
        yield f"  {_loras(component.lora)}"
    if component.step is not None:
        size = megabytes(bundle.files[component.step].size)
        yield f"  step graph {size}: guidance and solver in one call, over the same weights"
    if component.segments:
        yield f"  {len(component.segments)} segments, to run with the weights of one in memory"
    if component.attention_slice is not None:
        yield f"  {sliced(component.attention_slice)}"
    for dimension, sizes in component.ranges.items():
        yield f"     {dimension}: {sizes.min} to {sizes.max}, tuned for {sizes.opt}"


def _loras(lora: LoraSpec) -> str:
    """Its inputs, two for each of hundreds of weights, in one line."""
    return (
        f"<- lora_A.W, lora_B.W float32 of {len(lora.targets)} linear weights W: LoRAs up to rank "
        f"{lora.rank}, one for all rows or one each; convolutions take none"
    )


def sliced(heads: int) -> str:
    """How attention is computed."""
    return f"attention {heads} head{'s' * (heads > 1)} at a time"


def absent(bundle: Bundle) -> Iterator[str]:
    """What a whole bundle of this family has and this one has not, and what follows from it."""
    for name in COMPONENTS[bundle.family]:
        if name not in bundle.components:
            yield f"no {name}: {WITHOUT[name]}"


def _others(component: ComponentSpec) -> str:
    """The errors on other engines than ONNX Runtime."""
    return "".join(f", on {name} {error:.1e}" for name, error in component.compared.items())


def _shape(tensor: TensorSpec) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"
