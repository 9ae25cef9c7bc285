"""DDPMScheduler against diffusers' DDPM and DDIM, whole trajectories, and what it refuses.

As in `tests/support/references`, the reference's alpha-bar is accumulated in float64 and its noise
is injected.
"""

from __future__ import annotations

import sys

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eri_runtime import SAMPLERS, make_table
from eri_runtime.bundle.spec import ScheduleSpec
from eri_runtime.errors import EriError, NonFiniteError, SizeError, UnknownNameError, UsageError
from eri_runtime.sampling.torch_randn import TorchNormal
from eri_runtime.standalone.ddpm_scheduler import DDPMScheduler
from tests.support.oracles import network, trajectory

STEPS = [1, 2, 7, 20]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]
CLIPPED = {"clip_sample": True, "clip_sample_range": 1.5}
NOT_CLIPPED = {"clip_sample": False}
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SHAPE = (2, 4, 5, 3)
TOLERANCE = 1e-5


def draws(draw, shape=SHAPE[1:]):
    return np.random.default_rng(draw).standard_normal((SHAPE[0], *shape), dtype=np.float32)


class Injected:
    """A generator whose n-th draw is `draws(n)`."""

    def __init__(self):
        self.count = 0

    def standard_normal(self, size, dtype):
        self.count += 1
        return draws(self.count).astype(dtype)


def ours(scheduler, *args, generator=None, **kwargs):
    """Every x of a loop from unit noise."""
    generator = Injected() if generator is None else generator
    x, states = draws(0), []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t)), t, x, *args, generator=generator, **kwargs)
        states.append(x)
    return states


def exact(scheduler):
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    return scheduler


def theirs(scheduler, monkeypatch=None, **kwargs):
    """diffusers' loop from the same noise."""
    if monkeypatch is not None:
        source = Injected()
        injected = lambda *_, **__: torch.from_numpy(source.standard_normal(SHAPE, np.float32))  # noqa: E731
        monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", injected)
    x, states = torch.from_numpy(draws(0)), []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t)), t, x, return_dict=False, **kwargs)[0]
        states.append(x.numpy())
    return states


def assert_close(mine, reference, tolerance=TOLERANCE):
    assert len(mine) == len(reference)
    for a, b in zip(mine, reference, strict=True):
        assert a.dtype == np.float32
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("clip", [CLIPPED, NOT_CLIPPED])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_eta_one_it_is_diffusers_ddpm(prediction, spacing, clip, steps, monkeypatch):
    config = {**VP, **clip, "prediction_type": prediction, "timestep_spacing": spacing}
    scheduler, reference = DDPMScheduler(**config), exact(diffusers.DDPMScheduler(**config))
    scheduler.set_timesteps(steps)
    reference.set_timesteps(steps)
    np.testing.assert_array_equal(scheduler.timesteps, reference.timesteps)
    assert_close(ours(scheduler), theirs(reference, monkeypatch))


# elsewhere diffusers' DDIM steps to a t that is none of its N
DDIM_STEPS = [("leading", 1), ("leading", 2), ("leading", 7), ("leading", 20)]
DDIM_STEPS += [("trailing", 1), ("trailing", 2), ("trailing", 20)]


