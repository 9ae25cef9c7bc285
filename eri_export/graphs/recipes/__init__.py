"""One recipe per component: how its network is built, its inputs and outputs, and its sizes.

`base` has the recipe itself, `sizes` the ranges and examples; `unet`, `mmdit`, `flux`, `vae` and
`text` make recipes.

A new family needs a module here and an entry in `recipes_for`, and besides the graph:

- `eri_runtime.bundle`: `Family` and `COMPONENTS`;
- `eri_runtime.text.conditioning`: how its prompts become inputs of the denoiser;
- `eri_runtime.latents.vae`: `pack` and `unpack`, if its denoiser sees packed latents;
- `eri_runtime.weights.published_keys` and `weights.lora.targets`: names of published weights;
- `eri_export.checkpoints`: its classes (`checkpoint`), the facts of its configs (`manifest_facts`),
  its files (`sources.detect_networks`, `config_from_shapes`) and published configs;
- `eri_export.choices.precision`: the modules that stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from eri_export.checkpoints import Checkpoint, Component, manifest_facts
from eri_export.choices import USUAL, VAE_HALVES, Policy, Ranges
from eri_export.graphs.recipes.base import Recipe, fixed
from eri_export.graphs.recipes.flux import flux_recipe
from eri_export.graphs.recipes.mmdit import mmdit_recipe
from eri_export.graphs.recipes.sizes import Frame, after_clip, text_tokens
from eri_export.graphs.recipes.text import (
    ClipHidden,
    ClipHiddenPooled,
    ClipPooled,
    clip_recipe,
    t5_recipe,
)
from eri_export.graphs.recipes.unet import unet_recipe
from eri_export.graphs.recipes.vae import decoder_recipe, encoder_recipe
from eri_runtime.bundle import Defaults, LatentSpec, TokenizerSpec
from eri_runtime.errors import CheckpointError

CLIP_OUTPUTS = {
    ("sdxl", "text_encoder"): ClipHidden,
    ("sdxl", "text_encoder_2"): ClipHiddenPooled,
    ("sd35", "text_encoder"): ClipHiddenPooled,
    ("sd35", "text_encoder_2"): ClipHiddenPooled,
    ("flux", "text_encoder"): ClipPooled,
}


@manifest_facts.reads_configs
def recipes_for(
    checkpoint: Checkpoint,
    policy: Policy,
    latents: LatentSpec,
    defaults: Defaults,
    tokenizers: Mapping[str, TokenizerSpec],
    ranges: Ranges = USUAL,
) -> tuple[Recipe, ...]:
    """Returns the recipes of every component that a checkpoint has.

    Raises `SizeError` for ranges that its networks do not support, and `CheckpointError` for
    configs of networks that cannot be exported.
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
    source, clip = checkpoint.denoiser, manifest_facts.clip_tokens(tokenizers)
    precision = policy.of(checkpoint.family, "denoiser")
    _check_channels(source, latents)
    if checkpoint.family == "sdxl":
        return unet_recipe(source, precision, frame, clip, text_tokens(ranges, clip, 4 * clip))
    tokens = text_tokens(ranges, *manifest_facts.t5_tokens(checkpoint.family, tokenizers))
    if checkpoint.family == "sd35":  # it reads CLIP's and T5's tokens in one sequence
        return mmdit_recipe(source, precision, frame, after_clip(tokens, clip))
    return flux_recipe(source, precision, frame, tokens)


def _vae(
    checkpoint: Checkpoint, policy: Policy, frame: Frame, latents: LatentSpec
) -> tuple[Recipe, ...]:
    """Returns the recipes of decoder and encoder; none for a checkpoint without a VAE."""
    if "vae" not in checkpoint.components:
        return ()
    vae = checkpoint.components["vae"]
    decoder, encoder = (policy.of(checkpoint.family, half) for half in VAE_HALVES)
    return (
        decoder_recipe(vae, decoder, frame, latents),
        encoder_recipe(vae, encoder, frame, latents),
    )


def _check_channels(denoiser: Component, latents: LatentSpec) -> None:
    """Raises `CheckpointError` for a denoiser that reads more than latents, as for inpainting."""
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
        tokens = text_tokens(ranges, *manifest_facts.t5_tokens(checkpoint.family, tokenizers))
        return t5_recipe(source, precision, tokens, frame.images)
    wrap = CLIP_OUTPUTS[checkpoint.family, source.name]
    return clip_recipe(source, precision, wrap, length, frame.images)


def _side_limit(checkpoint: Checkpoint) -> int | None:
    """Returns the most latents a side may have: the side of MMDiT's table of positions, or None."""
    config = checkpoint.denoiser.config
    table = config.get("pos_embed_max_size")
    return int(table) * int(config["patch_size"]) if table else None
