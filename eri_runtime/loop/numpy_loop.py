"""The denoising loop in NumPy: a generator of `Step`.

Because it is a generator, the caller shows progress, draws previews and cancels. Faster loops are
tested against this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isclose
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import check_finite, floats, function, instance, integer
from eri_runtime.errors import UsageError, short
from eri_runtime.executors import Latents
from eri_runtime.sampling import NoiseSource, Point, SamplerTable

Array = NDArray[np.float32]
Network = Callable[[Array, Point], Array]


@dataclass(frozen=True, kw_only=True)
class HostLatents:
    """`Latents` as NumPy arrays: what `denoise` yields, and what a pickled `Step` contains."""

    x: Array
    denoised: Array
    remembered: tuple[Array, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """The state after one denoising step, from which the loop can also be resumed.

    A step corresponds to one row of a `SamplerTable`: one evaluation of the network. It can be
    kept, pickled and passed as `start` to `denoise` or `Pipeline.denoise`. The step graph keeps the
    arrays on its device and copies each one when it is first read.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the whole run. Samplers that evaluate the network twice per noise
            level, such as Heun's, count both evaluations.
        sigma: Noise level before the step, in k-diffusion's unit: sigma/alpha for SDXL, sigma for
            flow models.
        latents: Holder of the arrays; read them as `x`, `denoised` and `remembered`.
        noises: Noise that later steps still use, (B, …) float32 each, newest first.
        draw: Number of the next draw from the noise source.
        computed: Whether the whole denoiser ran in this step; False where `step_cache` skipped
            most of it.

    Example:
        >>> request = pipe.request("a red heart", num_inference_steps=4, seed=0)
        >>> for step in pipe.denoise(request):
        ...     print(f"{step.index + 1}/{step.total} at sigma {step.sigma:.2f}")
        1/4 at sigma 1.00
        2/4 at sigma 0.86
        3/4 at sigma 0.60
        4/4 at sigma 0.01
        >>> step.x.shape
        (1, 16, 16, 16)
    """

    index: int
    total: int
    sigma: float
    latents: Latents
    noises: tuple[Array, ...]
    draw: int
    computed: bool = True

    def __getstate__(self) -> dict[str, object]:
        """Returns the fields to pickle, with the arrays copied from the engine."""
        return vars(self.on_host())

    def on_host(self) -> Step:
        """Returns the same step with its arrays in NumPy's memory.

        A step of the step graph keeps buffers of the engine alive; this copy keeps none.
        """
        latents = HostLatents(x=self.x, denoised=self.denoised, remembered=self.remembered)
        return replace(self, latents=latents)

    @property
    def x(self) -> Array:
        """Latents after the step, (B, …) float32 in the denoiser's scale and layout."""
        return self.latents.x

    @property
    def denoised(self) -> Array:
        """The network's estimate of x_0 at `sigma`, (B, …) float32; for previews."""
        return self.latents.denoised

    @property
    def remembered(self) -> tuple[Array, ...]:
        """Estimates of earlier steps that a multistep sampler uses, (B, …) each, newest first."""
        return self.latents.remembered


def identity(value: Array, *_: object) -> Array:
    """Returns its first argument: the default `hook` and `mend`."""
    return value


