"""The stages of a request, and the input sizes at which each component runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.latents import DECODER, ENCODER, latent_shape, token_count
from eri_runtime.memory.modes import Mode

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One component's turn in a request.

    Attributes:
        component: The component's name.
        sizes: The size of each dynamic dimension of its inputs, by name.
        extra_bytes: Bytes of arrays that exist in addition to the component's own run.
    """

    component: str
    sizes: Mapping[str, int]
    extra_bytes: int = 0


def stages(
    bundle: Bundle,
    mode: Mode,
    height: int,
    width: int,
    images: int,
    conditions: int = 2,
    tokens: int | None = None,
    edited: bool = False,
) -> tuple[Stage, ...]:
    """Returns the stages of a request for `images` images, in order.

    An `edited` request encodes an image first. Raises `SizeError` for a size that latents cannot
    have.
    """
    planned = list(_text_stages(bundle, images, tokens))
    if edited and ENCODER in bundle.components:
        planned.append(_vae_stage(bundle, ENCODER, mode, height, width, images))
    planned.append(_denoiser_stage(bundle, mode, height, width, images * conditions, tokens))
    if DECODER in bundle.components:
        planned.append(_vae_stage(bundle, DECODER, mode, height, width, images))
    return tuple(planned)


def _text_stages(bundle: Bundle, images: int, tokens: int | None) -> Iterator[Stage]:
    """Yields the text encoders. Each runs once for the prompt and once for the negative prompt."""
    length = bundle.defaults.max_sequence_length if tokens is None else tokens
    for name, spec in bundle.components.items():
        if name.startswith("text_encoder"):
            sizes = {"batch": _rows(bundle, name, images), "tokens": length}
            yield Stage(component=name, sizes={k: sizes[k] for k in spec.ranges})


def _denoiser_stage(
    bundle: Bundle, mode: Mode, height: int, width: int, rows: int, tokens: int | None
) -> Stage:
    _, h, w = latent_shape(bundle.latents, height, width)
    ranges = bundle.components[DENOISER].ranges
    sizes = {
        "batch": _rows(bundle, DENOISER, rows, mode.rows),
        "height": h,
        "width": w,
        "patches": token_count(bundle.latents, height, width),
        "tokens": _text_length(bundle, tokens),
        "loras": 1,
        "rank": 1,
    }
    return Stage(component=DENOISER, sizes={name: sizes[name] for name in ranges})


def _text_length(bundle: Bundle, tokens: int | None) -> int:
    """Returns how many text tokens the denoiser reads."""
    length = bundle.defaults.max_sequence_length if tokens is None else tokens
    clip = bundle.tokenizers["tokenizer"].max_length if bundle.tokenizers else 0
    total = {"sdxl": clip or length, "sd35": clip + length, "flux": length}[bundle.family]
    return min(total, bundle.components[DENOISER].ranges["tokens"].max)


def _vae_stage(
    bundle: Bundle, name: str, mode: Mode, height: int, width: int, images: int
) -> Stage:
    """Returns the stage of the VAE's encoder or decoder.

    It runs on tiles if the mode has them and the image is larger than one.
    """
    factor, ranges = bundle.latents.factor, bundle.components[name].ranges
    sides, tiled = [], False
    dimensions = bundle.components[name].inputs[0].shape[2:]
    for dimension, pixels in zip(dimensions, (height, width), strict=True):
        unit = factor if name == DECODER else 1
        side, allowed = pixels // unit, ranges[str(dimension)]
        if mode.vae.tile is not None:
            tile = min(max(mode.vae.tile // unit, allowed.min), allowed.max)
            side, tiled = min(side, tile), tiled or side > tile
        sides.append((str(dimension), side))
    batch = _rows(bundle, name, images, 1 if tiled else mode.vae.images)
    canvas = 2 * 4 * CHANNELS * height * width * images if tiled else 0
    sizes = {"batch": batch, **dict(sides)}
    return Stage(component=name, sizes=sizes, extra_bytes=canvas)


def _rows(bundle: Bundle, name: str, total: int, most: int | None = None) -> int:
    """Returns how many rows a component computes per call."""
    allowed = bundle.components[name].ranges["batch"]
    return max(allowed.min, min(total, allowed.max, total if most is None else most))
