"""Which conditions the denoiser runs on in each evaluation, and how predictions are mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eri_runtime.loop.numpy_loop import Array
from eri_runtime.sampling import Clock, Guidance, Point, cfg_mix, mix_predictions, rescale_guided

Inputs = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class DenoiserPass:
    """One run of the denoiser on K conditions.

    Attributes:
        conditions: The numbers of the K conditions in the plan.
        mix: Weights of their predictions in the guided one, (K, B).
        unguided: Weights of their predictions without CFG, (K, B), if the guided prediction is
            rescaled by the unguided one; else None.
    """

    conditions: tuple[int, ...]
    mix: Array
    unguided: Array | None = None

    def shifted(self, first: int) -> DenoiserPass:
        """Returns the same pass of the conditions from number `first` on."""
        return replace(self, conditions=tuple(first + k for k in self.conditions))

    def padded(self, count: int) -> DenoiserPass:
        """Returns a pass of at least `count` conditions: repeats the last one with weight 0."""
        missing = max(0, count - len(self.conditions))
        mix = np.pad(self.mix, ((0, missing), (0, 0)))
        return replace(self, conditions=self.conditions + self.conditions[-1:] * missing, mix=mix)


class GuidancePlan:
    """Says which of 1 + P conditions the denoiser gets at an evaluation, and how they are mixed.

    Condition 0 is the negative one; the others are the texts of the prompts. A condition whose
    weight is always 0 is never encoded, and a pass leaves out those whose weight is 0 in it:
    without CFG the negative prompt costs nothing. The texts may change from one evaluation to the
    next: each phase has conditions of its own, of the same shapes.
    """

    def __init__(
        self,
        condition: Callable[[int, int], Inputs],
        weights: NDArray[np.float64],
        guidance: Guidance,
        clock: Clock,
        phases: Sequence[int] = (),
    ) -> None:
        """Encodes the conditions that have a weight at any point.

        Args:
            condition: Returns the denoiser's inputs (B, …) for condition k of a phase.
            weights: Weights of conditions 1 to P, (P, B).
            guidance: Scale, rescale and interval of CFG.
            clock: Converts a point to the noise level that the interval is in.
            phases: The phase of each evaluation. Default: phase 0 for all.
        """
        unguided, guided = cfg_mix(1.0, weights), cfg_mix(guidance.scale, weights)
        same = np.array_equal(unguided, guided)
        self.rescale = 0.0 if same else guidance.rescale
        plain = _make_pass(unguided)
        acting = plain if same else _make_pass(guided, unguided if self.rescale else None)
        self._phases, count = tuple(phases), 1 + len(weights)
        self._guidance, self._clock = guidance, clock
        self._passes = {}
        self._inputs = {}
        needed = unguided.any(axis=1) | guided.any(axis=1)
        for phase in sorted({*self._phases} or {0}):
            first = phase * count
            own = plain.shifted(first)
            self._passes[phase] = own, own if same else acting.shifted(first)
            for k in map(int, np.flatnonzero(needed)):
                self._inputs[first + k] = condition(phase, k)

    def with_inputs(self, extra: Inputs) -> GuidancePlan:
        """Returns a plan whose every condition also has the inputs `extra` (B, …)."""
        if not extra:
            return self
        plan = copy(self)
        plan._inputs = {k: {**inputs, **extra} for k, inputs in self._inputs.items()}
        return plan

    def pass_at(self, k: int, point: Point) -> DenoiserPass:
        """Returns the pass of evaluation k, which is at `point`: the guided or the unguided one."""
        unguided, guided = self._passes[self._phases[k] if self._phases else 0]
        return guided if self._guidance.acts_at(self._clock.tau(point)) else unguided

    def inputs(self, denoiser_pass: DenoiserPass) -> Inputs:
        """Returns the inputs of a pass by name, (K·B, …), one condition after the other."""
        parts = [self._inputs[k] for k in denoiser_pass.conditions]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def guided(self, denoiser_pass: DenoiserPass, predictions: Array) -> Array:
        """Mixes a pass's predictions (K·B, …) into the guided one (B, …), rescaled if need be."""
        mixed = mix_predictions(denoiser_pass.mix, predictions)
        if denoiser_pass.unguided is not None:
            unguided = mix_predictions(denoiser_pass.unguided, predictions)
            mixed = rescale_guided(mixed, unguided, self.rescale)
        return mixed


def _make_pass(mix: Array, unguided: Array | None = None) -> DenoiserPass:
    """Returns a pass of the conditions that have a weight in `mix` or `unguided`, (1 + P, B)."""
    needed = mix.any(axis=1) if unguided is None else mix.any(axis=1) | unguided.any(axis=1)
    indices = np.flatnonzero(needed)
    conditions = tuple(map(int, indices))
    return DenoiserPass(conditions, mix[indices], None if unguided is None else unguided[indices])
