"""The VAEs of `vae_tiling`: a bundle's own without size limits, and SDXL's at its real size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from eri_export.checkpoints.sources.folder import open_part
from eri_export.graphs.recipes.sizes import Frame
from eri_export.graphs.recipes.vae import decoder_recipe
from eri_export.graphs.trace import trace
from eri_runtime.bundle import Bundle, LatentSpec, ShapeRange, TensorSpec
from eri_runtime.executors import CPU, Settings
from eri_runtime.latents import DECODER, ENCODER, vae
from tests.support.components import write_component

CONFIG = Path(__file__).parents[1] / "eri_export" / "checkpoints" / "configs" / "vae-sdxl.json"
ANY = ShapeRange(min=1, opt=64, max=1 << 16)
LATENTS = LatentSpec(channels=4, factor=8, scale=0.13025, shift=0.0, patch=1)


def opened(bundle: Bundle) -> tuple[Bundle, vae.Run]:
    """Returns the bundle with a VAE of any size, as the graph has no limits, and its runner."""
    parts = {}
    for name in bundle.components.keys() & {DECODER, ENCODER}:
        spec = bundle.components[name]
        ranges = {key: each if key == "batch" else ANY for key, each in spec.ranges.items()}
        parts[name] = replace(spec, ranges=ranges)
    bundle = replace(bundle, components=parts)
    executors = {
        name: CPU.executor(bundle.path(spec.graph), spec, Settings())
        for name, spec in parts.items()
    }
    return bundle, lambda name, inputs: executors[name].run(inputs)


def only_sdxl(bundle: Bundle, folder: Path) -> Bundle:
    """Returns the bundle with SDXL's decoder as its only component."""
    shape = ("batch", LATENTS.channels, "height", "width")
    latents = TensorSpec(name="latents", dtype="float32", shape=shape)
    parts = {DECODER: replace(bundle.components[DECODER], inputs=(latents,))}
    return replace(bundle, root=folder, pins=None, components=parts, latents=LATENTS)


def make_sdxl(folder: Path) -> None:
    """Exports SDXL's decoder with PyTorch's random initial weights, unless it exists."""
    if (folder / DECODER / "model.onnx").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    AutoencoderKL.from_config(json.loads(CONFIG.read_text())).save_pretrained(folder / "vae")
    side = ShapeRange(min=1, opt=128, max=ANY.max)
    frame = Frame(unit=1, height=side, width=side)
    recipe = decoder_recipe(
        open_part(folder / "vae", "vae", "AutoencoderKL"), "fp32", frame, LATENTS
    )
    write_component(trace(recipe), recipe, folder / DECODER)
