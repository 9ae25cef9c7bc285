"""The LoRAs that prompts name by tags: inputs of the denoiser, or merged into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.errors import UsageError
from eri_runtime.text import Prompt

Scales = Mapping[str, float]


def takes_lora_inputs(bundle: Bundle) -> bool:
    """Returns whether LoRAs are inputs of the bundle's denoiser, so that images differ in them."""
    return bundle.components[DENOISER].lora is not None


def tagged_loras(
    bundle: Bundle, prompts: Sequence[Prompt], loras: Sequence[Scales]
) -> tuple[Scales, ...]:
    """Returns the LoRAs of each image, with those of its prompt's tags, which win.

    They are as in `loras` if the bundle's denoiser takes none as inputs.
    """
    if not takes_lora_inputs(bundle):
        return tuple(loras)
    each = len(loras) // len(prompts)
    return tuple({**own, **dict(prompts[i // each].loras)} for i, own in enumerate(loras))


def merged_loras(bundle: Bundle, prompts: Sequence[Prompt]) -> Scales:
    """Returns the LoRAs that the prompts' tags merge into the weights; none if they are inputs.

    Raises `UsageError` if the prompts differ in them.
    """
    if takes_lora_inputs(bundle):
        return {}
    first = dict(prompts[0].loras)
    if any(dict(prompt.loras) != first for prompt in prompts):
        raise UsageError(
            "prompt",
            got="prompts with different <lora:...> tags",
            expected="the same tags in all of them, as they are merged into the weights",
            fix="make one call for each, or export again with `--lora-rank`",
        )
    return first