def denoise(
    network: Network,
    table: SamplerTable,
    start: Array | Step,
    noise: NoiseSource,
    *,
    hook: Callable[[Array], Array] = identity,
    mend: Callable[[Array, int], Array] = identity,
    draw: int = 1,
) -> Iterator[Step]:
    """Runs a sampler table on a network of your own, in NumPy, and yields every step.

    Row k of the table is one evaluation of the network, with m the remembered estimates and n the
    noises:

        F    = network(c_in·x, point)
        x_0  = hook(c_skip·x + c_out·F)
        m_k  = p·x + q·x_0
        x'   = A·x + Σ_j B_j·m_{k−j} + Σ_j C_j·n_{k−j}   (+ E·the hook's change of x_0)

    `Pipeline.denoise` runs the same steps; use this for a network that is not in a bundle.

    Args:
        network: Function (c_in·x, point) -> F, the guided prediction, in the form that the table
            was made for: epsilon, v, x_0 or the flow's velocity. Arrays are (B, …) float32.
        table: Coefficients of the sampler, from `make_table` or `tabulate`.
        start: Initial latents (B, …) float32, already multiplied by `table.scale`, or a `Step` to
            resume from.
        noise: Source of noise, called as noise(draw, shape without B), for samplers that add noise.
        hook: Function x_0 -> x_0, called in every step, for example dynamic thresholding. Default:
            x_0 unchanged.
        mend: Function (x, k) -> x that may change the latents after row k, which have the noise
            level of `table.points[k + 1]`, for example to keep the part of an image outside a
            mask. Default: x unchanged.
        draw: Number of the first draw from `noise`. Ignored if `start` is a `Step`.

    Yields:
        Step: One per row of the table, or those after `start`.

    Raises:
        NonFiniteError: If the latents contain NaN or Inf; the message names the step.

    Example:
        A network that knows the answer, x_0 = 0.5, and predicts the flow's velocity n − x_0, which
        is (x − x_0)/sigma:

        >>> spec = pipe.bundle.schedule
        >>> schedule = eri.make_schedule(spec, 4, tokens=64, whole_t=False)
        >>> table = eri.make_table(eri.SAMPLERS["flow_euler"], schedule, spec)
        >>> noise = eri.PhiloxNoise([0])
        >>> start = table.scale * noise(0, (16, 8, 8))
        >>> for step in eri.denoise(lambda x, at: (x - 0.5) / at.sigma, table, start, noise):
        ...     print(f"{step.sigma:.2f} -> {np.abs(step.x - 0.5).max():.2f}")
        1.00 -> 3.56
        0.86 -> 2.50
        0.60 -> 0.04
        0.01 -> 0.00
    """
    function("network", network, "a function (x, point) -> prediction")
    trajectory = Trajectory(table, start, noise, hook=hook, mend=mend, draw=draw)
    while not trajectory.done:
        yield trajectory.tell(network(*trajectory.ask()))


class Trajectory:
    """A run of a sampler table, between the evaluations of its network.

    `ask` says what to evaluate next, `tell` takes the prediction and makes the step. So whoever
    evaluates the network may do so for several trajectories at once; `denoise` does it for one.

    Takes the arguments of `denoise`, and raises its errors.

    Attributes:
        step: The state after the last step.
    """

    def __init__(
        self,
        table: SamplerTable,
        start: Array | Step,
        noise: NoiseSource,
        *,
        hook: Callable[[Array], Array] = identity,
        mend: Callable[[Array, int], Array] = identity,
        draw: int = 1,
    ) -> None:
        self._table = instance("table", table, SamplerTable)
        self._rows = _rows(table)
        self._noise = function("noise", noise, "a function (draw, shape) -> array")
        self._hook = function("hook", hook, "a function x_0 -> x_0")
        self._mend = function("mend", mend, "a function (x, k) -> x")
        if isinstance(start, Step):
            self.step = start
        else:
            integer("draw", draw, 0)
            self.step = initial_step(table, floats("start", start), noise, draw)

    @property
    def done(self) -> bool:
        """Whether every step has been made."""
        return self.step.index + 1 >= len(self._table)

    @property
    def point(self) -> Point:
        """The point of the next evaluation."""
        return self._table.points[self.step.index + 1]

    def ask(self) -> tuple[Array, Point]:
        """Returns what to evaluate the network at: c_in·x and its point."""
        return self._rows[self.step.index + 1].c_in * self.step.x, self.point

    def tell(self, predicted: Array) -> Step:
        """Makes the step from the network's prediction, of the latents' shape; returns it."""
        table, before, x = self._table, self.step, self.step.x
        k = before.index + 1
        row = self._rows[k]
        predicted = _like(x, "network", predicted)
        estimate = row.c_skip * x + row.c_out * predicted
        denoised = _like(x, "hook", self._hook(estimate))
        memory = row.p * x + row.q * denoised
        remembered = _push(memory, before.remembered, len(row.B))
        noises, draw = draw_noises(table, k, before.noises, before.draw, self._noise, x.shape)
        x = _accumulate(row.A * x, row.B, remembered)
        if table.E is not None and denoised is not estimate:
            x = x + float(table.E[k]) * (denoised - estimate)
        x = _like(x, "mend", self._mend(_accumulate(x, row.C, noises), k))
        check_state(x, k, table)
        latents = HostLatents(x=x, denoised=denoised, remembered=remembered)
        self.step = make_step(table, k, latents, noises, draw)
        return self.step


