"""The step graph as CUDA graphs: a replay reads and writes the buffers that it was captured with.

The CPU computes in place of a GPU. What is compared is equal to the bit, as the same kernels
compute it, captured or not.
"""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.executors import CPU, Settings
from eri_runtime.executors.ort import captured_step
from eri_runtime.executors.ort.capture_guard import CAPTURES, CaptureGuard
from eri_runtime.executors.step_graph import Row
from eri_runtime.sampling import COLUMNS, MAX_W
from tests.support import stand_in_cuda
from tests.support.mixed_images import draw, run

WORDS = {"height": 32, "width": 48, "num_inference_steps": 4, "output_type": "latent", "seed": 5}
CFG = {"negative_prompt": "blurry", "guidance_scale": 4.0}
OTHER = {"prompt": "two black cats", "seed": 9, "sampler": "dpmpp_3m_sde", **CFG}
INTERVAL = {"guidance_interval": (0.6, 0.95), **CFG}


def trajectory(pipe, **words):
    """Every step's arrays, read only once the loop is over."""
    steps = list(pipe.denoise(pipe.request(**{"prompt": "a red heart", **WORDS, **words})))
    return [(step.x, step.denoised, *step.remembered) for step in steps]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs) > 0
    for step, other in zip(mine, theirs, strict=True):
        for array, expected in zip(step, other, strict=True):
            np.testing.assert_array_equal(array, expected)


def opened(bundle):
    return eri.load(bundle, "cuda", loop="step", threads=1)


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in's CUDA."""
    return stand_in_cuda.install(monkeypatch)


@pytest.fixture
def pipe(sd35_bundle, gpu):
    with opened(sd35_bundle) as pipe:
        yield pipe


@pytest.fixture
def alone(sd35_bundle, gpu, monkeypatch):
    """A trajectory that nothing is captured for, in a pipeline of its own."""

    def run(**words):
        with monkeypatch.context() as patch, opened(sd35_bundle) as fresh:
            patch.setattr(captured_step, "MAX_GRAPHS", 0)
            return trajectory(fresh, **words)

    return run


def step_session(gpu):
    """The last session opened of a step graph."""
    return [session for session in gpu.sessions if session.captures][-1]


def test_every_trajectory_is_right_and_later_ones_only_replay(pipe, alone, gpu):
    expected = alone(**CFG)
    for _ in range(4):
        assert_same(trajectory(pipe, **CFG), expected)
    session = step_session(gpu)
    assert session.runs == [1] * 16
    assert len(session.captured) == 1


def test_the_numbers_are_the_cpus(pipe, sd35_bundle):
    with eri.load(sd35_bundle, "cpu", loop="numpy") as cpu:
        expected = trajectory(cpu, **CFG)
    for mine, theirs in zip(trajectory(pipe, **CFG), expected, strict=True):
        # float32's rounding, of two graphs that add in another order
        assert np.abs(mine[0] - theirs[0]).max() <= 1e-5 * np.abs(theirs[0]).max()


def test_two_passes_have_a_graph_each(pipe, alone, gpu):
    expected = alone(**INTERVAL)
    for _ in range(2):
        assert_same(trajectory(pipe, **INTERVAL), expected)
    session = step_session(gpu)
    assert sorted(set(session.runs)) == [1, 2]
    assert_same(trajectory(pipe, **CFG), alone(**CFG))
    assert len(session.captured) == 2


def test_another_size_is_another_graph(pipe, alone, gpu):
    for size in (32, 48, 32):
        words = {**CFG, "height": size}
        assert_same(trajectory(pipe, **words), alone(**words))
    sessions = [session for session in gpu.sessions if len(session.captured)]
    assert [sorted(set(session.runs)) for session in sessions] == [[1, 2]]


def test_a_kept_step_is_not_written_again(pipe, alone):
    kept = list(pipe.denoise(pipe.request("a red heart", **WORDS, **CFG)))
    for seed in (1, 2):
        trajectory(pipe, seed=seed, **CFG)
    for step, expected in zip(kept, alone(**CFG), strict=True):
        np.testing.assert_array_equal(step.x, expected[0])
        np.testing.assert_array_equal(step.denoised, expected[1])


