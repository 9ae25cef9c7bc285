"""The denoising loop over a step graph: bind buffers, then one engine call a row.

`denoise.denoise` is its oracle, and a step of either goes on in the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import tee
from math import ceil

from eri_runtime.denoise import Array, Step, before_first, check_state, next_noises, taken
from eri_runtime.executors.stepper import Row, Stepper
from eri_runtime.guided import Guided, Inputs, Pass
from eri_runtime.noise import NoiseSource
from eri_runtime.spec import ShapeRange
from eri_runtime.table import SamplerTable


def obstacle(guided: Guided, table: SamplerTable, batch: int, rows: ShapeRange) -> str | None:
    """What a step graph does not hold, if anything; `rows` is what the denoiser takes at once."""
    if guided.rescale:
        return "guidance is rescaled"
    counts = conditions(guided, table, batch, rows)
    if any(count * batch not in rows for count in counts):
        return f"{max(counts) * batch} rows, and the denoiser takes {rows.max} at once"
    return None


def conditions(guided: Guided, table: SamplerTable, batch: int, rows: ShapeRange) -> set[int]:
    """How many the step graph is given at once."""
    return {max(len(each.used), _least(batch, rows)) for each in passes(guided, table)}


def passes(guided: Guided, table: SamplerTable) -> set[Pass]:
    """All that the denoiser is shown."""
    return {guided.at(table.points[k]) for k in range(len(table))}


def _least(batch: int, rows: ShapeRange) -> int:
    """Conditions that fill the fewest rows."""
    return ceil(rows.min / batch)


def stepped(
    stepper: Stepper,
    guided: Guided,
    shared: Inputs,
    rows: ShapeRange,
    table: SamplerTable,
    start: Array | Step,
    noise: NoiseSource,
    *,
    draw: int = 1,
) -> Iterator[Step]:
    """Run the table as `denoise.denoise` does, with guidance and solver inside the graph.

    There is no `obstacle`; `shared` inputs have no rows.
    Raises `NonFiniteError` naming the step that made NaN or Inf.
    """
    step = start if isinstance(start, Step) else before_first(table, start, noise, draw)
    shape, coefficients = step.x.shape, table.rows()
    loop = stepper.loop(shape, table.B.shape[1])
    for each in passes(guided, table):
        filled = each.filled(_least(shape[0], rows))
        loop.bind(each, filled.mix, {**guided.inputs(filled), **shared})
    drawn, told = tee(_noises(table, step, noise, shape))
    todo = (
        Row(guided.at(table.points[k]), coefficients[k], noises if table.C[k].any() else ())
        for k, noises, _ in drawn
    )
    states = loop.run(todo, loop.begin(step.x, step.remembered))
    del step  # whose buffers are free again when it is let go of
    for (k, noises, draw), latents in zip(told, states, strict=False):
        if not latents.finite:
            check_state(latents.x, k, table)
        yield taken(table, k, latents, noises, draw)


def _noises(
    table: SamplerTable, step: Step, noise: NoiseSource, shape: tuple[int, ...]
) -> Iterator[tuple[int, tuple[Array, ...], int]]:
    """Each row after a step, with its noises and the draw after them."""
    first, noises, draw = step.index + 1, step.noises, step.draw
    for k in range(first, len(table)):
        noises, draw = next_noises(table, k, noises, draw, noise, shape)
        yield k, noises, draw
