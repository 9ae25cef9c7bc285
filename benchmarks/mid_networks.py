"""Networks in the three families' layouts with on the order of 100 million random weights.

Only the width and the number of blocks differ from the published models; head sizes, text lengths,
groups and the ratio of double to single blocks do not. The VAE decoder is SDXL's at its real size.
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

from eri_export.checkpoints.checkpoint import Component
from eri_export.checkpoints.shipped_configs import Model, configs
from eri_export.checkpoints.sources.folder import open_part
from eri_export.gate.pytorch_reference import flops
from eri_export.graphs.recipes.base import Recipe
from eri_export.graphs.recipes.flux import flux_recipe
from eri_export.graphs.recipes.mmdit import mmdit_recipe
from eri_export.graphs.recipes.sizes import Frame
from eri_export.graphs.recipes.unet import unet_recipe
from eri_export.graphs.recipes.vae import decoder_recipe
from eri_runtime.bundle import LatentSpec, Precision, ShapeRange
from tests.support.checkpoints import randomised
from tests.support.components import up_to

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
PUBLISHED: Mapping[str, tuple[Model, str, Any]] = {
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
# input sizes of a step at 64 x 64 latents, with classifier-free guidance
SIZES: Mapping[str, Mapping[str, int]] = {
    "sdxl": {"batch": 2, "height": 64, "width": 64, "tokens": CLIP},
    "sd35": {"batch": 2, "height": 64, "width": 64, "tokens": 333},
    "flux": {"batch": 1, "patches": 1024, "tokens": 512},
    "vae_decoder": {"batch": 1, "height": 32, "width": 32},
}


def network(family: str) -> Any:
    """Builds the network with random weights of unit gain."""
    model, part, kind = PUBLISHED[family]
    return randomised(kind.from_config({**configs(model)[part], **CHANGES[family]}), 0).eval()


def recipe_of(family: str, folder: Path, precision: Precision = "fp32") -> Recipe:
    """Returns the recipe of a family's network, after saving it to `folder` unless it exists."""
    home = folder / family
    if not home.exists():
        network(family).save_pretrained(home)
    return RECIPES[family](open_part(home, family, PUBLISHED[family][2].__name__), precision)


# layers of the published models that depend only on the prompt, and its number of tokens
OF_PROMPT: Mapping[str, tuple[str, int]] = {
    "sdxl": (r"\.attn2\.to_[kv]$", CLIP),
    "sd35": (r"^context_embedder$", 333),
    "flux": (r"^context_embedder$", 512),
}


def prompt_share(family: str) -> dict[str, float]:
    """Returns the share of a step's operations that depend only on the prompt.

    Keys are pixels per side; empty for a VAE.
    """
    if family not in OF_PROMPT:
        return {}
    model, part, kind = PUBLISHED[family]
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
