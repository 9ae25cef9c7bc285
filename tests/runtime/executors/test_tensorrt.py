"""The TensorRT executor against the step loop of ONNX Runtime, with a stand-in for the GPU.

What this proves is the calls, their order and who owns what; `test_tensorrt_gpu.py` is for a GPU.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import re
import threading

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import manifest
from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.errors import BackendError, IntegrityError, NonFiniteError, SizeError, UsageError
from eri_runtime.executors import choice, nvidia_driver
from eri_runtime.executors.base import Settings
from eri_runtime.executors.step_graph import Row
from eri_runtime.executors.tensorrt import cuda
from eri_runtime.executors.tensorrt.backend import TENSORRT
from eri_runtime.executors.tensorrt.step_graph import KEPT
from eri_runtime.install_hint import install_hint
from eri_runtime.sampling.table import COLUMNS, MAX_V
from tests.support import stand_in_trt as stand_in
from tests.support.changed_files import changed, rename_over, rewrite
from tests.support.trt_steps import assert_same, captures, launches, opened, weights_of

WORDS = {"height": 32, "width": 48, "num_inference_steps": 5, "output_type": "latent", "seed": 5}
PROMPT = "a red heart"
CFG = {"negative_prompt": "blurry", "guidance_scale": 4.0}


@pytest.fixture
def pipe(device, planned):
    with eri.load(planned, "tensorrt", loop="step") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def oracle(sd35_bundle):
    """ONNX Runtime's step loop, on one thread as the stand-in's."""
    with eri.load(sd35_bundle, "cpu", loop="step", threads=1) as pipe:
        yield pipe


def steps(pipe, start=None, prompt=PROMPT, **words):
    return list(pipe.denoise(pipe.request(prompt, **WORDS | words), start))


def states(pipe, start=None, **words):
    """All that steps hold, read after the last one was taken."""
    return [(s.x, s.denoised, *s.remembered) for s in steps(pipe, start, **words)]


# the same trajectories


@pytest.mark.parametrize(
    "words",
    [
        {"sampler": "flow_euler", "guidance_scale": 1.0},
        {"sampler": "euler_a", **CFG},
        {"sampler": "dpmpp_2m", **CFG},
        {"sampler": "dpmpp_sde", **CFG},
        {"sampler": "dpmpp_3m_sde", **CFG},
        {"sampler": "lms", **CFG},
        {"sampler": "unipc", "num_images_per_prompt": 2, **CFG},
        {"sampler": "euler_a", "guidance_interval": (0.3, 0.9), **CFG},
        {"num_inference_steps": 1, **CFG},
    ],
    ids=lambda words: " ".join(map(str, words.values()))[:40],
)
def test_trajectories_are_onnx_runtimes_to_the_bit(words, pipe, oracle, device):
    """The first step of each kind runs, the second is captured, and all later ones are replayed."""
    expected = states(oracle, **words)
    assert_same(states(pipe, **words), expected)
    kinds = len(pipe._live.stepper().stepper.steps)
    assert kinds == (2 if "guidance_interval" in words else 1)
    replayed = len(expected) - kinds
    assert launches(device) == replayed
    for _ in range(2):
        assert_same(states(pipe, **words), expected)
        replayed += len(expected)
        assert launches(device) == replayed
    assert captures(device) == kinds
    other = words | {"seed": 6}
    assert_same(states(pipe, **other), states(oracle, **other))
    assert launches(device) == replayed + len(expected)
    assert captures(device) == kinds


def test_pictures(device, planned, sd35_bundle):
    words = WORDS | {"output_type": "np"}
    with eri.load(planned, "tensorrt") as mine, eri.load(sd35_bundle, "cpu", threads=1) as theirs:
        for size in ({}, {"width": 64}, {}):
            a, b = (pipe(PROMPT, **words | size).images for pipe in (mine, theirs))
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_bare_denoiser(device, planned, sd35_bundle):
    mine = eri.load(planned, "tensorrt", loop="numpy")
    with mine, eri.load(sd35_bundle, "cpu", loop="numpy", threads=1) as theirs:
        assert_same(states(mine, **CFG), states(theirs, **CFG))


def test_more_conditions_than_a_profile_holds_are_numpys(device, planned, sd35_bundle, caplog):
    words = {"prompt": {"a cat": 0.7, "a dog": 0.6}, **CFG}
    with (
        eri.load(planned, "tensorrt") as pipe,
        eri.load(sd35_bundle, "cpu", loop="numpy", threads=1) as numpy,
        caplog.at_level(logging.DEBUG, "eri_runtime"),
    ):
        assert_same(states(pipe, **words), states(numpy, **words))
    assert "3 conditions of 1 images, which no profile of the plan holds" in caplog.text


def test_two_sizes_take_turns(pipe, oracle, device):
    """One in the profile of the best size, the other not; each keeps its graph."""
    default = pipe.bundle.defaults
    best = {"height": default.height, "width": default.width, **CFG}
    for _ in range(3):
        for words in (best, CFG):
            assert_same(states(pipe, **words), states(oracle, **words))
    assert launches(device) == 2 * (3 * WORDS["num_inference_steps"] - 1)
    assert captures(device) == 2


def test_sizes_no_profile_holds_are_named(device, sd35_bundle, tmp_path):
    only_best = stand_in.with_plans(sd35_bundle, tmp_path / "best", kinds=("best",))
    with eri.load(only_best, "tensorrt", loop="step") as pipe:
        size = r"plan of denoiser/step.onnx: got .*'width': 12.*, expected .*width 16 to 16"
        with pytest.raises(SizeError, match=size):
            steps(pipe, **CFG)
        obstacle = "2 conditions of 2 images, which no profile of the plan holds"
        with pytest.raises(UsageError, match=obstacle):
            steps(pipe, num_images_per_prompt=2, **CFG)


# what is kept of a loop


def test_kept_steps_do_not_change(pipe, device):
    words = {"sampler": "dpmpp_sde", **CFG}
    kept = [steps(pipe, **words) for _ in range(3)]
    read = states(pipe, **words)
    for each in kept:
        assert_same([(s.x, s.denoised, *s.remembered) for s in each], read)


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "lms"])
def test_a_loop_goes_on_from_any_step(sampler, pipe, oracle):
    words = {"sampler": sampler, **CFG}
    whole, theirs = steps(pipe, **words), steps(oracle, **words)
    assert steps(pipe, whole[-1], **words) == []
    for k in (0, 2, len(theirs) - 2):
        expected = [(s.x, s.denoised, *s.remembered) for s in theirs[k + 1 :]]
        for start in (whole[k], theirs[k]):
            assert_same(states(pipe, start, **words), expected)


def test_loops_side_by_side_and_given_up(pipe, oracle):
    alone = [states(oracle, seed=seed)[-1] for seed in (1, 2)]
    for _ in range(3):
        both = [pipe.denoise(pipe.request(PROMPT, **WORDS | {"seed": s})) for s in (1, 2)]
        *_, last = zip(*both, strict=True)
        assert_same([(s.x, s.denoised, *s.remembered) for s in last], alone)
        abandoned = pipe.denoise(pipe.request(PROMPT, **WORDS))
        next(abandoned)


def test_threads_share_a_stepper(pipe, oracle):
    """Each takes its own loop, in the same buffers, step by step in any order."""
    words = [{"sampler": "dpmpp_sde", "seed": seed, **CFG} for seed in range(4)]
    expected, found = [states(oracle, **each) for each in words], {}
    requests = [pipe.request(PROMPT, **WORDS | each) for each in words]
    stepper_turns = threading.Barrier(len(words))

    def run(k):
        stepper_turns.wait()
        for _ in range(3):
            found[k] = [(s.x, s.denoised, *s.remembered) for s in pipe.denoise(requests[k])]

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, each in enumerate(expected):
        assert_same(found[k], each)


def test_a_step_allocates_nothing(pipe, device):
    words = {"sampler": "dpmpp_sde", **CFG}
    made = ("cudaMalloc", "cudaMallocHost", "cudaEventCreateWithFlags", "cudaGraphInstantiate")

    def allocations():
        return sum(device.calls.count(name) for name in made)

    loop = pipe.denoise(pipe.request(PROMPT, **WORDS | words))
    step = next(loop)
    step = next(loop)
    before = allocations()
    for step in loop:  # noqa: B007
        assert allocations() == before
    del step
    states(pipe, **words)
    before = allocations()
    states(pipe, **words)
    pipe.encode_prompt(PROMPT)
    assert allocations() == before


def test_a_step_is_a_graph_between_copies(pipe, device):
    """A row up, the state in and out, a magnitude down; nothing of the context changes."""
    states(pipe, **CFG)
    del device.calls[:]
    per_step = []
    for _ in pipe.denoise(pipe.request(PROMPT, **WORDS | CFG | {"seed": 6, "sampler": "lms"})):
        per_step.append(list(device.calls))
        del device.calls[:]
    for calls in per_step[1:]:
        assert calls.count("cudaGraphLaunch") == 1
        assert calls.count("cudaMemcpyAsync") == 1 + 2 + 3 + 1
        for name in ("execute_async_v3", "set_input_shape", "set_tensor_address"):
            assert name not in calls


def test_only_so_many_captured_steps_are_kept(pipe, device):
    for width in (32, 48, 64, 80, 96):
        steps(pipe, width=width)
    before = device.left()
    for width in (32, 48, 64, 80, 96):
        steps(pipe, width=width)
    assert len(device.left()) == len(before)
    assert len(pipe._live.stepper().stepper.steps) == KEPT


# errors


def test_what_is_not_finite_names_the_step(pipe):
    def noise(draw, shape):
        return np.full((1, *shape), np.inf if draw == 2 else 0.1, np.float32)

    def calm(draw, shape):
        return np.full((1, *shape), 0.1, np.float32)

    fine = states(pipe, sampler="euler_a", noise=calm)
    for _ in range(3):
        with pytest.raises(NonFiniteError, match="latents after step 2 of 5: got NaN or Inf"):
            steps(pipe, sampler="euler_a", noise=noise)
        assert_same(states(pipe, sampler="euler_a", noise=calm), fine)


def run_all(bundle):
    """A loop taken row by row, captured and replayed, and a component, on random numbers."""
    backend, found = TENSORRT.of(bundle), []
    spec, decoder = (bundle.components[name] for name in ("denoiser", "vae_decoder"))
    rng = np.random.default_rng(0)
    x, mix = rng.random((1, 16, 4, 4), np.float32), np.ones((1, 1), np.float32)
    sizes = {"batch": 1, "tokens": 2}
    conditions = {
        each.name: rng.random([sizes.get(d, d) for d in each.shape], np.float32)
        for each in spec.inputs[2:]
    }
    table = rng.random((2, sum(COLUMNS.values())), np.float32)
    table[1, -MAX_V:] = 0  # a row without noise gives it no weight
    graph = bundle.path(spec.step)
    with backend.stepper(graph, spec, Settings()) as stepper:
        for _ in range(3):
            loop = stepper.loop(x.shape, 2)
            loop.bind("all", mix, conditions)
            rows = [Row("all", table[0], (x,)), Row("all", table[1], ())]
            for state in loop.run(rows, loop.begin(x, ())):
                assert state.finite
                found.append(state.x)
    with backend.executor(bundle.path(decoder.graph), decoder, Settings()) as executor:
        (image,) = executor.run({decoder.inputs[0].name: x}).values()
    return [*found, image]


def test_any_call_may_fail(device, planned):
    """Each of them is a typed error, or a loop that is not captured; nothing is left."""
    bundle = manifest.read(planned)
    expected = run_all(bundle)
    total, refused = len(device.calls), []
    for number in range(1, total + 1):
        del device.calls[:]
        device.failing = number
        try:
            found = run_all(bundle)
        except BackendError as error:
            refused.append(str(error))
        else:
            assert_same([found], [expected])
        assert device.left() == [], number
    assert len(refused) > total / 2
    assert not any("\n" in each for each in refused)


@pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_what_cannot_be_captured_is_run_directly(name, pipe, oracle, device, caplog):
    device.failing_call = name
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert_same(states(pipe, **CFG), states(oracle, **CFG))
    assert len(caplog.messages) == 1
    assert f"not captured as a CUDA graph: CUDA: {name}: got cudaErrorUnknown" in caplog.text


def test_a_plan_that_cannot_be_captured_is_not_tried(device, sd35_bundle, tmp_path, oracle, caplog):
    """As one built without REQUIRE_USER_ALLOCATION; the library is asked, and the log says so."""
    root = stand_in.with_plans(sd35_bundle, tmp_path / "plain", captures=False)
    with eri.load(root, "tensorrt", loop="step") as pipe, caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(states(pipe, **CFG), states(oracle, **CFG))
    (line,) = caplog.messages
    assert "denoiser-step.onnx.plan: got not capturable, says tensorrt-rtx 1.7.1.116" in line
    assert "build the plan again with `eri build`, as it may lack REQUIRE_USER_ALLOCATION" in line
    assert "is_stream_capturable" in device.calls
    assert "cudaStreamBeginCapture" not in device.calls


def test_no_memory_says_what_to_do(device, planned):
    device.failing_call = "cudaMalloc"
    with (
        eri.load(planned, "tensorrt") as pipe,
        pytest.raises(BackendError, match=r"cudaErrorMemoryAllocation \(2\).*smaller size"),
    ):
        pipe(PROMPT, **WORDS)


def test_a_plan_the_engine_refuses(device, planned):
    device.failing_call = "deserialize_cuda_engine"
    with (
        eri.load(planned, "tensorrt") as pipe,
        pytest.raises(BackendError, match="got the plan is of another version, expected an engine"),
    ):
        pipe(PROMPT, **WORDS)


def test_what_is_closed_says_so(device, planned):
    pipe = eri.load(planned, "tensorrt", loop="step")
    step, *_ = steps(pipe)
    loop = pipe.denoise(pipe.request(PROMPT, **WORDS))
    next(loop)
    pipe.close()
    pipe.close()
    for late in (lambda: step.x, lambda: next(loop)):
        with pytest.raises(BackendError, match="got a closed engine"):
            late()
    assert device.left() == []


def test_the_real_cuda_refuses_in_one_line():
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    if nvidia_driver.compute_capability() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=r"CUDA: cudaSetDevice: got cudaError\w+ \(\d+\), exp"):
        cuda.Device()


# refit, weight streaming, stripped plans


def test_refit_there_and_back(device, sd35_bundle, tmp_path, oracle):
    root = stand_in.with_plans(sd35_bundle, tmp_path / "refit", ("refit",))
    with eri.load(root, "tensorrt", loop="step") as pipe:
        before = states(pipe, **CFG)
        for _ in range(2):
            states(pipe, **CFG)
        a = read_tensors(pipe.bundle.path(pipe.bundle.components["denoiser"].weights))
        pipe.update_weights({name: each * 1.01 for name, each in a.items()})
        changed = [states(pipe, **CFG) for _ in range(3)]
        assert np.abs(changed[0][-1][0] - before[-1][0]).max() > 1e-4
        for each in changed[1:]:
            assert_same(each, changed[0])
        pipe.reset_weights()
        assert_same(states(pipe, **CFG), before)


def test_refit_refuses_what_does_not_fit(device, planned, sd35_bundle, tmp_path):
    fixed, _ = opened(planned)
    name, tensors = weights_of(planned)
    new = {name: tensors[name] * 2}
    with fixed, pytest.raises(BackendError, match=r"a plan of fixed weights.*eri build --refit"):
        fixed.replace(new)
    root = stand_in.with_plans(sd35_bundle, tmp_path / "refit", ("refit",))
    stepper, _ = opened(root)
    with stepper:
        with pytest.raises(UsageError, match="nothing: got no such weight"):
            stepper.replace({"nothing": np.zeros(1, np.float32)})
        with pytest.raises(UsageError, match=f"{re.escape(name)}: got 4 bytes, expected"):
            stepper.replace({name: np.zeros(1, np.float32)})
        device.failing_call = "refit_cuda_engine_async"
        with pytest.raises(BackendError, match=r"old weights put back; the engine is closed"):
            stepper.replace(new)
        assert stepper.engine.closed


def test_only_what_changes_is_moved_with_what_is_fused_with_it(device, sd35_bundle, tmp_path):
    name, tensors = weights_of(sd35_bundle)
    beside = list(tensors)[7]
    root = stand_in.with_plans(sd35_bundle, tmp_path / "refit", ("refit",), fused=[beside])
    moves = []
    with (
        eri.load(root, "tensorrt", loop="step") as pipe,
        pytest.MonkeyPatch.context() as patch,
    ):
        put = stand_in.Refitter.set_named_weights
        patch.setattr(
            stand_in.Refitter,
            "set_named_weights",
            lambda self, name, weights: moves.append(name) or put(self, name, weights),
        )
        base = states(pipe, **CFG)
        assert moves == []
        pipe.update_weights({name: tensors[name] * 1.5})
        assert moves == [name, beside]
        pipe.update_weights({name: tensors[name] * 1.5})
        assert moves == [name, beside]
        changed = states(pipe, **CFG)
        pipe.close()
        assert_same(states(pipe, **CFG), changed)
        pipe.reset_weights()
        assert_same(states(pipe, **CFG), base)


@pytest.mark.parametrize("both", [False, True])
def test_a_refit_that_fails_leaves_the_old_weights_serving(device, sd35_bundle, tmp_path, both):
    """Put back into the engine, or where that fails too, into one that is opened anew."""
    root = stand_in.with_plans(sd35_bundle, tmp_path / "refit", ("refit",))
    name, tensors = weights_of(root)
    with eri.load(root, "tensorrt", loop="step") as pipe:
        pipe.update_weights({name: tensors[name] * 1.5})
        before = states(pipe, **CFG)
        refit, calls = stand_in.Refitter.refit_cuda_engine_async, []

        def fail(self, stream):
            """All of it goes through, and it says no: the first time, or every time."""
            calls.append(refit(self, stream))
            return not both and len(calls) > 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stand_in.Refitter, "refit_cuda_engine_async", fail)
            with pytest.raises(BackendError, match="engine is closed" if both else "new weights"):
                pipe.update_weights({name: tensors[name] * 9})
        assert len(calls) == 2
        assert_same(states(pipe, **CFG), before)


def test_a_plan_of_fixed_weights_is_refused_before_it_serves(device, planned):
    name, tensors = weights_of(planned)
    with eri.load(planned, "tensorrt", loop="step") as pipe:
        with pytest.raises(BackendError, match="eri build --refit"):
            pipe.update_weights({name: tensors[name] * 2})
        assert len(states(pipe, **CFG)) == WORDS["num_inference_steps"]


def test_refit_names_what_is_missing(device, sd35_bundle, tmp_path):
    fused = ["fused.weight"]
    root = stand_in.with_plans(sd35_bundle, tmp_path / "refit", ("refit",), fused=fused)
    name, tensors = weights_of(root)
    stepper, _ = opened(root)
    with stepper, pytest.raises(BackendError, match=r"1 weights missing: fused.weight"):
        stepper.replace({name: tensors[name] * 2})


def test_a_stripped_plan_takes_the_bundles_weights(device, sd35_bundle, tmp_path, oracle):
    root = stand_in.with_plans(sd35_bundle, tmp_path / "stripped", ("stripped",))
    with eri.load(root, "tensorrt", loop="step") as pipe:
        assert_same(states(pipe, **CFG), states(oracle, **CFG))


def test_weight_streaming(device, planned, sd35_bundle, tmp_path):
    root = stand_in.with_plans(sd35_bundle, tmp_path / "streaming", ("streaming",))
    for options, budget in (
        ({}, None),
        ({"low_memory": True}, 500),
        ({"weight_budget": 0}, 0),
        ({"weight_budget": "auto"}, 500),
    ):
        stepper, _ = opened(root, **options)
        with stepper:
            assert stepper.engine._engine.weight_streaming_budget_v2 == budget
    with pytest.raises(UsageError, match="weight budget: got 1001, expected 0 to 1000 bytes"):
        opened(root, weight_budget=1001)
    with pytest.raises(BackendError, match="eri build --streaming"):
        opened(planned, weight_budget=10)
    stepper, _ = opened(planned, low_memory=True)  # which asks for what can be had
    stepper.close()


# what it says of a machine


def test_it_is_refused_with_what_to_run(device, sd35_bundle, planned):
    bare, full = eri.read_bundle(sd35_bundle), eri.read_bundle(planned)
    assert choice.refusals(full, "tensorrt") == []
    assert choice.choose(full).backend == TENSORRT.of(full)
    command = f"run `eri build {sd35_bundle} --engine tensorrt-rtx --compute-capability 8.9`"
    assert choice.refusals(bare, "tensorrt") == [f"no plan: {command}"]
    assert "never run on a GPU yet" in "\n".join(choice.describe_backends(full))
    stepless = {k: p for k, p in full.plans.items() if p.graph != "vae_decoder/model.onnx"}
    (line,) = choice.refusals(manifest.dataclasses.replace(full, plans=stepless), "tensorrt")
    assert line.startswith("vae_decoder: no plan: run `eri build ")


def test_without_a_plan_of_the_step_graph_numpy_drives_the_denoiser(device, planned, caplog):
    full = eri.read_bundle(planned)
    plans = {k: p for k, p in full.plans.items() if p.graph != "denoiser/step.onnx"}
    bundle = manifest.dataclasses.replace(full, plans=plans)
    engine = choice.choose(bundle, "tensorrt")
    with (
        caplog.at_level(logging.DEBUG, "eri_runtime"),
        eri.Pipeline(bundle, engine, engine.stepper) as pipe,
    ):
        assert len(steps(pipe)) == WORDS["num_inference_steps"]
    assert "the step graph is not run: no plan: run `eri build" in caplog.text


def test_what_is_missing_is_named(device, planned, monkeypatch):
    bundle, find = eri.read_bundle(planned), importlib.util.find_spec

    def without(*names):
        hide = lambda name, *rest: None if name in names else find(name, *rest)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", hide)
        return choice.refusals(bundle, "tensorrt")

    install = f"is not installed: {install_hint('rtx')}"
    assert without("tensorrt", "tensorrt_rtx") == [f"TensorRT {install}"]
    assert without("tensorrt", "cuda") == [f"cuda-bindings {install}"]
    monkeypatch.setattr(nvidia_driver, "compute_capability", lambda: None)
    assert without("tensorrt") == ["no NVIDIA GPU"]
    spec = bundle.components["denoiser"]
    with pytest.raises(BackendError, match="got no NVIDIA GPU, expected a machine for TensorRT"):
        TENSORRT.of(bundle).executor(bundle.path(spec.graph), spec, Settings())


def test_a_plan_that_was_changed_is_not_opened(device, planned, tmp_path, sd35_bundle):
    root = stand_in.with_plans(sd35_bundle, tmp_path / "changed")
    (file,) = root.glob("plans/denoiser-step*.plan")
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"flags": ["refix"]})[
            : file.stat().st_size
        ].ljust(file.stat().st_size)
    )
    bundle = manifest.read(root)
    spec = bundle.components["denoiser"]
    with pytest.raises(IntegrityError, match="build it again"):
        TENSORRT.of(bundle).stepper(bundle.path(spec.step), spec, Settings())
    assert "deserialize_cuda_engine" not in device.calls


@pytest.mark.parametrize("change", [rename_over, rewrite])
def test_plans_and_weights_that_change_under_a_pipeline(device, sd35_bundle, tmp_path, change):
    """What the GPU holds goes on; nothing of another bundle is read for it."""
    root = stand_in.with_plans(sd35_bundle, tmp_path / "refit", ("refit",))
    name, tensors = weights_of(root)
    tensors = {name: tensors[name] * 2}
    (plan,) = root.glob("plans/denoiser-step*.plan")
    weights = root / "denoiser" / "weights.safetensors"
    with eri.load(root, "tensorrt", loop="step") as pipe:
        before = states(pipe, **CFG)
        with changed(plan, change):
            assert_same(states(pipe, **CFG), before)
            pipe.close()
            with pytest.raises(IntegrityError, match="build it again"):
                states(pipe, **CFG)
        assert_same(states(pipe, **CFG), before)
        with changed(weights, change), pytest.raises(IntegrityError, match="load the bundle again"):
            pipe.update_weights(tensors)
        assert_same(states(pipe, **CFG), before)
        pipe.update_weights(tensors)


# the stand-in has no name that the libraries have not


def public(kind):
    return [name for name in vars(kind) if not name.startswith("_")]


REAL = {
    stand_in.TensorRuntime: "Runtime",
    stand_in.Engine: "ICudaEngine",
    stand_in.Context: "IExecutionContext",
    stand_in.Refitter: "Refitter",
    stand_in.TensorLocation: "TensorLocation",
    stand_in.ExecutionContextAllocationStrategy: "ExecutionContextAllocationStrategy",
    stand_in.RuntimeConfig: "IRuntimeConfig",
    stand_in.RuntimeCache: "IRuntimeCache",
    stand_in.DynamicShapesKernelSpecializationStrategy: (
        "DynamicShapesKernelSpecializationStrategy"
    ),
}


@pytest.mark.parametrize("kind", REAL, ids=REAL.get)
def test_the_real_library_has_these_names_and_arguments(kind):
    real = getattr(pytest.importorskip("tensorrt_rtx"), REAL[kind])
    names = public(kind)
    assert names
    for name in names:
        assert hasattr(real, name), name
        text = getattr(real, name).__doc__ or ""
        found = re.match(rf"{name}\(self: [^,)]+(.*)\) -> ", text)
        function = vars(kind)[name]
        if found and inspect.isfunction(function):
            wanted = len(re.findall(r", \w+: ", found[1]))
            assert wanted == function.__code__.co_argcount - 1, text


def test_an_engine_of_the_real_library_has_the_attributes():
    real = pytest.importorskip("tensorrt_rtx")
    for kind, names in (
        (real.ICudaEngine, ("num_io_tensors", "refittable", "streamable_weights_size")),
        (real.Runtime, ("engine_host_code_allowed",)),
        (real.Weights, ("dtype", "nbytes", "size")),
        (real.ILogger, ("ERROR", "INTERNAL_ERROR", "log")),
        (real.IRuntimeConfig, ("dynamic_shapes_kernel_specialization_strategy",)),
    ):
        for name in names:
            assert hasattr(kind, name)


def test_the_real_cuda_has_these_calls_and_arguments():
    real = pytest.importorskip("cuda.bindings.runtime")
    for name in public(stand_in.Runtime):
        assert hasattr(real, name), name
        fake = vars(stand_in.Runtime)[name]
        if hasattr(fake, "arguments"):
            (signature,) = re.findall(r"^\w+\((.*)\)", getattr(real, name).__doc__.splitlines()[0])
            assert signature.count(",") + 1 == fake.arguments, signature
    for kind, other in ((stand_in.Kind, real.cudaMemcpyKind), (stand_in.Code, real.cudaError_t)):
        for each in kind:
            assert int(getattr(other, each.name)) == each
    assert hasattr(real.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
