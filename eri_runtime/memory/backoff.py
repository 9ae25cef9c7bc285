"""What is done when memory ends: free, smaller batches, tiles, offloading; then a typed error.

Each turn of a request takes the first of `RUNGS` that helps the component that failed, and logs a
line. What a request ended with is remembered for those that are as large; smaller ones are run as
if nothing had happened, so their pictures are the same to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eri_runtime.errors import OutOfMemoryError
from eri_runtime.live import DENOISER
from eri_runtime.memory.exhausted import asked, is_exhausted
from eri_runtime.memory.mode import TILE, Mode
from eri_runtime.vae import DECODER, ENCODER

LEAST_TILE = 128  # pixels: smaller ones have nothing of their surroundings in them

SMALLER = "ask for a smaller picture"
WAYS_OUT = {
    "denoiser": f"{SMALLER}, or export with `--attention-slice 1`",
    "text": "encode prompts where there is more, and pass `prompt_embeds`",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Load:
    """How large a request is: its images, the `rows` its denoiser computes, the sides in pixels."""

    images: int
    rows: int
    height: int
    width: int

    def holds(self, other: Load) -> bool:
        """Whether it is as large as another in every way."""
        return (
            self.images >= other.images
            and self.rows >= other.rows
            and self.height * self.width >= other.height * other.width
        )


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a pipeline can do about memory.

    `rows`: the denoiser may be given fewer rows than a step has. `tiles` are the sides in pixels
    that the VAE's halves may be given, by component. `mapped`, `streamed`: engine and bundle
    can leave weights in their files.
    """

    rows: bool
    tiles: dict[str, range]
    mapped: bool
    streamed: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A component for which there was no memory, of a request run in a mode."""

    component: str
    load: Load
    mode: Mode
    means: Means


Rung = Callable[[Failure], tuple[Mode, str] | None]


def halved(failure: Failure) -> tuple[Mode, str] | None:
    """Half as many rows of the denoiser at once, or half as many images of the VAE."""
    mode, load, component = failure.mode, failure.load, failure.component
    if component == DENOISER and failure.means.rows:
        rows = min(mode.rows or load.rows, load.rows)
        if rows > 1:
            return mode.but(rows=rows // 2), f"{rows // 2} of {load.rows} rows at once"
    if component in (DECODER, ENCODER):
        images = min(mode.vae.images or load.images, load.images)
        if images > 1:
            less = mode.vae.but(images=images // 2)
            return mode.but(vae=less), f"{images // 2} of {load.images} images at once in the VAE"
    return None


def tiled(failure: Failure) -> tuple[Mode, str] | None:
    """The VAE in tiles, and in smaller ones."""
    sides = failure.means.tiles.get(failure.component)
    if not sides:
        return None
    now = failure.mode.vae.tile
    tile = min(TILE if now is None else now // 2, max(sides))
    if tile not in sides or (tile < LEAST_TILE and now is not None):
        return None
    if now is None and tile >= max(failure.load.height, failure.load.width):
        tile = max(failure.load.height, failure.load.width) // 2
        if tile not in sides:
            return None
    return failure.mode.but(vae=failure.mode.vae.but(tile=tile)), f"the VAE in tiles of {tile}"


def offloaded(failure: Failure) -> tuple[Mode, str] | None:
    """One component in memory at a time."""
    if failure.mode.offloaded:
        return None
    return failure.mode.but(offloaded=True), "one component in memory at a time"


def mapped(failure: Failure) -> tuple[Mode, str] | None:
    """Weights as pages of their files."""
    if failure.mode.low_memory or failure.mode.streamed or not failure.means.mapped:
        return None
    return failure.mode.but(low_memory=True), "weights left in their files"


def streamed(failure: Failure) -> tuple[Mode, str] | None:
    """The denoiser's weights a part at a time."""
    if failure.component != DENOISER or failure.mode.streamed or not failure.means.streamed:
        return None
    return failure.mode.but(streamed=True), "a part of the denoiser's weights at a time"


RUNGS: tuple[Rung, ...] = (halved, tiled, offloaded, mapped, streamed)


class BackOff:
    """The modes of one pipeline's requests: its own, and what was found to fit."""

    def __init__(self, mode: Mode, means: Means) -> None:
        self.mode, self.means = mode, means
        self._fitted: list[tuple[Load, Mode]] = []

    def attempt(
        self, load: Load, adopt: Callable[[Mode], object], free: Callable[[], object]
    ) -> Attempt:
        """A request of this size, in the mode that such ones were last found to fit in.

        `adopt` is told of the mode, and `free` is called before another one.
        """
        mode = self.mode_of(load)
        adopt(mode)
        return Attempt(self, load, mode, adopt, free)

    def mode_of(self, load: Load) -> Mode:
        """The mode that a request of this size begins in."""
        known = [mode for size, mode in self._fitted if load.holds(size)]
        return known[-1] if known else self.mode

    def remember(self, load: Load, mode: Mode) -> None:
        """Let requests of this size and larger ones begin in `mode`."""
        self._fitted = [(size, each) for size, each in self._fitted if not size.holds(load)]
        self._fitted.append((load, mode))


class Attempt:
    """A request on its way through the modes; `mode` is the one to run it in."""

    def __init__(
        self,
        back_off: BackOff,
        load: Load,
        mode: Mode,
        adopt: Callable[[Mode], object],
        free: Callable[[], object],
    ) -> None:
        self._back_off, self._load, self.mode = back_off, load, mode
        self._adopt, self._free = adopt, free
        self._freed = False

    def turn(self, component: str, error: Exception) -> None:
        """Go on to the next mode after an error, of `component` unless it names another.

        Raises the error itself where it is not of memory, and `OutOfMemoryError` where nothing is
        left to try.
        """
        if not is_exhausted(error):
            raise error
        if isinstance(error, OutOfMemoryError) and error.component:
            component = error.component
        found = next(self._next(component), None)
        self._free()
        if found is None:
            raise exhausted(component, self.mode, error) from error
        mode, words = found
        log.warning("too little memory for %s (%s): %s", component, _brief(error), words)
        if mode != self.mode:
            self.mode = mode
            self._back_off.remember(self._load, mode)
        self._adopt(mode)

    def _next(self, component: str) -> Iterator[tuple[Mode, str]]:
        if not self._freed:
            self._freed = True
            yield self.mode, "everything else is closed, and it is tried again"
        failure = Failure(
            component=component, load=self._load, mode=self.mode, means=self._back_off.means
        )
        yield from filter(None, (rung(failure) for rung in RUNGS))


def exhausted(component: str, mode: Mode, error: BaseException) -> OutOfMemoryError:
    """The error for a component that fits in no mode; the last was `mode`."""
    needed = asked(error)
    expected = "more memory" if needed is None else f"{needed / 1e6:,.0f} MB more at once"
    kind = component.partition("_")[0]
    made = OutOfMemoryError(
        component,
        got=f"no memory for it, {described(mode)}",
        expected=expected,
        fix=f"{WAYS_OUT.get(kind, SMALLER)}; `eri inspect --memory` says what each size takes",
    )
    made.component, made.needed = component, needed
    return made


def described(mode: Mode) -> str:
    """A mode in words."""
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
    """What failed, in a line."""
    if isinstance(error, OutOfMemoryError) and error.__cause__ is None:  # seen before it failed
        return f"{error.got}, expected {error.expected}"
    needed = asked(error)
    if needed is not None:
        return f"{needed / 1e6:,.0f} MB were needed"
    return f"{type(error).__name__}"
