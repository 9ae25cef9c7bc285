"""Networks of the three families' own layouts with some hundred million random weights.

Everything but the width and the number of blocks is as published: head sizes, text lengths, groups,
the ratio of double to single blocks. The VAE decoder is SDXL's own at its real size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from eri_export.checkpoint import Component
from eri_export.gate.reference import flops
from eri_export.recipes.base import Recipe
from eri_export.recipes.flux import flux_recipe
from eri_export.recipes.mmdit import mmdit_recipe
from eri_export.recipes.sizes import Frame
from eri_export.recipes.unet import unet_recipe
from eri_export.recipes.vae import decoder_recipe
from eri_export.shipped import Model, configs
from eri_export.sources.folder import open_part
from eri_runtime.spec import LatentSpec, Precision, ShapeRange
from tests.checkpoints import randomised
from tests.components import up_to

SIDE = ShapeRange(min=1, opt=64, max=128)
FRAME = Frame(unit=2, height=SIDE, width=SIDE)
LATENTS = LatentSpec(channels=4, factor=8, scale=0.13025, shift=0.0, patch=1)
CLIP = 77  # tokens of one prompt
WIDTH = 768
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "sdxl": {
        "block_out_channels": (128, 256, 512),
        "transformer_layers_per_block": (1, 2, 4),
        "attention_head_dim": (2, 4, 8),
    },
    "sd35": {
        "num_layers": 5,
        "num_attention_heads": WIDTH // 64,
        "caption_projection_dim": WIDTH,
        "dual_attention_layers": (0, 1),
    },
    "flux": {
        "num_layers": 2,
        "num_single_layers": 4,
        "num_attention_heads": WIDTH // 128,
    },
    "vae_decoder": {},
}
OF: Mapping[str, tuple[Model, str, Any]] = {
    "sdxl": ("sdxl-base", "unet", UNet2DConditionModel),
    "sd35": ("sd3.5-medium", "transformer", SD3Transformer2DModel),
    "flux": ("flux-dev", "transformer", FluxTransformer2DModel),
    "vae_decoder": ("sdxl-base", "vae", AutoencoderKL),
}
RECIPES: Mapping[str, Callable[[Component, Precision], Recipe]] = {
    "sdxl": lambda source, precision: unet_recipe(source, precision, FRAME, CLIP, up_to(CLIP, 154)),
    "sd35": lambda source, precision: mmdit_recipe(source, precision, FRAME, up_to(333, 589)),
    "flux": lambda source, precision: flux_recipe(source, precision, FRAME, up_to(512, 512)),
    "vae_decoder": lambda source, precision: decoder_recipe(source, precision, FRAME, LATENTS),
}
# what a step at 64 x 64 latents is given, classifier-free guidance included
SIZES: Mapping[str, Mapping[str, int]] = {
    "sdxl": {"batch": 2, "height": 64, "width": 64, "tokens": CLIP},
    "sd35": {"batch": 2, "height": 64, "width": 64, "tokens": 333},
    "flux": {"batch": 1, "patches": 1024, "tokens": 512},
    "vae_decoder": {"batch": 1, "height": 32, "width": 32},
}


def network(family: str) -> Any:
    """The network with weights of unit gain."""
    model, part, kind = OF[family]
    return randomised(kind.from_config({**configs(model)[part], **CHANGES[family]}), 0).eval()


def recipe_of(family: str, folder: Path, precision: Precision = "fp32") -> Recipe:
    """The recipe of a family's network, which is saved in `folder` first unless it is there."""
    home = folder / family
    if not home.exists():
        network(family).save_pretrained(home)
    return RECIPES[family](open_part(home, family, OF[family][2].__name__), precision)


# the layers of the published models that read nothing but the prompt, and its tokens
OF_PROMPT: Mapping[str, tuple[str, int]] = {
    "sdxl": (r"\.attn2\.to_[kv]$", CLIP),
    "sd35": (r"^context_embedder$", 333),
    "flux": (r"^context_embedder$", 512),
}


def prompt_share(family: str) -> dict[str, float]:
    """Of the operations of a step of the published model, by pixels a side; empty for a VAE."""
    if family not in OF_PROMPT:
        return {}
    model, part, kind = OF[family]
    pattern, tokens = OF_PROMPT[family]
    source = Component("denoiser", kind.__name__, Path(model), configs(model)[part], dict)
    recipe = RECIPES[family](source, "fp32")
    with torch.device("meta"):
        layers = dict(recipe.build().named_modules())
    numbers = sum(each.weight.numel() for name, each in layers.items() if re.search(pattern, name))
    shares = {}
    for pixels in (512, 1024):
        latents = pixels // 8
        sizes = {"batch": 1, "tokens": tokens, "height": latents, "width": latents}
        total = flops(recipe, [{**sizes, "patches": latents**2 // 4}])[0]
        shares[str(pixels)] = round(2 * numbers * tokens / total, 4)
    return shares
