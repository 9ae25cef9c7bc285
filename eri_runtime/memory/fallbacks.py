"""What a pipeline does when memory runs out.

It frees what it can, then tries smaller batches, tiles and offloading, and raises a typed error in
the end. Each retry takes the first entry of `FALLBACKS` that helps the component that failed, and
logs one line. The mode in which a request fitted is remembered for requests at least as large.
Smaller requests run as usual, so their images stay the same to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eri_runtime.bundle import DENOISER
from eri_runtime.errors import OutOfMemoryError
from eri_runtime.latents import DECODER, ENCODER
from eri_runtime.memory.modes import TILE, Mode
from eri_runtime.memory.out_of_memory import is_exhausted, requested_bytes

MIN_TILE = 128  # pixels: smaller tiles see none of their surroundings

SMALLER = "ask for a smaller picture"
WAYS_OUT = {
    "denoiser": f"{SMALLER}, or export with `--attention-slice 1`",
    "text": "encode prompts where there is more, and pass `prompt_embeds`",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RequestSize:
    """How large a request is.

    Attributes:
        images: Number of images.
        rows: Rows that the denoiser computes per step: images times conditions.
        height: Height of an image in pixels.
        width: Width of an image in pixels.
    """

    images: int
    rows: int
    height: int
    width: int

    def holds(self, other: RequestSize) -> bool:
        """Returns whether this request is at least as large as `other` in every way."""
        return (
            self.images >= other.images
            and self.rows >= other.rows
            and self.height * self.width >= other.height * other.width
        )


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a pipeline can do to use less memory.

    Attributes:
        rows: Whether the denoiser can compute the rows of a step in several calls.
        tiles: Sides of a tile in pixels that the VAE's encoder and decoder accept, by component.
        mapped: Whether the engine can leave weights in their files.
        streamed: Whether engine and bundle can read the denoiser's weights a part at a time.
    """

    rows: bool
    tiles: dict[str, range]
    mapped: bool
    streamed: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A component that ran out of memory, in a request of this size run in this mode."""

    component: str
    size: RequestSize
    mode: Mode
    capabilities: Capabilities


# returns the next mode and its description, or None if it cannot help
Fallback = Callable[[Failure], tuple[Mode, str] | None]


def halve_batch(failure: Failure) -> tuple[Mode, str] | None:
    """Computes half as many rows of the denoiser, or images of the VAE, per call."""
    mode, size, component = failure.mode, failure.size, failure.component
    if component == DENOISER and failure.capabilities.rows:
        rows = min(mode.rows or size.rows, size.rows)
        if rows > 1:
            return mode.with_changes(rows=rows // 2), f"{rows // 2} of {size.rows} rows at once"
    if component in (DECODER, ENCODER):
        images = min(mode.vae.images or size.images, size.images)
        if images > 1:
            vae = mode.vae.with_changes(images=images // 2)
            return mode.with_changes(
                vae=vae
            ), f"{images // 2} of {size.images} images at once in the VAE"
    return None


def tile_vae(failure: Failure) -> tuple[Mode, str] | None:
    """Runs the VAE in tiles, or in tiles of half the side."""
    sides = failure.capabilities.tiles.get(failure.component)
    if not sides:
        return None
    current = failure.mode.vae.tile
    tile = min(TILE if current is None else current // 2, max(sides))
    if tile not in sides or (tile < MIN_TILE and current is not None):
        return None
    if current is None and tile >= max(failure.size.height, failure.size.width):
        tile = max(failure.size.height, failure.size.width) // 2
        if tile not in sides:
            return None
    return failure.mode.with_changes(
        vae=failure.mode.vae.with_changes(tile=tile)
    ), f"the VAE in tiles of {tile}"


def offload_components(failure: Failure) -> tuple[Mode, str] | None:
    """Keeps one component in memory at a time."""
    if failure.mode.offloaded:
        return None
    return failure.mode.with_changes(offloaded=True), "one component in memory at a time"


def map_weights(failure: Failure) -> tuple[Mode, str] | None:
    """Leaves weights as pages of their files."""
    if failure.mode.low_memory or failure.mode.streamed or not failure.capabilities.mapped:
        return None
    return failure.mode.with_changes(low_memory=True), "weights left in their files"


def stream_weights(failure: Failure) -> tuple[Mode, str] | None:
    """Reads the denoiser's weights a part at a time."""
    able = failure.component == DENOISER and failure.capabilities.streamed
    if failure.mode.streamed or not able:
        return None
    return failure.mode.with_changes(streamed=True), "a part of the denoiser's weights at a time"


FALLBACKS: tuple[Fallback, ...] = (
    halve_batch,
    tile_vae,
    offload_components,
    map_weights,
    stream_weights,
)


