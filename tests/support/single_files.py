"""Single files in every published layout, from tiny checkpoints or of full-size shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, T5Config, T5EncoderModel

from eri_export.checkpoints.checkpoint import PARTS, Config
from eri_export.checkpoints.shipped_configs import Model, configs
from tests.support.single_file_keys import (
    State,
    bfl_flux,
    ldm_unet,
    ldm_vae,
    open_clip,
    prefixed,
    sd3_mmdit,
    wrapped_clip,
)

_FAMILIES = {"sdxl": "sdxl", "sd3": "sd35", "sd3.5": "sd35", "flux": "flux"}

LDM, VAE, COMFY_VAE = "model.diffusion_model.", "first_stage_model.", "vae."
CLIP_L, T5 = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."
CLIP_G = "text_encoders.clip_g.transformer."
SDXL_CLIP_L, SDXL_CLIP_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def weights(folder: Path) -> State:
    """The tensors of a component's folder."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def published_sdxl(root: Path) -> State:
    """SDXL base: one file of everything."""
    clip = wrapped_clip(weights(root / "text_encoder"))
    clip["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    return {
        **prefixed(LDM, ldm_unet(weights(root / "unet"))),
        **prefixed(VAE, ldm_vae(weights(root / "vae"))),
        **prefixed(SDXL_CLIP_L, clip),
        **prefixed(SDXL_CLIP_G, open_clip(weights(root / "text_encoder_2"))),
    }


def published_sd3(root: Path) -> State:
    """SD3 and SD3.5: the transformer and the VAE."""
    return {
        **prefixed(LDM, sd3_mmdit(weights(root / "transformer"))),
        **prefixed(VAE, ldm_vae(weights(root / "vae"))),
    }


def sd3_with_encoders(root: Path) -> State:
    """SD3 with its three text encoders; CLIP-L has no projection."""
    clip = weights(root / "text_encoder")
    del clip["text_projection.weight"]
    return {
        **published_sd3(root),
        **prefixed(CLIP_L, clip),
        **prefixed(CLIP_G, weights(root / "text_encoder_2")),
        **prefixed(T5, weights(root / "text_encoder_3")),
    }


def comfy_flux(root: Path) -> State:
    """Flux as ComfyUI saves a checkpoint."""
    return {
        **prefixed(LDM, bfl_flux(weights(root / "transformer"))),
        **prefixed(COMFY_VAE, ldm_vae(weights(root / "vae"))),
        **prefixed(CLIP_L, wrapped_clip(weights(root / "text_encoder"))),
        **prefixed(T5, weights(root / "text_encoder_2")),
        "text_encoders.clip_l.logit_scale": torch.zeros(()),
    }


def written(file: Path, state: State) -> Path:
    """`state` as a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


def sparse(file: Path, shapes: Mapping[str, Iterable[int]], dtype: str = "F16") -> Path:
    """A file of 2-byte tensors with these shapes that takes no more disk than its header."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + position)
    return file


def full_size(model: Model, part: str) -> State:
    """The tensors of a published model's part at full size, on the meta device."""
    config, family = configs(model)[part], _FAMILIES[model.split("-")[0]]
    return dict(network(PARTS[family][part], config).state_dict())


def network(class_name: str, config: Config) -> torch.nn.Module:
    """A network of diffusers or transformers without values."""
    with torch.device("meta"):
        if class_name.startswith("CLIP"):
            return getattr(transformers, class_name)(CLIPTextConfig.from_dict(dict(config)))
        if class_name.startswith("T5"):
            return T5EncoderModel(T5Config.from_dict(dict(config)))
        return getattr(diffusers, class_name).from_config(dict(config))
