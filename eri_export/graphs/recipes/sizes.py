"""The ranges of sizes a component serves, and the few sizes it is traced and compared at."""

from __future__ import annotations

from dataclasses import dataclass

from eri_export.choices import Ranges, RequestedSizes
from eri_export.graphs.recipes.base import CONDITIONS, MAX_BATCH, Sizes
from eri_runtime.bundle import Defaults, LatentSpec, ShapeRange
from eri_runtime.errors import SizeError

IMAGES = ShapeRange(min=1, opt=1, max=MAX_BATCH)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The sizes of a checkpoint's latents and the number of images per call.

    Heights and widths are multiples of `unit`. `fixed` says that every call has all conditions of
    guidance, as the batch of a static graph cannot change.
    """

    unit: int
    height: ShapeRange
    width: ShapeRange
    images: ShapeRange = IMAGES
    fixed: bool = False

    @classmethod
    def of(
        cls, latents: LatentSpec, defaults: Defaults, limit: int | None, ranges: Ranges
    ) -> Frame:
        """Returns the requested sizes, by default up to twice the checkpoint's default size.

        `limit` is the most latents of a side. Raises `SizeError` for a requested size that is not
        a multiple of the unit, or beyond the limit.
        """
        height, width = defaults.height // latents.factor, defaults.width // latents.factor
        largest = 2 * max(height, width)
        largest = largest if limit is None else min(largest, limit)
        usual = [ShapeRange(min=latents.patch, opt=side, max=largest) for side in (height, width)]
        requested = {"height": ranges.height, "width": ranges.width}
        sides = [
            default if side is None else _requested_side(name, side, latents, default, limit)
            for (name, side), default in zip(requested.items(), usual, strict=True)
        ]
        images = IMAGES if ranges.batch is None else ranges.batch.within(IMAGES)
        return cls(
            unit=latents.patch,
            height=sides[0],
            width=sides[1],
            images=images,
            fixed=ranges.static,
        )

    @property
    def patches(self) -> ShapeRange:
        """The number of patches, squares of `unit` latents, in the denoiser's input."""
        area = self.unit**2
        return ShapeRange(
            min=self.height.min * self.width.min // area,
            opt=self.height.opt * self.width.opt // area,
            max=self.height.max * self.width.max // area,
        )


def _requested_side(
    name: str, requested: RequestedSizes, latents: LatentSpec, usual: ShapeRange, limit: int | None
) -> ShapeRange:
    """Returns the requested pixels of a side as latents; raises `SizeError` as `Frame.of` does."""
    step = latents.factor * latents.patch
    for pixels in (requested.min, requested.opt, requested.max):
        if pixels is not None and (pixels % step or pixels < step):
            below = max(pixels // step * step, step)
            fix = f"{below} and {below + step} are the nearest"
            raise SizeError(f"size: {name}", got=pixels, expected=f"a multiple of {step}", fix=fix)
    factor = latents.factor
    side = RequestedSizes(
        min=None if requested.min is None else requested.min // factor,
        opt=requested.opt // factor,
        max=None if requested.max is None else requested.max // factor,
    ).within(usual)
    if limit is not None and side.max > limit:
        expected = f"at most {limit * factor}, where the network's table of positions ends"
        raise SizeError(f"size: {name}", got=side.max * factor, expected=expected)
    return side


def text_tokens(ranges: Ranges, usual: int, most: int) -> ShapeRange:
    """Returns the requested numbers of text tokens; default: `usual` ones, at most `most`."""
    tokens = ShapeRange(min=1, opt=usual, max=most)
    return tokens if ranges.tokens is None else ranges.tokens.within(tokens)


def after_clip(tokens: ShapeRange, clip: int) -> ShapeRange:
    """Returns the length of CLIP's and T5's tokens in one sequence; a minimum of 1 stays 1."""
    least = 1 if tokens.min == 1 else clip + tokens.min
    return ShapeRange(min=least, opt=clip + tokens.opt, max=clip + tokens.max)


def latent_ranges(frame: Frame) -> dict[str, ShapeRange]:
    """Returns the ranges of heights and widths in latents."""
    return {"height": frame.height, "width": frame.width}


def image_ranges(frame: Frame, factor: int) -> dict[str, ShapeRange]:
    """Returns the ranges of heights and widths in pixels, `factor` per latent."""
    return {f"image_{name}": _times(factor, each) for name, each in latent_ranges(frame).items()}


def _times(factor: int, sizes: ShapeRange) -> ShapeRange:
    return ShapeRange(min=factor * sizes.min, opt=factor * sizes.opt, max=factor * sizes.max)


def denoiser_ranges(frame: Frame, tokens: ShapeRange) -> dict[str, ShapeRange]:
    """Returns the ranges of a denoiser's batch, latent height and width, and text tokens."""
    return {"batch": guided_batch(frame, CONDITIONS), **latent_ranges(frame), "tokens": tokens}


def guided_batch(frame: Frame, conditions: int) -> ShapeRange:
    """Returns the denoiser's batch: a row per image and condition, usually `conditions` of them."""
    images = frame.images
    if frame.fixed:
        return _times(conditions, images)
    return ShapeRange(min=images.min, opt=conditions * images.opt, max=CONDITIONS * images.max)


def latent_sizes(frame: Frame, tokens: tuple[int, int, int] | None = None) -> tuple[Sizes, ...]:
    """Returns sizes to trace at, with batch 2, and two to compare at, with batch 1 and 3.

    None is square. The first to compare at are odd multiples of the unit, which a UNet
    cannot halve. torch.export makes a size of 1 a constant, so no traced size is 1.
    """
    largest = min(frame.height.max, frame.width.max)
    unit = frame.unit
    step = unit * max(1, min(8, largest // 4) // unit)
    sides = ((2 * step, 3 * step), (3 * step + unit, 2 * step + unit), (2 * step, 4 * step))
    counts = tokens or (0, 0, 0)
    return tuple(
        {**sizes, "height": height, "width": width}
        for sizes, (height, width) in zip(token_sizes(*counts), sides, strict=True)
    )


def image_sizes(frame: Frame, factor: int) -> tuple[Sizes, ...]:
    """Returns the sizes of `latent_sizes` in pixels."""
    return tuple(
        {
            "batch": sizes["batch"],
            "image_height": sizes["height"] * factor,
            "image_width": sizes["width"] * factor,
        }
        for sizes in latent_sizes(frame)
    )


def token_sizes(*counts: int) -> tuple[Sizes, ...]:
    """Returns sizes like `latent_sizes` of text tokens alone; no `counts` for a fixed number."""
    batches = (2, 1, 3)
    if not any(counts):
        return tuple({"batch": batch} for batch in batches)
    pairs = zip(batches, counts, strict=True)
    return tuple({"batch": batch, "tokens": count} for batch, count in pairs)


def short_texts(most: int) -> tuple[int, int, int]:
    """Returns three token counts of at most `most`."""
    return min(20, most), min(13, most), min(33, most)