def _like(x: Array, name: str, value: object) -> Array:
    """Returns what a caller's function returned, an array of the shape of `x`.

    Raises `UsageError` for anything else.
    """
    if isinstance(value, np.ndarray) and value.shape == x.shape and value.dtype.kind == "f":
        return value
    got = f"{value.dtype} of {value.shape}" if isinstance(value, np.ndarray) else short(value)
    raise UsageError(f"what {name} returns", got=got, expected=f"an array of floats of {x.shape}")


def check_start(step: Step, table: SamplerTable, shape: tuple[int, ...]) -> None:
    """Raises `UsageError` if `step` cannot be resumed with this table and latents of `shape`."""
    history = min(step.index + 1, table.B.shape[1]), min(step.index + 1, table.C.shape[1])
    sizes = step.total, step.x.shape, len(step.remembered), len(step.noises)
    if sizes != (len(table), shape, *history) or not isclose(step.sigma, table.level(step.index)):
        got = f"a step of {step.total} with latents {step.x.shape}"
        expected = f"one of {len(table)} with {shape}, of the same sampler and levels"
        raise UsageError("start", got=got, expected=expected)


def make_step(
    table: SamplerTable, k: int, latents: Latents, noises: tuple[Array, ...], draw: int
) -> Step:
    """Returns the `Step` after row k of a table."""
    level = table.level(k)
    return Step(index=k, total=len(table), sigma=level, latents=latents, noises=noises, draw=draw)


def draw_noises(
    table: SamplerTable,
    k: int,
    noises: tuple[Array, ...],
    draw: int,
    noise: NoiseSource,
    shape: tuple[int, ...],
) -> tuple[tuple[Array, ...], int]:
    """Returns the noises for row k, (B, …) each, newest first, and the number of the next draw.

    `noises` and `draw` are those after row k − 1. Draws only if the table says so.
    """
    if not table.C.shape[1]:
        return noises, draw
    fresh = table.draws_noise(k)
    newest = noise(draw, shape[1:]) if fresh else np.zeros(shape, np.float32)
    return _push(newest, noises, table.C.shape[1]), draw + fresh


def check_state(x: Array, k: int, table: SamplerTable) -> None:
    """Raises `NonFiniteError` if the latents after row k have NaN or Inf.

    The error names the step, and the first such image if others are finite.
    """
    if np.isfinite(x).all():
        return
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    which = f" of image {finite.argmin() + 1} of {len(x)}" if finite.any() else ""
    check_finite(f"latents{which} after step {k + 1} of {len(table)}", x)


def initial_step(table: SamplerTable, x: Array, noise: NoiseSource, draw: int) -> Step:
    """Returns the state before row 0; draws noise if the sampler adds some to the start."""
    if table.C0:
        x = table.A0 * x + table.C0 * noise(draw, x.shape[1:])
        draw += 1
    return Step(
        index=-1,
        total=len(table),
        sigma=table.level(0),
        latents=HostLatents(x=x, denoised=x),
        noises=(),
        draw=draw,
    )


def _push(newest: Array, history: tuple[Array, ...], width: int) -> tuple[Array, ...]:
    """Returns the history with `newest` in front, cut to its `width` newest entries."""
    return (newest, *history)[:width]


class _Row(NamedTuple):
    """A row of a sampler's table, as numbers of Python: reading them from arrays takes longer."""

    c_in: float
    c_skip: float
    c_out: float
    p: float
    q: float
    A: float
    B: list[float]
    C: list[float]


def _rows(table: SamplerTable) -> list[_Row]:
    """Returns the rows of a table."""
    columns: list[NDArray[np.float64]] = [getattr(table, name) for name in _Row._fields]
    return [_Row(*each) for each in zip(*(column.tolist() for column in columns), strict=True)]


def _accumulate(x: Array, coefficients: list[float], history: tuple[Array, ...]) -> Array:
    """Returns x + Σ_j coefficients[j]·history[j]; skips coefficients of 0."""
    for coefficient, value in zip(coefficients, history, strict=False):
        if coefficient:
            x = x + coefficient * value
    return x