@pytest.mark.parametrize(("spacing", "steps"), DDIM_STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("clip", [CLIPPED, NOT_CLIPPED])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_any_eta_it_is_diffusers_ddim(
    prediction, clip, again, eta, spacing, steps, monkeypatch
):
    config = {**VP, **clip, "prediction_type": prediction, "timestep_spacing": spacing}
    scheduler, reference = DDPMScheduler(**config), exact(diffusers.DDIMScheduler(**config))
    scheduler.set_timesteps(steps)
    reference.set_timesteps(steps)
    mine = ours(scheduler, eta, again)
    words = {"eta": eta, "use_clipped_model_output": again}
    assert_close(mine, theirs(reference, monkeypatch, **words))


def test_torchs_noise_is_diffusers_noise():
    scheduler, reference = DDPMScheduler(), exact(diffusers.DDPMScheduler(**VP, clip_sample=False))
    scheduler.set_timesteps(5)
    reference.set_timesteps(5)
    mine = ours(scheduler, generator=TorchNormal(7))
    generator = torch.Generator("cpu").manual_seed(7)
    assert_close(mine, theirs(reference, generator=generator))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_a_loop_of_steps_is_the_samplers_table(name, spacing):
    """A thin face: a loop of one's own makes what a pipeline makes."""
    spec = ScheduleSpec(kind="vp", prediction="eps", spacing=spacing)
    table = make_table(SAMPLERS[name], SAMPLERS[name].schedule(spec, 20, 0), spec)
    scheduler = DDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    mine = ours(scheduler, eta=1.0 if name == "ddpm" else 0.0)
    assert_close(mine, trajectory(table, draws(0), draws), 1e-6)


def test_zero_terminal_snr_starts_from_noise_alone(monkeypatch):
    config = {**VP, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = DDPMScheduler(**config, rescale_betas_zero_snr=True)
    reference = diffusers.DDPMScheduler(**config, clip_sample=False, rescale_betas_zero_snr=True)
    plain = np.cumprod(1 - DDPMScheduler(**config).betas)
    root = np.sqrt(plain)
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alpha_bar[-1] = 2.0**-24  # as diffusers' Euler has it; its DDPM has the rounding of 0
    reference.alphas_cumprod = torch.from_numpy(alpha_bar)
    np.testing.assert_allclose(scheduler.alphas_cumprod, alpha_bar, rtol=1e-12)
    scheduler.set_timesteps(7)
    reference.set_timesteps(7)
    assert_close(ours(scheduler), theirs(reference, monkeypatch))


@pytest.mark.parametrize("curve", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_the_tables_are_diffusers_tables(curve, count):
    scheduler = DDPMScheduler(count, beta_schedule=curve)
    reference = diffusers.DDPMScheduler(count, **{**VP, "beta_schedule": curve})
    assert scheduler.num_train_timesteps == count
    for name in ("betas", "alphas", "alphas_cumprod"):
        mine, other = getattr(scheduler, name), getattr(reference, name).numpy()
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, other, rtol=3e-4, atol=1e-7)
    np.testing.assert_array_equal(scheduler.timesteps, reference.timesteps)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_diffusers_timesteps(spacing):
    scheduler = DDPMScheduler(timestep_spacing=spacing, steps_offset=0)
    reference = diffusers.DDPMScheduler(timestep_spacing=spacing)
    for steps in [2, 3, 4, 5, 11, 28, 37, 50, 99, 250, 333, 1000]:
        scheduler.set_timesteps(steps)
        reference.set_timesteps(steps)
        np.testing.assert_array_equal(scheduler.timesteps, reference.timesteps[:steps])


def test_before_a_choice_of_steps_every_training_step_is_one():
    scheduler = DDPMScheduler(10)
    np.testing.assert_array_equal(scheduler.timesteps, np.arange(10)[::-1])
    x = scheduler.step(draws(1), 3, draws(0), eta=0.0)
    alpha, sigma = np.sqrt(scheduler.alphas_cumprod), np.sqrt(1 - scheduler.alphas_cumprod)
    x_0 = (draws(0) - sigma[3] * draws(1)) / alpha[3]
    np.testing.assert_allclose(x, alpha[2] * x_0 + sigma[2] * draws(1), atol=1e-6)


@given(order=st.permutations(range(6)), eta=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_step_is_the_same_in_any_order(order, eta):
    scheduler, x = DDPMScheduler(50), draws(0)
    scheduler.set_timesteps(6)

    def step(t):
        return scheduler.step(0.5 * x, t, x, eta, generator=np.random.default_rng(1))

    once = {t: step(t) for t in scheduler.timesteps}
    for i in order:
        t = scheduler.timesteps[i]
        np.testing.assert_array_equal(step(t), once[t])
    reference = DDPMScheduler(50)
    reference.set_timesteps(6)
    np.testing.assert_array_equal(reference.timesteps, scheduler.timesteps)


def test_the_type_of_the_sample_is_kept():
    scheduler, noise = DDPMScheduler(10), draws(1)
    for dtype in (np.float32, np.float64):
        x = draws(0).astype(dtype)
        for output in (noise, noise.astype(np.float64), noise.astype(np.float16)):
            assert scheduler.step(output, 5, x, generator=np.random.default_rng(0)).dtype == dtype
        assert scheduler.add_noise(x, noise, [3, 4]).dtype == dtype
    wide, narrow = (scheduler.step(noise, 5, draws(0).astype(d), 0.0) for d in (float, np.float32))
    np.testing.assert_allclose(narrow, wide, atol=1e-5)


def test_nothing_is_drawn_where_no_noise_is_added():
    scheduler, generator = DDPMScheduler(10), Injected()
    scheduler.step(draws(1), 5, draws(0), 0.0, generator=generator)
    scheduler.step(draws(1), 0, draws(0), 1.0, generator=generator)
    assert generator.count == 0
    first, second = (scheduler.step(draws(1), 5, draws(0)) for _ in range(2))
    assert not np.array_equal(first, second)


def test_the_arrays_cannot_be_changed_from_outside():
    scheduler = DDPMScheduler(10)
    scheduler.alphas_cumprod[:] = 0
    scheduler.timesteps[:] = 0
    assert scheduler.alphas_cumprod.min() > 0.9
    assert scheduler.timesteps[0] == 9


@pytest.mark.parametrize("timesteps", [[0, 999], [500, 500], 42, np.array([1, 2], np.uint8)])
def test_noise_is_added_as_diffusers_adds_it(timesteps):
    reference = exact(diffusers.DDPMScheduler(**VP))
    t = torch.broadcast_to(torch.from_numpy(np.asarray(timesteps, np.int64)), (2,))
    x_0, noise = torch.from_numpy(draws(0)), torch.from_numpy(draws(1))
    mine = DDPMScheduler().add_noise(draws(0), draws(1), timesteps)
    assert mine.dtype == np.float32
    # diffusers subtracts from 1 in float32
    np.testing.assert_allclose(mine, reference.add_noise(x_0, noise, t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0, 9, 500, 999])
def test_a_step_with_the_true_prediction_goes_back_along_the_noise(t, prediction):
    """Adding noise and a DDIM step with that noise commute."""
    scheduler = DDPMScheduler(prediction_type=prediction)
    x_0, eps = draws(0).astype(float), draws(1).astype(float)
    alpha_bar = scheduler.alphas_cumprod[t]
    v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0
    output = {"epsilon": eps, "v_prediction": v, "sample": x_0}[prediction]
    x = scheduler.step(output, t, scheduler.add_noise(x_0, eps, t), 0.0)
    expected = scheduler.add_noise(x_0, eps, t - 1) if t else x_0
    np.testing.assert_allclose(x, expected, atol=1e-10)


BAD_SCHEDULERS = [
    ("num_train_timesteps", 0),
    ("num_train_timesteps", 10.0),
    ("num_train_timesteps", 10**9),
    ("beta_start", 0.0),
    ("beta_start", 1e-300),
    ("beta_start", float("nan")),
    ("beta_end", 1.0),
    ("beta_end", 0.0001),
    ("beta_end", 0.99),  # nothing is left of the image
    ("clip_sample_range", 0),
    ("clip_sample_range", float("inf")),
    ("steps_offset", -1),
    ("steps_offset", 1001),
]


@pytest.mark.parametrize(("word", "value"), BAD_SCHEDULERS)
def test_a_number_out_of_range_is_refused(word, value):
    with pytest.raises(UsageError, match=f"^{word}: got"):
        DDPMScheduler(**{word: value})


@pytest.mark.parametrize("word", ["prediction_type", "timestep_spacing", "beta_schedule"])
@pytest.mark.parametrize("value", ["eps", "", None, 3, ["leading"], np.array(["leading", "x"])])
def test_an_unknown_name_is_refused(word, value):
    with pytest.raises(UnknownNameError, match=rf"^{word}: got .* expected one of"):
        DDPMScheduler(**{word: value})


def test_a_single_training_step_has_no_zero_terminal_snr():
    with pytest.raises(UsageError, match="num_train_timesteps: got 1"):
        DDPMScheduler(1, rescale_betas_zero_snr=True)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, None, "20", True])
def test_a_bad_number_of_steps_is_refused(steps):
    with pytest.raises(UsageError, match=r"^num_inference_steps: got .* 1 to 1000"):
        DDPMScheduler().set_timesteps(steps)


def test_an_offset_past_the_last_training_step_is_refused():
    scheduler = DDPMScheduler()
    with pytest.raises(UsageError, match="fewer than 1000 with steps_offset 1; or make"):
        scheduler.set_timesteps(1000)
    assert len(scheduler.timesteps) == 1000
    scheduler.set_timesteps(999)
    assert scheduler.timesteps[0] == 999


X = np.zeros((2, 3), np.float32)
NAN, INF = np.full((2, 3), np.nan), np.full((2, 3), np.inf)
BAD_STEPS = [
    ({"timestep": 1000}, UsageError, "^timestep: got 1000"),
    ({"timestep": -1}, UsageError, "^timestep: got -1"),
    ({"timestep": 7}, UsageError, r"^timestep: got 7, expected one of the 4 in `timesteps`; loop"),
    ({"timestep": 1.0}, UsageError, "^timestep"),
    ({"sample": X[0]}, SizeError, r"^model_output: got \(2, 3\), expected \(3,\)"),
    ({"sample": np.float32(1)}, SizeError, r"^sample: got \(\)"),
    ({"sample": X.astype(int)}, UsageError, "^sample: got an array of int64"),
    ({"sample": X.astype(np.float16)}, UsageError, "^sample: got an array of float16"),
    ({"sample": NAN}, NonFiniteError, "^sample"),
    ({"model_output": NAN}, NonFiniteError, "^model_output"),
    ({"model_output": INF}, NonFiniteError, "^model_output"),
    ({"model_output": INF.clip(0, 1e300)}, NonFiniteError, "^model_output"),
    ({"model_output": X + 3e38, "sample": X - np.float32(3e38)}, NonFiniteError, "^latents"),
    ({"model_output": "noise"}, UsageError, "^model_output"),
    ({"eta": 1.5}, UsageError, r"^eta: got 1\.5, expected a number from 0 to 1"),
    ({"eta": None}, UsageError, "^eta"),
    ({"eta": np.random.default_rng(0)}, UsageError, "^eta"),  # diffusers' DDPM has it here
    ({"generator": 42}, UsageError, r"^generator: got 42.*TorchNormal\(seed\)"),
    ({"generator": np.random.RandomState(0)}, UsageError, "^generator: .*dtype"),
    ({"generator": 42, "eta": 0.0}, UsageError, "^generator"),
]


@pytest.mark.parametrize(("changed", "error", "match"), BAD_STEPS)
def test_a_bad_step_is_refused(changed, error, match):
    scheduler = DDPMScheduler(100)
    scheduler.set_timesteps(4)
    with pytest.raises(error, match=match):
        scheduler.step(**{"model_output": X, "timestep": 51, "sample": X, **changed})


@pytest.mark.parametrize("values", [np.zeros((3, 2)), np.zeros(()), np.full((2, 3), np.nan), None])
def test_bad_noise_is_refused(values):
    class Bad:
        def standard_normal(self, size, dtype):
            return values

    with pytest.raises(EriError, match=r"^generator's noise: got"):
        DDPMScheduler(100).step(X, 50, X, generator=Bad())


BAD_NOISE = [
    ({"noise": X[:1]}, SizeError, r"^noise: got \(1, 3\), expected \(2, 3\)"),
    ({"noise": NAN}, NonFiniteError, "^noise"),
    ({"original_samples": X.astype(int)}, UsageError, "^original_samples"),
    ({"timesteps": [1, 2, 3]}, SizeError, r"^timesteps: got \(3,\), expected \(2,\)"),
    ({"timesteps": [[1, 2]]}, SizeError, "^timesteps"),
    ({"timesteps": [-1, 2]}, UsageError, r"^timesteps: got \[-1, 2\], expected integers, 0 to 99"),
    ({"timesteps": 100}, UsageError, "^timesteps: got 100"),
    ({"timesteps": [0.5, 1]}, UsageError, "^timesteps"),
    ({"timesteps": [[1], [1, 2]]}, UsageError, "^timesteps"),
    ({"timesteps": None}, UsageError, "^timesteps"),
]


@pytest.mark.parametrize(("changed", "error", "match"), BAD_NOISE)
def test_noise_that_cannot_be_added_is_refused(changed, error, match):
    words = {"original_samples": X, "noise": X, "timesteps": [1, 2], **changed}
    with pytest.raises(error, match=match):
        DDPMScheduler(100).add_noise(**words)


@settings(max_examples=60)
@given(
    count=st.integers(1, 60),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted) | st.just((0.0001, 0.02)),
    curve=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    prediction=st.sampled_from(PREDICTIONS),
    spacing=st.sampled_from(SPACINGS),
    offset=st.integers(0, 3),
    zero=st.booleans(),
    clip=st.booleans(),
    eta=st.floats(0, 1),
    data=st.data(),
)
def test_any_schedule_is_run_or_refused(
    count, betas, curve, prediction, spacing, offset, zero, clip, eta, data
):
    """To finite numbers, without a warning; or an error that says why not."""
    steps = data.draw(st.integers(1, count))
    try:
        scheduler = DDPMScheduler(
            count,
            beta_start=betas[0],
            beta_end=betas[1],
            beta_schedule=curve,
            prediction_type=prediction,
            timestep_spacing=spacing,
            steps_offset=offset,
            rescale_betas_zero_snr=zero,
            clip_sample=clip,
        )
        scheduler.set_timesteps(steps)
    except UsageError as error:
        refused = error.offender
    else:
        refused = None
        assert (np.diff(scheduler.timesteps) < 0).all()
        assert all(np.isfinite(x).all() for x in ours(scheduler, eta, data.draw(st.booleans())))
    words = "num_train_timesteps beta_start beta_end steps_offset num_inference_steps"
    assert refused is None or refused in words.split()
