"""Recognises models that cannot be exported, so that the error names what the file is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.config_from_shapes.shapes import size
from eri_runtime.errors import CheckpointError, short

SUPPORTED = "SDXL base, SD3, SD3.5 or Flux.1 dev or schnell, or a model fine-tuned from one"
WHOLE = "export the checkpoint that it goes with"
UNQUANTISED = "export the 16-bit, fp8 or GGUF file of this model"


@dataclass(frozen=True)
class Refusal:
    """A kind of file to refuse: the pattern of its keys, what it is, and the way out."""

    pattern: re.Pattern[str]
    what: str
    fix: str | None = None


# other marks than those of Playground 2.5 and CosXL
EDM = r"(^|\.)edm_(?!(mean|std|vpred\.sigma_min|vpred\.sigma_max)$)"

REFUSALS = tuple(
    Refusal(re.compile(pattern), what, fix)
    for pattern, what, fix in (
        (
            r"\.(wscales|wzeros|wtscale|wcscales|smooth|smooth_factor|smooth_factor_orig)$",
            "SVDQuant weights of nunchaku",
            UNQUANTISED,
        ),
        (r"(^|[._])lora_|_lora\d?\.|\.(lokr|hada)_w", "a LoRA", WHOLE),
        (r"^(control_model|controlnet_\w+|input_hint_block)\.", "a ControlNet", WHOLE),
        (r"^redux_(up|down)\.", "Flux Redux, an image adapter", WHOLE),
        (EDM, "a model trained with EDM's noise levels", "export its folder of diffusers"),
        (r"\.(qweight|qzeros)$", "AWQ or GPTQ weights", UNQUANTISED),
        (r"\.weight\._(data|scale)$", "weights quantised by quanto", UNQUANTISED),
        (r"\.(_weight|weight)_(qdata|zero_point)$", "weights quantised by torchao", UNQUANTISED),
        (
            r"\.(absmax|quant_map|nested_\w+)$|\.quant_state\.",
            "quantised weights without the state that bitsandbytes saves",
            UNQUANTISED,
        ),
        (r"^(model\.diffusion_model\.)?distilled_guidance_layer\.", "Chroma", None),
        (r"^(model\.diffusion_model\.)?\w*single_stream_modulation\.", "Flux.2", None),
        (r"^conditioner\.embedders\.0\.model\.", "the SDXL refiner", None),
        (r"^cond_stage_model\.transformer\.", "Stable Diffusion 1.x", None),
        (r"^cond_stage_model\.model\.", "Stable Diffusion 2.x", None),
    )
)

# the width of the refiner's conditions: 5 numbers (SDXL base: 6) and the pooled text
REFINER = 5 * 256 + 1280
# UNets without SDXL's conditions, by the width of the text they read
UNETS: Mapping[int, str] = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
# denoisers by the number of their input channels, where it is not that of the latents
WIDER_UNETS: Mapping[int, str] = {8: "an InstructPix2Pix UNet", 9: "an inpainting UNet"}
WIDER_FLUXES: Mapping[int, str] = {128: "Flux Depth or Canny", 384: "Flux Fill"}


def refuse_keys(file: Path, keys: Iterable[str]) -> None:
    """Raises `CheckpointError` for a file whose keys show that it is not supported."""
    for refusal in REFUSALS:
        match = next((key for key in keys if refusal.pattern.search(key)), None)
        if match is not None:
            raise _refused(file, f"{refusal.what} (by its {short(match)})", refusal.fix)


def refuse_denoiser(file: Path, kind: str, tensors: Tensors) -> None:
    """Raises `CheckpointError` for a denoiser whose shapes show that it is not supported.

    `tensors` are by diffusers' names.
    """
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
    """Raises `CheckpointError` for a denoiser with more input than output channels."""
    inputs, outputs = size(tensors, first, 1), size(tensors, last, 0)
    if inputs != outputs:
        raise _refused(file, names.get(inputs, f"a network of {inputs} channels in, {outputs} out"))


def refuse_wider_config(file: Path, class_name: str, config: Config) -> None:
    """Raises `CheckpointError` for a denoiser whose config has more channels in than out."""
    names = WIDER_UNETS if class_name.startswith("UNet") else WIDER_FLUXES
    inputs, outputs = config.get("in_channels"), config.get("out_channels")
    if isinstance(inputs, int) and outputs is not None and inputs != outputs:
        what = names.get(inputs, f"a network of {inputs} channels in, {outputs} out")
        raise _refused(f"{file}: in_channels", what)


def _refused(file: Path | str, what: str, fix: str | None = None) -> CheckpointError:
    return CheckpointError(file, got=what, expected=SUPPORTED, fix=fix)
