"""The inputs and outputs that the runtime gives and takes, by component and family.

`Bundle` lists them in words. A manifest that says otherwise would fail in the middle of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from eri_runtime.bundle.component_spec import (
    CACHED_REST,
    COPIES,
    LORA_A,
    LORA_B,
    LORAS,
    RANK,
    RESIDUAL,
    SCORES,
    ComponentSpec,
    TensorSpec,
)
from eri_runtime.bundle.spec import DENOISER, Bundle, Family

# sizes by tensor: a dimension's name, a number, * for any number; `length` is `tokens` or a number
Shapes = Mapping[str, str]
Fault = tuple[str, object, str]  # where, what was found, what was expected

ANY = "*"
LATENTS = "batch channels height width"
IMAGE = "batch 3 image_height image_width"
HIDDEN, POOLED = {"hidden_states": "batch length *"}, {"pooled": "batch *"}
# what a polynomial of `activations` may count besides an input's sizes
COUNTED = frozenset({"1", SCORES, COPIES})

DENOISERS: Mapping[Family, Shapes] = {
    "sdxl": {
        "sample": LATENTS,
        "timestep": "batch",
        "encoder_hidden_states": "batch tokens *",
        "text_embeds": "batch *",
        "time_ids": "batch 6",
    },
    "sd35": {
        "sample": LATENTS,
        "timestep": "batch",
        "encoder_hidden_states": "batch tokens *",
        "pooled_projections": "batch *",
    },
    "flux": {
        "sample": "batch patches packed",
        "timestep": "batch",
        "encoder_hidden_states": "batch tokens *",
        "pooled_projections": "batch *",
        "img_ids": "patches 3",
        "txt_ids": "tokens 3",
    },
}
ENCODED: Mapping[Family, Mapping[str, Shapes]] = {
    "sdxl": {"text_encoder": HIDDEN, "text_encoder_2": HIDDEN | POOLED},
    "sd35": {
        "text_encoder": HIDDEN | POOLED,
        "text_encoder_2": HIDDEN | POOLED,
        "text_encoder_3": HIDDEN,
    },
    "flux": {"text_encoder": POOLED, "text_encoder_2": HIDDEN},
}


def interface(bundle: Bundle, name: str) -> tuple[Shapes, Shapes]:
    """Returns the inputs and the outputs of a component, without a denoiser's LoRA inputs."""
    if name == DENOISER:
        inputs = DENOISERS[bundle.family]
        embedded = {"guidance": "batch"} if bundle.guidance_embedding else {}
        return {**inputs, **embedded}, {"output": inputs["sample"]}
    if name == "vae_decoder":
        return {"latents": LATENTS}, {"image": IMAGE}
    if name == "vae_encoder":
        return {"image": IMAGE}, {"mean": LATENTS, "logvar": LATENTS}
    return {"input_ids": "batch length"}, ENCODED[bundle.family][name]


def faults(bundle: Bundle, name: str) -> Iterator[Fault]:
    """Yields what is wrong with the inputs, outputs and ranges of a component."""
    component = bundle.components[name]
    sizes = {
        "channels": bundle.latents.channels,
        "packed": bundle.latents.channels * bundle.latents.patch**2,
    }
    for field, tensors, expected in zip(
        ("inputs", "outputs"),
        (component.plain_inputs, component.outputs),
        interface(bundle, name),
        strict=True,
    ):
        names = [tensor.name for tensor in tensors]
        if sorted(names) != sorted(expected):
            yield field, names, ", ".join(expected)
            return
        for tensor in tensors:
            form = expected[tensor.name]
            if not _fits(tensor, form, sizes):
                yield f"{field}.{tensor.name}", f"{tensor.dtype} {list(tensor.shape)}", form
    yield from _lora_faults(component)
    yield from _range_faults(component)
    yield from _part_faults(component)
    if component.step_per_image and component.step is None:
        yield "step_per_image", True, "a step graph beside it, or false"


def _fits(tensor: TensorSpec, form: str, sizes: Mapping[str, int]) -> bool:
    """Returns whether a tensor has the sizes of `form`, and the type that goes with its name."""
    words = form.split()
    dtype = "int64" if tensor.name == "input_ids" else "float32"
    return (
        tensor.dtype == dtype
        and len(tensor.shape) == len(words)
        and all(_is(size, word, sizes) for size, word in zip(tensor.shape, words, strict=True))
    )


def _is(size: int | str, word: str, sizes: Mapping[str, int]) -> bool:
    """Returns whether one size is what a word of a form says."""
    if word == "length":
        return size == "tokens" or isinstance(size, int)
    if word == ANY:
        return isinstance(size, int)
    number = int(word) if word.isdecimal() else sizes.get(word)
    return size == (word if number is None else number)


def _lora_faults(component: ComponentSpec) -> Iterator[Fault]:
    """Yields LoRA inputs without their other half, or of another shape."""
    shapes = {tensor.name: tensor.shape for tensor in component.inputs}
    for name, shape in shapes.items():
        if name.startswith(LORA_A):
            other = LORA_B + name.removeprefix(LORA_A)
            fits = len(shape) == 3 and isinstance(shape[1], int)
        elif name.startswith(LORA_B):
            other = LORA_A + name.removeprefix(LORA_B)
            fits = len(shape) == 3 and isinstance(shape[2], int)
        else:
            continue
        if other not in shapes:
            yield f"inputs.{name}", "no other half", other
        elif not fits:
            yield f"inputs.{name}", list(shape), "a factor of a LoRA"
        elif {LORAS, RANK} - component.ranges.keys():
            yield "ranges", sorted(component.ranges), f"{LORAS} and {RANK} among them"


def _part_faults(component: ComponentSpec) -> Iterator[Fault]:
    """Yields parts for step caching that are not the three that the runtime runs."""
    if not component.step_cache:
        return
    known = {tensor.name for tensor in component.inputs}
    results = [part.outputs for part in component.step_cache]
    if RESIDUAL not in results[0] or results[1:] != [(CACHED_REST,), ("output",)]:
        yield "step_cache", [*map(list, results)], "a first block, the others and the last layers"
    for part in component.step_cache:
        if unknown := set(part.inputs) - known:
            yield "step_cache", sorted(unknown), "what is made before"
        known |= {*part.outputs}


def _range_faults(component: ComponentSpec) -> Iterator[Fault]:
    """Yields dimensions of inputs without a range, ranges of no input, and unknown monomials."""
    named = {size for each in component.inputs for size in each.shape if isinstance(size, str)}
    if named != component.ranges.keys():
        yield "ranges", sorted(component.ranges), ", ".join(sorted(named))
    counted = {word for each in component.activations for key in each for word in key.split("*")}
    if unknown := counted - named - COUNTED:
        yield "activations", sorted(unknown), ", ".join(sorted(named | COUNTED))
