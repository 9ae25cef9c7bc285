"""The sizes a component serves, and the few it is traced and compared at."""

from __future__ import annotations

from dataclasses import dataclass

from eri_export.ranges import Ranges, Wish
from eri_export.recipes.base import CONDITIONS, MAX_BATCH, Sizes
from eri_runtime.errors import SizeError
from eri_runtime.spec import Defaults, LatentSpec, ShapeRange

IMAGES = ShapeRange(min=1, opt=1, max=MAX_BATCH)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a checkpoint's latents may be: multiples of `unit` high and wide, and how many images.

    `fixed` says that guidance has its conditions in every call, as a static graph must.
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
        """Up to twice the default size, or as wished; `limit` is the most latents of a side.

        Raises `SizeError` for a size that is no multiple or beyond the limit.
        """
        height, width = defaults.height // latents.factor, defaults.width // latents.factor
        largest = 2 * max(height, width)
        largest = largest if limit is None else min(largest, limit)
        usual = [ShapeRange(min=latents.patch, opt=side, max=largest) for side in (height, width)]
        wishes = {"height": ranges.height, "width": ranges.width}
        sides = [
            each if wish is None else _wished_side(name, wish, latents, each, limit)
            for (name, wish), each in zip(wishes.items(), usual, strict=True)
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
        """How many squares of `unit` the denoiser may see."""
        area = self.unit**2
        return ShapeRange(
            min=self.height.min * self.width.min // area,
            opt=self.height.opt * self.width.opt // area,
            max=self.height.max * self.width.max // area,
        )


def _wished_side(
    name: str, wish: Wish, latents: LatentSpec, usual: ShapeRange, limit: int | None
) -> ShapeRange:
    """Wished pixels as latents."""
    step = latents.factor * latents.patch
    for pixels in (wish.min, wish.opt, wish.max):
        if pixels is not None and (pixels % step or pixels < step):
            below = max(pixels // step * step, step)
            fix = f"{below} and {below + step} are the nearest"
            raise SizeError(f"size: {name}", got=pixels, expected=f"a multiple of {step}", fix=fix)
    factor = latents.factor
    side = Wish(
        min=None if wish.min is None else wish.min // factor,
        opt=wish.opt // factor,
        max=None if wish.max is None else wish.max // factor,
    ).within(usual)
    if limit is not None and side.max > limit:
        expected = f"at most {limit * factor}, where the network's table of positions ends"
        raise SizeError(f"size: {name}", got=side.max * factor, expected=expected)
    return side


def text_tokens(ranges: Ranges, usual: int, most: int) -> ShapeRange:
    """How many tokens of a text: `usual` ones, at most `most`, or as wished."""
    tokens = ShapeRange(min=1, opt=usual, max=most)
    return tokens if ranges.tokens is None else ranges.tokens.within(tokens)


def after_clip(tokens: ShapeRange, clip: int) -> ShapeRange:
    """T5's tokens in a sequence that begins with CLIP's; from 1 still means from 1."""
    least = 1 if tokens.min == 1 else clip + tokens.min
    return ShapeRange(min=least, opt=clip + tokens.opt, max=clip + tokens.max)


def latent_ranges(frame: Frame) -> dict[str, ShapeRange]:
    """Heights and widths in latents."""
    return {"height": frame.height, "width": frame.width}


def image_ranges(frame: Frame, factor: int) -> dict[str, ShapeRange]:
    """Heights and widths in pixels, `factor` to a latent."""
    return {f"image_{name}": _times(factor, each) for name, each in latent_ranges(frame).items()}


def _times(factor: int, each: ShapeRange) -> ShapeRange:
    return ShapeRange(min=factor * each.min, opt=factor * each.opt, max=factor * each.max)


def denoiser_ranges(frame: Frame, tokens: ShapeRange) -> dict[str, ShapeRange]:
    """Batch for guidance's conditions too, latent height and width, text tokens."""
    return {"batch": guided_batch(frame, CONDITIONS), **latent_ranges(frame), "tokens": tokens}


def guided_batch(frame: Frame, usually: int) -> ShapeRange:
    """A denoiser's batch: one row for each image and condition, of which there are `usually`."""
    images = frame.images
    if frame.fixed:
        return _times(usually, images)
    return ShapeRange(min=images.min, opt=usually * images.opt, max=CONDITIONS * images.max)


def latent_sizes(frame: Frame, tokens: tuple[int, int, int] | None = None) -> tuple[Sizes, ...]:
    """Sizes to trace at, with batch 2, then to compare at, with batch 1 and 3; none is square.

    torch.export takes a size of 1 for a constant, so no traced size is 1.
    """
    largest = min(frame.height.max, frame.width.max)
    step = frame.unit * max(1, min(8, largest // 4) // frame.unit)
    sides = ((2, 3), (3, 2), (2, 4))
    counts = tokens or (0, 0, 0)
    return tuple(
        {**sizes, "height": step * h, "width": step * w}
        for sizes, (h, w) in zip(token_sizes(*counts), sides, strict=True)
    )


def image_sizes(frame: Frame, factor: int) -> tuple[Sizes, ...]:
    """As `latent_sizes`, in pixels."""
    return tuple(
        {
            "batch": sizes["batch"],
            "image_height": sizes["height"] * factor,
            "image_width": sizes["width"] * factor,
        }
        for sizes in latent_sizes(frame)
    )


def token_sizes(*counts: int) -> tuple[Sizes, ...]:
    """As `latent_sizes`, for what has text tokens only; no counts where their number is fixed."""
    batches = (2, 1, 3)
    if not any(counts):
        return tuple({"batch": batch} for batch in batches)
    pairs = zip(batches, counts, strict=True)
    return tuple({"batch": batch, "tokens": count} for batch, count in pairs)


def short_texts(most: int) -> tuple[int, int, int]:
    """Three token counts of at most `most`."""
    return min(20, most), min(13, most), min(33, most)
