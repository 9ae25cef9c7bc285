"""What looks like a checkpoint of these families and is none: each refused by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eri_export.checkpoint import Tensors
from eri_export.sources.keys.parts import size
from eri_runtime.errors import CheckpointError, short

SUPPORTED = "SDXL base, SD3, SD3.5 or Flux.1 dev or schnell, or a model fine-tuned from one"
WHOLE = "export the checkpoint that it goes with"
UNQUANTISED = "export the 16-bit checkpoint it was made from"


@dataclass(frozen=True)
class Refusal:
    """Files with a key that `pattern` finds: what they are, and the way out."""

    pattern: re.Pattern[str]
    what: str
    fix: str | None = None


REFUSALS = tuple(
    Refusal(re.compile(pattern), what, fix)
    for pattern, what, fix in (
        (r"(^|[._])lora_|_lora\d?\.|\.(lokr|hada)_w", "a LoRA", WHOLE),
        (r"^(control_model|controlnet_\w+|input_hint_block)\.", "a ControlNet", WHOLE),
        (r"^redux_(up|down)\.", "Flux Redux, an image adapter", WHOLE),
        (r"(^|\.)edm_", "a model trained with EDM's noise levels", None),
        (
            r"scaled_fp8$|\.(scale_weight|scale_input|weight_scale|input_scale)$|\.comfy_quant$",
            "scaled fp8 weights",
            UNQUANTISED,
        ),
        (r"\.(absmax|qweight|quant_map|SCB)$|\.quant_state\.", "quantised weights", UNQUANTISED),
        (r"^(model\.diffusion_model\.)?distilled_guidance_layer\.", "Chroma", None),
        (r"^(model\.diffusion_model\.)?\w*single_stream_modulation\.", "Flux.2", None),
        (r"^conditioner\.embedders\.0\.model\.", "the SDXL refiner", None),
        (r"^cond_stage_model\.transformer\.", "Stable Diffusion 1.x", None),
        (r"^cond_stage_model\.model\.", "Stable Diffusion 2.x", None),
    )
)

# SDXL's refiner reads an aesthetic score beside five sizes, the base six sizes
REFINER = 5 * 256 + 1280
# the width of the text that a UNet without SDXL's conditions reads
UNETS: Mapping[int, str] = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
# the channels that a denoiser reads in place of its own latents
WIDER_UNETS: Mapping[int, str] = {8: "an InstructPix2Pix UNet", 9: "an inpainting UNet"}
WIDER_FLUXES: Mapping[int, str] = {128: "Flux Depth or Canny", 384: "Flux Fill"}


def refuse_keys(file: Path, keys: Iterable[str]) -> None:
    """Raise `CheckpointError` for a file that its keys show to be something else."""
    for refusal in REFUSALS:
        found = next((key for key in keys if refusal.pattern.search(key)), None)
        if found is not None:
            raise _refused(file, f"{refusal.what} (by its {short(found)})", refusal.fix)


def refuse_denoiser(file: Path, kind: str, tensors: Tensors) -> None:
    """Raise `CheckpointError` for a denoiser, by diffusers' names, that its shapes show to be."""
    if kind == "unet":
        _refuse_unet(file, tensors)
    elif kind == "flux":
        _refuse_wider(file, WIDER_FLUXES, tensors, "x_embedder.weight", "proj_out.weight")


def _refuse_unet(file: Path, tensors: Tensors) -> None:
    _refuse_wider(file, WIDER_UNETS, tensors, "conv_in.weight", "conv_out.weight")
    conditions = "add_embedding.linear_1.weight"
    if conditions not in tensors:
        texts = (size(tensors, name, 1) for name in tensors if name.endswith("attn2.to_k.weight"))
        raise _refused(file, UNETS.get(next(texts, 0), "a UNet without SDXL's conditions"))
    if size(tensors, conditions, 1) == REFINER:
        raise _refused(file, "the SDXL refiner")


def _refuse_wider(
    file: Path, names: Mapping[int, str], tensors: Tensors, first: str, last: str
) -> None:
    """Raise `CheckpointError` for a denoiser that reads more than it writes."""
    read, written = size(tensors, first, 1), size(tensors, last, 0)
    if read != written:
        raise _refused(file, names.get(read, f"a network of {read} channels in, {written} out"))


def _refused(file: Path, what: str, fix: str | None = None) -> CheckpointError:
    return CheckpointError(file, got=what, expected=SUPPORTED, fix=fix)