def test_loops_that_take_turns_do_not_meet(pipe, alone):
    """Two of the same shapes, with other latents, prompts, noises and rows."""
    requests = [{"prompt": "a red heart", **CFG}, OTHER]
    loops = [pipe.denoise(pipe.request(**WORDS | words)) for words in requests]
    steps = list(zip(*loops, strict=True))
    for mine, words in zip(zip(*steps, strict=True), requests, strict=True):
        expected = alone(**words)
        assert_same([(s.x, s.denoised, *s.remembered) for s in mine], expected)


def test_new_weights_forget_the_graphs(pipe, alone, gpu):
    before = trajectory(pipe, **CFG)
    loop = pipe.denoise(pipe.request("a red heart", **WORDS, **CFG))
    first = next(loop)
    old = step_session(gpu)
    name = next(n for n in pipe._live.stored("denoiser") if n.endswith("proj_out.weight"))
    weights = np.array(pipe._live.stored("denoiser")[name])
    pipe._live.set("denoiser", {name: weights * 2})
    runs = list(old.runs)
    *_, last = loop
    assert old.runs == runs
    after = trajectory(pipe, **CFG)
    new = step_session(gpu)
    assert new is not old
    assert set(new.runs) == {1}
    np.testing.assert_array_equal(first.x, before[0][0])
    assert np.abs(last.x - before[-1][0]).max() > 0
    assert np.abs(after[-1][0] - before[-1][0]).max() > 0
    pipe._live.set("denoiser", {})
    assert_same(trajectory(pipe, **CFG), alone(**CFG))


def test_threads_share_the_graphs_and_nothing_else(pipe, alone, gpu):
    requests = [CFG, OTHER, {**CFG, "seed": 11}]
    trajectory(pipe, **CFG)
    results, failures = {}, []

    def run(number, words):
        try:
            results[number] = [trajectory(pipe, **words) for _ in range(3)]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    session = step_session(gpu)
    assert {number for _, number in session.captured} == {1}
    assert len(session.captured) == 1
    for number, words in enumerate(requests):
        expected = alone(**words)
        for mine in results[number]:
            assert_same(mine, expected)


def test_a_loop_may_move_to_another_thread(pipe, alone):
    loop = pipe.denoise(pipe.request("a red heart", **WORDS, **CFG))
    steps = [next(loop)]
    thread = threading.Thread(target=lambda: steps.extend(loop))
    thread.start()
    thread.join()
    assert_same([(s.x, s.denoised, *s.remembered) for s in steps], alone(**CFG))


def test_what_is_beyond_the_limit_runs_without_a_graph(pipe, alone, gpu, monkeypatch):
    monkeypatch.setattr(captured_step, "MAX_GRAPHS", 1)
    wide = {**CFG, "height": 48}
    for words in (CFG, wide, OTHER, wide):
        assert_same(trajectory(pipe, **words), alone(**words))
    session = next(each for each in gpu.sessions if each.captured)
    assert len(session.captured) == 1
    assert session.runs.count(-1) == 8


def test_nothing_is_captured_while_another_thread_uses_cuda(pipe, alone, gpu):
    with CAPTURES.call():
        assert_same(trajectory(pipe, **CFG), alone(**CFG))
    session = next(each for each in gpu.sessions if each.captures)
    assert set(session.runs) == {-1}
    assert_same(trajectory(pipe, **CFG), alone(**CFG))
    assert len(session.captured) == 1


def test_a_graph_that_cannot_be_captured_runs_all_the_same(
    sd35_bundle,
    gpu,
    caplog,
):
    gpu.refuses_capture = True
    with opened(sd35_bundle) as pipe, caplog.at_level(logging.WARNING, "eri_runtime"):
        first = trajectory(pipe, **CFG)
        assert_same(trajectory(pipe, **CFG), first)
    assert "not captured as CUDA graphs" in caplog.text
    assert not any(session.captures for session in gpu.sessions)


