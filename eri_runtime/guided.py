"""The guided denoiser: conditions, guidance and an executor made into one network x, point -> F."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eri_runtime.denoise import Array, Network
from eri_runtime.guidance import Guidance, cfg_mix, mix_predictions, rescale_guided
from eri_runtime.schedule import Clock, Point

Inputs = Mapping[str, Array]
Denoiser = Callable[[Inputs], Array]


@dataclass(frozen=True, eq=False)
class Pass:
    """The K conditions that the denoiser sees at once, and the (K, B) weights of their predictions.

    `plain` are the weights without CFG, where the guided prediction is rescaled by that one.
    """

    used: tuple[int, ...]
    mix: Array
    plain: Array | None = None

    def filled(self, count: int) -> Pass:
        """As many conditions or more: the last one again, without weight."""
        spare = max(0, count - len(self.used))
        mix = np.pad(self.mix, ((0, spare), (0, 0)))
        return replace(self, used=self.used + self.used[-1:] * spare, mix=mix)


class Guided:
    """Which of 1 + P conditions are seen at a point of a schedule, and how they are mixed.

    `condition(k)` is the inputs of one, (B, …) each; 0 is the negative one, and `weights` (P, B)
    are those of the others. It is asked for those only that ever have a weight, and a pass leaves
    out what has none: without CFG the negative one costs nothing.
    """

    def __init__(
        self,
        condition: Callable[[int], Inputs],
        weights: NDArray[np.float64],
        guidance: Guidance,
        clock: Clock,
    ) -> None:
        plain, guided = cfg_mix(1.0, weights), cfg_mix(guidance.scale, weights)
        same = np.array_equal(plain, guided)
        self.rescale = 0.0 if same else guidance.rescale
        self._plain = _pass(plain)
        self._guided = self._plain if same else _pass(guided, plain if self.rescale else None)
        self._guidance, self._clock = guidance, clock
        ever = plain.any(axis=1) | guided.any(axis=1)
        self._made = {k: condition(k) for k in map(int, np.flatnonzero(ever))}

    def beside(self, rows: Inputs) -> Guided:
        """The same, where every condition has these inputs (B, …) too."""
        if not rows:
            return self
        other = copy(self)
        other._made = {k: {**made, **rows} for k, made in self._made.items()}
        return other

    def at(self, point: Point) -> Pass:
        """What is seen there; one of two."""
        acts = self._guidance.acts_at(self._clock.tau(point))
        return self._guided if acts else self._plain

    def inputs(self, each: Pass) -> Inputs:
        """(K·B, …) by name, one condition after the other."""
        parts = [self._made[k] for k in each.used]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pass(mix: Array, plain: Array | None = None) -> Pass:
    """The conditions that have a weight."""
    needed = mix.any(axis=1) if plain is None else mix.any(axis=1) | plain.any(axis=1)
    used = np.flatnonzero(needed)
    return Pass(tuple(map(int, used)), mix[used], None if plain is None else plain[used])


def guided_network(denoiser: Denoiser, guided: Guided) -> Network:
    """The mixed prediction at every point; `denoiser` takes any number of rows."""
    made: dict[Pass, Inputs] = {}

    def network(x: Array, at: Point) -> Array:
        each = guided.at(at)
        if each not in made:
            made[each] = guided.inputs(each)
        sample = np.concatenate([x] * len(each.used))
        timestep = np.full(len(sample), at.t, dtype=np.float32)
        predictions = denoiser({"sample": sample, "timestep": timestep, **made[each]})
        mixed = mix_predictions(each.mix, predictions)
        if each.plain is not None:
            unguided = mix_predictions(each.plain, predictions)
            mixed = rescale_guided(mixed, unguided, guided.rescale)
        return mixed

    return network
