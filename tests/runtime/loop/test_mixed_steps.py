"""Requests of different samplers, steps, guidance and starts share calls, step by step.

Each is first run alone by its pipeline, and what its loop binds and runs is written down. Then all
run in common calls, joining and leaving between steps, and must be what they were, to the bit.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.executors.ort.step_graph import OrtStepLoop
from eri_runtime.sampling import MAX_V, MAX_W
from tests.support.mixed_images import Image, run

FAMILIES = ["sdxl", "sd35", "flux"]
WORDS = {"height": 32, "width": 48, "output_type": "latent"}
# the words of each request, and the call in which it joins
REQUESTS = (
    ({"sampler": "dpmpp_sde", "num_inference_steps": 4, "guidance": 4.0}, 0),
    ({"num_inference_steps": 9, "guidance": 1.0}, 1),
    ({"sampler": "dpmpp_2m", "num_inference_steps": 6, "guidance": 2.5}, 0),
    ({"sampler": "dpmpp_2s_a", "num_inference_steps": 3, "guidance": 6.0}, 3),
)


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request):
    with eri.load(request.getfixturevalue(f"{request.param}_bundle"), "cpu", loop="step") as pipe:
        yield pipe


@pytest.fixture
def notes(monkeypatch):
    """What each loop binds, begins with and runs."""
    found, bind, begin, run_rows = [], OrtStepLoop.bind, OrtStepLoop.begin, OrtStepLoop.run

    def noted_bind(loop, key, mix, conditions, layout=None):
        if not found or found[-1].loop is not loop:
            found.append(SimpleNamespace(loop=loop, bound={}, rows=[]))
        found[-1].bound[key] = mix, conditions
        bind(loop, key, mix, conditions, layout)

    def noted_begin(loop, x, remembered):
        found[-1].x = x.copy()
        return begin(loop, x, remembered)

    def noted_run(loop, rows, state):
        def noted():
            for row in rows:
                found[-1].rows.append((row.key, row.columns.copy(), tuple(row.noises)))
                yield row

        return run_rows(loop, noted(), state)

    monkeypatch.setattr(OrtStepLoop, "bind", noted_bind)
    monkeypatch.setattr(OrtStepLoop, "begin", noted_begin)
    monkeypatch.setattr(OrtStepLoop, "run", noted_run)
    return found


def words_of(pipe, words, seed):
    """The words of a request, with guidance in the family's own."""
    words = {**WORDS, **words, "seed": seed}
    scale = words.pop("guidance")
    name = "true_cfg_scale" if pipe.bundle.family == "flux" else "guidance_scale"
    return {**words, name: scale, "negative_prompt": "blurry"}


def padded(arrays, count, like):
    """The arrays, newest first, and zeros for those that are missing."""
    return np.stack([*arrays, *[np.zeros_like(like)] * (count - len(arrays))])


def image_of(note, k, x, remembered, shared):
    """A request's image before its step k."""
    key, columns, noises = note.rows[k]
    mix, conditions = note.bound[key]
    return Image(
        x=x,
        history=padded(remembered, MAX_W, x),
        noise=padded(noises, MAX_V, x),
        row=columns,
        mix=mix[:, 0],
        conditions={name: value for name, value in conditions.items() if name not in shared},
    )


def test_requests_that_share_calls_are_what_they_are_alone(pipe, notes):
    alone = []
    for seed, (words, _) in enumerate(REQUESTS):
        request = pipe.request(f"picture {seed}", **words_of(pipe, words, seed))
        alone.append([(step.x, step.denoised) for step in pipe.denoise(request)])
    recorded = list(notes)
    assert len({len(steps) for steps in alone}) > 2
    assert {mix.shape[0] for note in recorded for mix, _ in note.bound.values()} == {1, 2}

    spec = pipe.bundle.components["denoiser"]
    shared = {each.name for each in spec.inputs if "batch" not in each.shape}
    common = {name: recorded[0].bound[recorded[0].rows[0][0]][1][name] for name in shared}
    stepper = pipe._live.stepper()
    states = [(note.x, ()) for note in recorded]
    made, companies = [[] for _ in REQUESTS], set()
    for call in range(20):
        going = [
            i
            for i, (_, joins) in enumerate(REQUESTS)
            if call >= joins and len(made[i]) < len(recorded[i].rows)
        ]
        if not going:
            break
        companies.add(tuple(going))
        images = [image_of(recorded[i], len(made[i]), *states[i], shared) for i in going]
        (state,) = run(stepper, images, common)
        for b, i in enumerate(going):
            states[i] = state.x[b : b + 1], [each[b : b + 1] for each in state.remembered]
            made[i].append((state.x[b : b + 1], state.denoised[b : b + 1]))
    assert len(companies) > 3
    for mine, expected in zip(made, alone, strict=True):
        np.testing.assert_array_equal(mine, expected)
