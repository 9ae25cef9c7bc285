"""LoRAs of one Flux model on another: dev's on schnell, and control LoRAs, which are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eri_runtime.errors import LoraError, short
from eri_runtime.weights.lora.keys import Module, Role
from eri_runtime.weights.lora.targets import Shape, Target, kohya_name

GUIDANCE = "time_text_embed.guidance_embedder.linear_1.weight"
GUIDANCE_MODULE = re.compile(
    r"(^|_)(time_text_embed_guidance_embedder_linear_[12]|guidance_in_(in|out)_layer)$"
)
PATCHES = "x_embedder.weight"  # embeds patches of latents; its columns are their channels
WITH_INPUTS: tuple[Role, ...] = ("down", "diff")  # factors with a column for each input


def guidance_keys(modules: Iterable[Module], names: Mapping[str, Shape]) -> frozenset[str]:
    """Returns the keys for a guidance embedder that the model lacks.

    Flux dev embeds the guidance scale and schnell does not, so what a LoRA of dev does to the
    embedder has no effect on schnell.

    Args:
        modules: The modules of the LoRA.
        names: The shapes of Flux's denoiser, by name.
    """
    if GUIDANCE in names:
        return frozenset()
    return frozenset(
        key
        for module in modules
        if GUIDANCE_MODULE.search(kohya_name(module.name))
        for key in module.keys.values()
    )


def refuse_control_lora(
    matched: Iterable[tuple[Module, Sequence[Target]]],
    tensors: Mapping[str, Any],
    names: Mapping[str, Shape],
) -> None:
    """Raises `LoraError` for a control LoRA, which joins a control image to the latents.

    Args:
        matched: The modules of the LoRA with their targets.
        tensors: The tensors of the LoRA.
        names: The shapes of Flux's denoiser, by name.
    """
    for module, targets in matched:
        if all(target.name != PATCHES for target in targets):
            continue
        inputs = names[PATCHES][1]
        for key in (module.keys[role] for role in WITH_INPUTS if role in module.keys):
            shape: Shape = getattr(tensors[key], "shape", ())
            if len(shape) == 2 and shape[1] > inputs and shape[1] % inputs == 0:
                raise LoraError(
                    short(key),
                    got=f"a control LoRA, such as Flux Depth or Canny: {shape[1]} channels, the "
                    "latents' and a control image's",
                    expected=f"a LoRA for the {inputs} channels of this model",
                    fix="a bundle has no input for a control image; use a LoRA without one",
                )