class BackOff:
    """The modes of a pipeline's requests: the configured one, and those that fitted."""

    def __init__(self, mode: Mode, capabilities: Capabilities) -> None:
        self.mode, self.capabilities = mode, capabilities
        self._fitted: list[tuple[RequestSize, Mode]] = []

    def attempt(
        self, size: RequestSize, adopt: Callable[[Mode], object], free: Callable[[], object]
    ) -> Attempt:
        """Starts a request in the mode in which requests of this size fitted last.

        Calls `adopt` with every mode before it is used, and `free` before the mode changes.
        """
        mode = self.mode_of(size)
        adopt(mode)
        return Attempt(self, size, mode, adopt, free)

    def mode_of(self, size: RequestSize) -> Mode:
        """Returns the mode in which a request of this size starts."""
        fitted = [mode for known, mode in self._fitted if size.holds(known)]
        return fitted[-1] if fitted else self.mode

    def remember(self, size: RequestSize, mode: Mode) -> None:
        """Lets requests of this size and larger ones start in `mode`."""
        self._fitted = [(known, old) for known, old in self._fitted if not known.holds(size)]
        self._fitted.append((size, mode))


class Attempt:
    """A request that is retried in one mode after the other.

    Attributes:
        mode: The mode to run the request in.
    """

    def __init__(
        self,
        back_off: BackOff,
        size: RequestSize,
        mode: Mode,
        adopt: Callable[[Mode], object],
        free: Callable[[], object],
    ) -> None:
        """Starts a request of this size in `mode`; `adopt` and `free` as in `BackOff.attempt`."""
        self._back_off, self._size, self.mode = back_off, size, mode
        self._adopt, self._free = adopt, free
        self._freed = False

    def next_mode(self, component: str, error: Exception) -> None:
        """Changes to the next mode after an error.

        Args:
            component: The component that was running, unless an `OutOfMemoryError` names another.
            error: What it raised.

        Raises:
            Exception: `error` itself, if it does not mean that memory ran out.
            OutOfMemoryError: If no mode is left to try.
        """
        if not is_exhausted(error):
            try:
                raise error
            finally:
                del error  # its traceback has this frame: a cycle would keep the components
        if isinstance(error, OutOfMemoryError) and error.component:
            component = error.component
        fallback = next(self._fallbacks(component), None)
        self._free()
        if fallback is None:
            raise exhausted_error(component, self.mode, error) from error
        mode, description = fallback
        log.warning("too little memory for %s (%s): %s", component, _brief(error), description)
        if mode != self.mode:
            self.mode = mode
            self._back_off.remember(self._size, mode)
        self._adopt(mode)

    def _fallbacks(self, component: str) -> Iterator[tuple[Mode, str]]:
        """Yields what can be tried next; the first time, the same mode with all else closed."""
        if not self._freed:
            self._freed = True
            yield self.mode, "everything else is closed, and it is tried again"
        failure = Failure(
            component=component,
            size=self._size,
            mode=self.mode,
            capabilities=self._back_off.capabilities,
        )
        yield from filter(None, (fallback(failure) for fallback in FALLBACKS))


def exhausted_error(component: str, mode: Mode, error: BaseException) -> OutOfMemoryError:
    """Returns the error for a component that fits in no mode; `mode` was the last one tried."""
    needed = requested_bytes(error)
    expected = "more memory" if needed is None else f"{needed / 1e6:,.0f} MB more at once"
    kind = component.partition("_")[0]
    exhausted = OutOfMemoryError(
        component,
        got=f"no memory for it, {describe_mode(mode)}",
        expected=expected,
        fix=f"{WAYS_OUT.get(kind, SMALLER)}; `eri inspect --memory` says what each size takes",
    )
    exhausted.component, exhausted.needed = component, needed
    return exhausted


def describe_mode(mode: Mode) -> str:
    """Describes a mode in one line."""
    parts = [
        f"{mode.rows} rows at once" if mode.rows else "",
        f"{mode.vae.images} images at once in the VAE" if mode.vae.images else "",
        f"the VAE in tiles of {mode.vae.tile}" if mode.vae.tile else "",
        "one component at a time" if mode.offloaded else "",
        "weights in their files" if mode.low_memory else "",
        "a part of the denoiser's weights at a time" if mode.streamed else "",
    ]
    return ", ".join(filter(None, parts)) or "all at once"


def _brief(error: BaseException) -> str:
    """Describes what failed, in a few words."""
    if isinstance(error, OutOfMemoryError) and error.__cause__ is None:  # refused by the guard
        return f"{error.got}, expected {error.expected}"
    needed = requested_bytes(error)
    if needed is not None:
        return f"{needed / 1e6:,.0f} MB were needed"
    return f"{type(error).__name__}"