# the step graph alone


def test_passes_of_the_same_shapes_use_one_graph_with_their_own_inputs(pipe, gpu, monkeypatch):
    trajectory(pipe, **CFG)
    stepper, runs = pipe._live.stepper().stepper, step_session(gpu).runs
    capturing = stepper._current.opened.capturing
    ((shape, inputs),) = capturing._steps
    random = np.random.default_rng(0)
    bound = [
        {
            name: random.normal(size=size).astype(kind)
            for name, size, kind in inputs
            if name not in ("owner", "index")
        }
        for _ in range(2)
    ]
    x = random.normal(size=shape).astype(np.float32)

    def run(*passes):
        loop = stepper.loop(shape, MAX_W)
        for key in set(passes):
            loop.bind(key, bound[key]["mix"], {n: v for n, v in bound[key].items() if n != "mix"})
        columns = np.full(sum(COLUMNS.values()), 0.1, np.float32)
        rows = [Row(key, columns, ()) for key in passes]
        return [state.x.copy() for state in loop.run(rows, loop.begin(x, ()))]

    turns, first, second = run(0, 1, 0, 1), run(0), run(1)
    assert set(runs) == {1}
    monkeypatch.setattr(capturing, "step", lambda *_: None)  # nothing is captured any more
    np.testing.assert_array_equal(turns, run(0, 1, 0, 1))
    np.testing.assert_array_equal(turns[0], first[0])
    assert np.abs(first[0] - second[0]).max() > 0


def test_images_of_one_call_may_differ(pipe, sd35_bundle, gpu):
    """In row and number of conditions; calls of the same shapes share a graph."""
    trajectory(pipe)
    stepper, before = pipe._live.stepper().stepper, len(step_session(gpu).captured)
    spec = pipe.bundle.components["denoiser"]
    with CPU.stepper(pipe.bundle.path(spec.step), spec, Settings(threads=1)) as oracle:
        for seed, counts in enumerate([(2, 1, 1), (1, 2, 1)]):
            images, shared = draw(spec, counts, seed)
            expected, mine = (run(each, images, shared, steps=3) for each in (oracle, stepper))
            for state, other in zip(mine, expected, strict=True):
                assert np.abs(state.x - other.x).max() <= 1e-5 * np.abs(other.x).max()
            images[1].x.flat[0] = np.nan
            (state,) = run(stepper, images, shared)
            assert state.finite_images.tolist() == [True, False, True]
    assert len(step_session(gpu).captured) == before + 1


def test_noise_of_one_loop_does_not_reach_another(pipe):
    """Zero times infinity is no number, so a noise that is left behind shows."""

    def endless(draw, shape):
        return np.full((1, *shape), np.inf, np.float32)

    expected = trajectory(pipe, **CFG)
    with pytest.raises(eri.errors.NonFiniteError):
        trajectory(pipe, sampler="euler_a", noise=endless, **CFG)
    assert_same(trajectory(pipe, **CFG), expected)


# the guard


def test_a_call_waits_for_the_capture_of_another_thread():
    guard, done = CaptureGuard(), threading.Event()

    def call():
        with guard.call():
            done.set()

    thread = threading.Thread(target=call)
    with guard.try_capture() as alone:
        assert alone
        thread.start()
        assert not done.wait(0.05)
    assert done.wait(10)
    thread.join()


def test_a_capture_does_not_wait_and_calls_may_nest():
    guard = CaptureGuard()
    with guard.call(), guard.call(), guard.try_capture() as alone:
        assert not alone
    with guard.try_capture() as alone:
        assert alone
    with guard.call():
        pass


def test_closing_frees_nothing_during_a_capture(sd35_bundle, gpu):
    pipe = opened(sd35_bundle)
    trajectory(pipe, **CFG)
    thread = threading.Thread(target=pipe.close)
    with CAPTURES.try_capture() as alone:
        assert alone
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()
