"""The guided denoiser: conditions, guidance and an executor made into one network x, point -> F."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from eri_runtime.denoise import Array, Network
from eri_runtime.guidance import Guidance, cfg_mix, mix_predictions, rescale_guided
from eri_runtime.schedule import Clock, Point

Inputs = Mapping[str, Array]
Denoiser = Callable[[Inputs], Array]


def guided_network(
    denoiser: Denoiser,
    condition: Callable[[int], Inputs],
    weights: NDArray[np.float64],
    guidance: Guidance,
    clock: Clock,
) -> Network:
    """The predictions of 1 + P conditions, mixed at every point of a schedule.

    `condition(k)` is the inputs of one, (B, …) each; 0 is the negative one, and `weights` (P, B)
    are those of the others. It is asked for those only that ever have a weight, and a pass leaves
    out what has none: without CFG the negative one costs nothing. `denoiser` takes any number of
    rows.
    """
    plain, guided = cfg_mix(1.0, weights), cfg_mix(guidance.scale, weights)
    rescaled = guidance.rescale > 0 and not np.array_equal(plain, guided)

    ever = plain.any(axis=1) | guided.any(axis=1)
    made = {k: condition(k) for k in map(int, np.flatnonzero(ever))}

    @cache
    def inputs(used: tuple[int, ...]) -> Inputs:
        parts = [made[k] for k in used]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def predict(used: tuple[int, ...], x: Array, t: float) -> Array:
        sample = np.concatenate([x] * len(used))
        timestep = np.full(len(sample), t, dtype=np.float32)
        return denoiser({"sample": sample, "timestep": timestep, **inputs(used)})

    def network(x: Array, at: Point) -> Array:
        acts = guidance.acts_at(clock.tau(at))
        mix = guided if acts else plain
        needed = mix.any(axis=1) | (plain.any(axis=1) if acts and rescaled else False)
        used = tuple(map(int, np.flatnonzero(needed)))
        predictions = predict(used, x, at.t)
        mixed = mix_predictions(mix[list(used)], predictions)
        if acts and rescaled:
            unguided = mix_predictions(plain[list(used)], predictions)
            mixed = rescale_guided(mixed, unguided, guidance.rescale)
        return mixed

    return network
