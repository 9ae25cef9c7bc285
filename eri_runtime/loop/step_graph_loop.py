"""The denoising loop on a step graph: bind the buffers once, then make one engine call per row.

Tested against `numpy_loop.denoise`; a step of either loop can be resumed in the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import tee
from math import ceil

import numpy as np

from eri_runtime.bundle import ShapeRange
from eri_runtime.executors import Row, Stepper
from eri_runtime.loop.guidance_plan import DenoiserPass, GuidancePlan, Inputs
from eri_runtime.loop.numpy_loop import (
    Array,
    Step,
    check_state,
    draw_noises,
    initial_step,
    make_step,
)
from eri_runtime.sampling import MAX_W, NoiseSource, SamplerTable


def step_graph_refusal(
    plan: GuidancePlan, table: SamplerTable, batch: int, rows: ShapeRange
) -> str | None:
    """Returns why no step graph can run these steps, or None if one can.

    `rows` is the range of the denoiser's batch.
    """
    if plan.rescale:
        return "guidance is rescaled"
    if table.B.shape[1] > MAX_W:
        return (
            f"the sampler looks back over {table.B.shape[1]} evaluations, a step graph over {MAX_W}"
        )
    counts = condition_counts(plan, table, batch, rows)
    if any(count * batch not in rows for count in counts):
        return f"{max(counts) * batch} rows, and the denoiser takes {rows.max} at once"
    return None


def condition_counts(
    plan: GuidancePlan, table: SamplerTable, batch: int, rows: ShapeRange
) -> set[int]:
    """Returns the numbers of conditions that the step graph gets in one call."""
    least = _least_conditions(batch, rows)
    return {max(len(each.conditions), least) for each in denoiser_passes(plan, table)}


def denoiser_passes(plan: GuidancePlan, table: SamplerTable) -> set[DenoiserPass]:
    """Returns the distinct passes of all rows: one or two for each phase of the prompts."""
    return {plan.pass_at(k, table.points[k]) for k in range(len(table))}


def _least_conditions(batch: int, rows: ShapeRange) -> int:
    """Returns the number of conditions that fills the smallest batch the denoiser takes."""
    return ceil(rows.min / batch)


def denoise_on_step_graph(
    stepper: Stepper,
    plan: GuidancePlan,
    shared: Inputs,
    rows: ShapeRange,
    table: SamplerTable,
    start: Array | Step,
    noise: NoiseSource,
    *,
    draw: int = 1,
) -> Iterator[Step]:
    """Runs the table as `numpy_loop.denoise` does, with guidance and solver inside the graph.

    Call it only if `step_graph_refusal` and `stepper.refusal` return None. `shared` are the
    denoiser's inputs that have no batch axis.

    Raises `NonFiniteError`, naming the step, if the latents contain NaN or Inf.
    """
    step = start if isinstance(start, Step) else initial_step(table, start, noise, draw)
    shape, coefficients = step.x.shape, table.rows()
    loop = stepper.loop(shape, table.B.shape[1])
    for each in denoiser_passes(plan, table):
        padded = each.padded(_least_conditions(shape[0], rows))
        loop.bind(each, padded.mix, {**plan.inputs(padded), **shared})
    uses_noise = np.any(table.C, axis=1)
    draws, draws_again = tee(_draws(table, step, noise, shape))
    engine_rows = (
        Row(plan.pass_at(k, table.points[k]), coefficients[k], noises if uses_noise[k] else ())
        for k, noises, _ in draws
    )
    states = loop.run(engine_rows, loop.begin(step.x, step.remembered))
    del step  # frees its buffers in the engine
    for (k, noises, draw), latents in zip(draws_again, states, strict=False):
        if not latents.finite:
            check_state(latents.x, k, table)
        yield make_step(table, k, latents, noises, draw)


def _draws(
    table: SamplerTable, step: Step, noise: NoiseSource, shape: tuple[int, ...]
) -> Iterator[tuple[int, tuple[Array, ...], int]]:
    """Yields k, its noises and the number of the next draw for every row after `step`."""
    first, noises, draw = step.index + 1, step.noises, step.draw
    for k in range(first, len(table)):
        noises, draw = draw_noises(table, k, noises, draw, noise, shape)
        yield k, noises, draw
