"""PNDM: the linear multistep method of order 4 on the network's output, and its two beginnings."""

from __future__ import annotations

from typing import Any

from eri_runtime.sampling.samplers.steps import Denoise, Noise, ddim_step
from eri_runtime.sampling.schedule import Point, Schedule

# Adams–Bashforth of orders 1 to 4 for even steps, newest first
ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class _Output:
    """What the steps are taken with: the noise eps or, with `v`, the velocity v."""

    def __init__(self, denoise: Denoise, *, v: bool) -> None:
        self._denoise, self._v = denoise, v

    def __call__(self, x: Any, at: Point) -> Any:
        """Returns the network's eps or v at a point."""
        denoised = self._denoise(x, at)
        if self._v:
            return (at.alpha * x - denoised) / at.sigma
        return (x - at.alpha * denoised) / at.sigma

    def step(self, x: Any, output: Any, here: Point, there: Point) -> Any:
        """Returns DDIM's x' with this output (Liu et al. 2022, eq. 9)."""
        if self._v:
            return ddim_step(x, here.alpha * x - here.sigma * output, here, there)
        return ddim_step(x, (x - here.sigma * output) / here.alpha, here, there)


def pndm(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    runge_kutta: float = 0,
    v: float = 0,
) -> Any:
    """PNDM (Liu et al. 2022, arXiv 2202.09778, alg. 2), as PLMS unless `runge_kutta`.

    x' = ddim_step(x, (55·e − 59·e_1 + 37·e_2 − 9·e_3)/24), e the noise, or v with `v`

    PLMS takes the first step twice, the second time with the mean of e at both ends, and raises the
    order step by step. `runge_kutta` takes the first three steps with four evaluations each.
    """
    del noise
    output = _Output(denoise, v=bool(v))
    past: list[Any] = []  # e, newest first
    steps = list(schedule.steps())
    early = min(3 if runge_kutta else 1, len(steps) - 1)
    for i in range(early):
        e, x = (_four if runge_kutta else _twice)(output, x, schedule, i)
        past = [e, *past]
    for here, there in steps[early:]:
        past = [output(x, here), *past][:4]
        x = output.step(x, _weighted(ADAMS[len(past) - 1], past), here, there)
    return x


def _twice(output: _Output, x: Any, schedule: Schedule, i: int) -> tuple[Any, Any]:
    """Returns e at the start of step i, and x after it: Heun's method in e."""
    here, there = list(schedule.steps())[i]
    at = schedule[i + 1]
    first = output(x, here)
    second = output(output.step(x, first, here, there), at)
    # a step of T//N timesteps that ends at the next point begins there as well
    begin = here if schedule.ends is None else schedule.clock.at_t(at.t + here.t - there.t)
    return first, output.step(x, 0.5 * (first + second), begin, at)


def _four(output: _Output, x: Any, schedule: Schedule, i: int) -> tuple[Any, Any]:
    """Returns e at the start of step i, and x after it: Runge–Kutta of order 4 (eq. 13)."""
    here, there = list(schedule.steps())[i]
    end, clock = schedule[i + 1], schedule.clock
    half = (here.t - end.t) / 2 if schedule.ends is None else (here.t - there.t) // 2
    early, late = clock.at_t(here.t - half), clock.at_t(end.t + half)
    first = output(x, here)
    second = output(output.step(x, first, here, early), late)
    third = output(output.step(x, second, here, late), late)
    fourth = output(output.step(x, third, here, end), end)
    mean = _weighted((1 / 6, 1 / 3, 1 / 3, 1 / 6), [first, second, third, fourth])
    return first, output.step(x, mean, here, end)


def _weighted(weights: tuple[float, ...], values: list[Any]) -> Any:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
