"""One recipe a component: how it is built, what goes in and out, at which sizes."""

from __future__ import annotations

from collections.abc import Mapping

from eri_export import describe
from eri_export.checkpoint import Checkpoint, Component
from eri_export.precision import HALVES, Policy
from eri_export.ranges import USUAL, Ranges
from eri_export.recipes.base import Recipe, fixed
from eri_export.recipes.flux import flux_recipe
from eri_export.recipes.mmdit import mmdit_recipe
from eri_export.recipes.sizes import Frame, after_clip, text_tokens
from eri_export.recipes.text import (
    ClipHidden,
    ClipHiddenPooled,
    ClipPooled,
    clip_recipe,
    t5_recipe,
)
from eri_export.recipes.unet import unet_recipe
from eri_export.recipes.vae import decoder_recipe, encoder_recipe
from eri_runtime.errors import CheckpointError
from eri_runtime.spec import Defaults, LatentSpec, TokenizerSpec

CLIP_OUTPUTS = {
    ("sdxl", "text_encoder"): ClipHidden,
    ("sdxl", "text_encoder_2"): ClipHiddenPooled,
    ("sd35", "text_encoder"): ClipHiddenPooled,
    ("sd35", "text_encoder_2"): ClipHiddenPooled,
    ("flux", "text_encoder"): ClipPooled,
}


@describe.reads_configs
def recipes_for(
    checkpoint: Checkpoint,
    policy: Policy,
    latents: LatentSpec,
    defaults: Defaults,
    tokenizers: Mapping[str, TokenizerSpec],
    ranges: Ranges = USUAL,
) -> tuple[Recipe, ...]:
    """The recipes of every component that a checkpoint has.

    Raises `SizeError` for ranges that its networks cannot have.
    """
    frame = Frame.of(latents, defaults, _side_limit(checkpoint), ranges)
    recipes = (
        _denoiser(checkpoint, policy, frame, latents, tokenizers, ranges),
        *_vae(checkpoint, policy, frame, latents),
        *(
            _text_encoder(checkpoint, component, policy, frame, tokenizers, ranges)
            for name, component in checkpoint.components.items()
            if name.startswith("text_encoder")
        ),
    )
    return tuple(map(fixed, recipes)) if ranges.static else recipes


def _denoiser(
    checkpoint: Checkpoint,
    policy: Policy,
    frame: Frame,
    latents: LatentSpec,
    tokenizers: Mapping[str, TokenizerSpec],
    ranges: Ranges,
) -> Recipe:
    source, clip = checkpoint.denoiser, describe.clip_tokens(tokenizers)
    precision = policy.of(checkpoint.family, "denoiser")
    _check_channels(source, latents)
    if checkpoint.family == "sdxl":
        return unet_recipe(source, precision, frame, clip, text_tokens(ranges, clip, 4 * clip))
    tokens = text_tokens(ranges, *describe.t5_tokens(checkpoint.family, tokenizers))
    if checkpoint.family == "sd35":  # reads CLIP's tokens and T5's in one sequence
        return mmdit_recipe(source, precision, frame, after_clip(tokens, clip))
    return flux_recipe(source, precision, frame, tokens)


def _vae(
    checkpoint: Checkpoint, policy: Policy, frame: Frame, latents: LatentSpec
) -> tuple[Recipe, ...]:
    """Both halves, or nothing of a checkpoint without a VAE."""
    if "vae" not in checkpoint.components:
        return ()
    vae = checkpoint.components["vae"]
    decoder, encoder = (policy.of(checkpoint.family, half) for half in HALVES)
    return (
        decoder_recipe(vae, decoder, frame, latents),
        encoder_recipe(vae, encoder, frame, latents),
    )


def _check_channels(denoiser: Component, latents: LatentSpec) -> None:
    """Raise `CheckpointError` for a denoiser that reads more than latents, as inpainting's."""
    packed = latents.patch**2 if denoiser.class_name == "FluxTransformer2DModel" else 1
    expected, got = packed * latents.channels, denoiser.config["in_channels"]
    if got != expected:
        raise CheckpointError(
            f"{denoiser.origin}: in_channels", got=got, expected=f"{expected}, latents and no more"
        )


def _text_encoder(
    checkpoint: Checkpoint,
    source: Component,
    policy: Policy,
    frame: Frame,
    tokenizers: Mapping[str, TokenizerSpec],
    ranges: Ranges,
) -> Recipe:
    length = tokenizers[source.name.replace("text_encoder", "tokenizer")].max_length
    precision = policy.of(checkpoint.family, source.name)
    if source.class_name == "T5EncoderModel":
        tokens = text_tokens(ranges, *describe.t5_tokens(checkpoint.family, tokenizers))
        return t5_recipe(source, precision, tokens, frame.images)
    wrap = CLIP_OUTPUTS[checkpoint.family, source.name]
    return clip_recipe(source, precision, wrap, length, frame.images)


def _side_limit(checkpoint: Checkpoint) -> int | None:
    """The most latents a side may have: MMDiT's position table ends there."""
    config = checkpoint.denoiser.config
    table = config.get("pos_embed_max_size")
    return int(table) * int(config["patch_size"]) if table else None
