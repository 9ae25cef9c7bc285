"""Keywords of diffusers that cannot mean anything here, each with its reason and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from eri_runtime.errors import UsageError, short


class Refusal(NamedTuple):
    """Why a keyword is refused.

    Attributes:
        expected: What a call may have instead.
        fix: What to do, or None.
    """

    expected: str
    fix: str | None = None


_IP_ADAPTER = Refusal("a call without IP-Adapter, for which the graph has no input")
_SKIPPED = Refusal("a call without it, as a graph runs all of its layers", "use guidance_interval=")
_SCORE = Refusal("a call without it, as only SDXL's refiner reads a score", "leave it out")
_CALLBACK = Refusal("callback_on_step_end", "pass callback_on_step_end= or on_step=")

REFUSED: Mapping[str, Refusal] = {
    "ip_adapter_image": _IP_ADAPTER,
    "ip_adapter_image_embeds": _IP_ADAPTER,
    "negative_ip_adapter_image": _IP_ADAPTER,
    "negative_ip_adapter_image_embeds": _IP_ADAPTER,
    "skip_guidance_layers": _SKIPPED,
    "skip_layer_guidance_scale": _SKIPPED,
    "skip_layer_guidance_stop": _SKIPPED,
    "skip_layer_guidance_start": _SKIPPED,
    "aesthetic_score": _SCORE,
    "negative_aesthetic_score": _SCORE,
    "masked_image_latents": Refusal(
        "a call without it, as only denoisers of nine channels read it",
        "pass image= and mask_image=",
    ),
    "callback": _CALLBACK,
    "callback_steps": _CALLBACK,
    "scheduler": Refusal("the name of a sampler", "pass sampler= and sigmas="),
    "control_image": Refusal("a call without ControlNet, for which the graph has no input"),
    "controlnet_conditioning_scale": Refusal(
        "a call without ControlNet, for which the graph has no input"
    ),
}


def check_refused(keywords: Mapping[str, Any]) -> None:
    """Raises `UsageError` for the first keyword that cannot mean anything here.

    `clip_skip` may be 0, which is what the graphs compute.
    """
    for name, value in keywords.items():
        if name in REFUSED:
            expected, fix = REFUSED[name]
            raise UsageError(name, got=short(value), expected=expected, fix=fix)
    skipped = keywords.get("clip_skip", 0)
    if isinstance(skipped, bool) or not isinstance(skipped, int) or skipped != 0:
        expected = "0, as the text encoders' graphs end at the last layer but one"
        raise UsageError("clip_skip", got=short(skipped), expected=expected)
