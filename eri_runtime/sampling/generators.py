"""Noise from generators that the caller brings: torch's, NumPy's, or seeds.

diffusers draws from one generator for the whole batch, or from one per image. This does the same,
and leaves a generator advanced by what was drawn. torch is used only if the caller loaded it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import integer
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling.torch_randn import MAX_SEED, TorchNormal

Array = NDArray[np.float32]
EXPECTED = "a torch.Generator, a NumPy Generator, a seed, or a list of one per image"


@dataclass(frozen=True)
class Stream:
    """A generator behind one interface.

    Attributes:
        draw: Returns unit normals of a shape, float32, and advances the generator.
        save: Returns a copy of the generator's state.
        load: Puts the generator into a state that `save` returned.
        seed: The seed it was made from, or None if it does not tell.
    """

    draw: Callable[[tuple[int, ...]], Array]
    save: Callable[[], Any]
    load: Callable[[Any], object]
    seed: int | None


class GeneratorNoise:
    """The noise of one generator for all images, or of one per image, as a `NoiseSource`.

    The first draw starts from the state that the generators had when this was made, and so does
    going back, which makes a draw repeatable.

    Args:
        streams: One stream, or one per image.
        count: Number of images.
        first: Number of the first draw; see `TorchNoise`.
    """

    def __init__(self, streams: Sequence[Stream], count: int, first: int) -> None:
        self._streams, self._count, self.first = tuple(streams), count, first
        self._states = [stream.save() for stream in self._streams]
        self._next: int | None = None

    @property
    def shared(self) -> bool:
        """Whether several images take their noise from one generator."""
        return len(self._streams) < self._count

    def __call__(self, draw: int, shape: tuple[int, ...]) -> Array:
        """Returns draw number `draw`, (B, *shape) float32."""
        if draw < self.first:
            raise UsageError("draw", got=draw, expected=f"{self.first} or more")
        if self._next is None or draw < self._next:
            for stream, state in zip(self._streams, self._states, strict=True):
                stream.load(state)
            self._next = self.first
        for _ in range(self._next, draw):
            self._draw(shape)
        self._next = draw + 1
        return self._draw(shape)

    def _draw(self, shape: tuple[int, ...]) -> Array:
        """Draws once from every stream."""
        if self.shared:
            return self._streams[0].draw((self._count, *shape))
        return np.concatenate([stream.draw((1, *shape)) for stream in self._streams])


def make_streams(generator: Any, count: int) -> list[Stream]:
    """Converts the caller's generators.

    Args:
        generator: A `torch.Generator`, a NumPy `Generator`, a `TorchNormal`, or a seed, which
            stands for `torch.Generator("cpu").manual_seed(seed)`; or a list of these.
        count: Number of images.

    Returns:
        One stream for all images, or one per image.

    Raises:
        UsageError: If it is anything else, a list has another length, or a generator is twice in
            it.
    """
    if not isinstance(generator, list | tuple):
        return [_stream("generator", generator)]
    if len(generator) not in (1, count):
        raise UsageError("generator", got=f"{len(generator)} of them", expected=f"one, or {count}")
    objects = [id(each) for each in generator if not isinstance(each, int | np.integer)]
    if len(set(objects)) < len(objects):
        fix = "pass it without a list to draw all images from it"
        raise UsageError("generator", got="one generator twice", expected="one per image", fix=fix)
    return [_stream(f"generator[{i}]", each) for i, each in enumerate(generator)]


def _stream(name: str, generator: Any) -> Stream:
    """Returns the stream of one generator; raises `UsageError` for anything else."""
    if isinstance(generator, np.random.Generator):
        return _numpy_stream(generator)
    if isinstance(generator, TorchNormal):
        return _torch_normal_stream(generator, None)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(generator, torch.Generator):
        return _torch_stream(torch, generator)
    if isinstance(generator, int | np.integer) and not isinstance(generator, bool):
        seed = integer(name, generator, 0, MAX_SEED)
        return _torch_normal_stream(TorchNormal(seed), seed)
    raise UsageError(name, got=short(generator), expected=EXPECTED)


def _numpy_stream(generator: np.random.Generator) -> Stream:
    """Returns the stream of a NumPy generator."""

    def load(state: Any) -> None:
        generator.bit_generator.state = state

    return Stream(
        draw=lambda shape: generator.standard_normal(shape, dtype=np.float32),
        save=lambda: deepcopy(generator.bit_generator.state),
        load=load,
        seed=None,
    )


def _torch_normal_stream(generator: TorchNormal, seed: int | None) -> Stream:
    """Returns the stream of torch's noise in NumPy."""

    def draw(shape: tuple[int, ...]) -> Array:
        values: Array = generator.standard_normal(shape).astype(np.float32, copy=False)
        return values

    return Stream(
        draw=draw,
        save=lambda: deepcopy(vars(generator)),
        load=lambda state: vars(generator).update(deepcopy(state)),
        seed=seed,
    )


def _torch_stream(torch: Any, generator: Any) -> Stream:
    """Returns the stream of a `torch.Generator` of any device.

    Its seed is known if nothing was drawn from it yet.
    """

    def draw(shape: tuple[int, ...]) -> Array:
        drawn = torch.randn(shape, generator=generator, device=generator.device)
        values: Array = drawn.float().cpu().numpy()
        return values

    seed = int(generator.initial_seed()) % (MAX_SEED + 1)
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed()).get_state()
    known = torch.equal(fresh, generator.get_state())
    return Stream(
        draw=draw,
        save=generator.get_state,
        load=generator.set_state,
        seed=seed if known else None,
    )
