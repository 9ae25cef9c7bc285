"""The sizes a component serves, and the few it is traced and compared at."""

from __future__ import annotations

from dataclasses import dataclass

from eri_export.recipes.base import CONDITIONS, MAX_BATCH, Sizes
from eri_runtime.spec import Defaults, LatentSpec, ShapeRange


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Latents of a checkpoint: heights and widths are multiples of `unit`, up to `largest`."""

    unit: int
    height: int
    width: int
    largest: int

    @classmethod
    def of(cls, latents: LatentSpec, defaults: Defaults, limit: int | None) -> Frame:
        """Up to twice the default size; `limit` is the most latents a side may have."""
        height, width = defaults.height // latents.factor, defaults.width // latents.factor
        largest = 2 * max(height, width)
        return cls(
            unit=latents.patch,
            height=height,
            width=width,
            largest=largest if limit is None else min(largest, limit),
        )


BATCH = ShapeRange(min=1, opt=1, max=MAX_BATCH)


def latent_ranges(frame: Frame) -> dict[str, ShapeRange]:
    """Heights and widths in latents."""
    return {"height": _side(frame, frame.height), "width": _side(frame, frame.width)}


def image_ranges(frame: Frame, factor: int) -> dict[str, ShapeRange]:
    """Heights and widths in pixels, `factor` to a latent."""
    return {f"image_{name}": _times(factor, each) for name, each in latent_ranges(frame).items()}


def _times(factor: int, each: ShapeRange) -> ShapeRange:
    return ShapeRange(min=factor * each.min, opt=factor * each.opt, max=factor * each.max)


def _side(frame: Frame, default: int) -> ShapeRange:
    return ShapeRange(min=frame.unit, opt=default, max=frame.largest)


def denoiser_ranges(frame: Frame, tokens: tuple[int, int, int]) -> dict[str, ShapeRange]:
    """Batch for guidance's conditions too, latent height and width, text tokens."""
    low, best, high = tokens
    return {
        "batch": guided_batch(CONDITIONS),
        **latent_ranges(frame),
        "tokens": ShapeRange(min=low, opt=best, max=high),
    }


def guided_batch(best: int) -> ShapeRange:
    """A denoiser's batch: one row for each image and condition."""
    return ShapeRange(min=1, opt=best, max=CONDITIONS * MAX_BATCH)


def latent_sizes(frame: Frame, tokens: tuple[int, int, int] | None = None) -> tuple[Sizes, ...]:
    """Sizes to trace at, with batch 2, then to compare at, with batch 1 and 3; none is square.

    torch.export takes a size of 1 for a constant, so no traced size is 1.
    """
    step = frame.unit * max(1, min(8, frame.largest // 4) // frame.unit)
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
