"""The TensorRT executor on a GPU: `pytest -m gpu tests/runtime/executors/test_tensorrt_gpu.py`.

Not yet run anywhere: it builds plans, runs them and compares. It needs an NVIDIA GPU,
cuda-bindings, and TensorRT or TensorRT for RTX.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import eri_runtime as eri
from eri_export.tensorrt import BuildOptions, add_plans
from eri_export.tensorrt.library import load_engine
from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.executors import nvidia_driver
from eri_runtime.executors.tensorrt import library

pytestmark = pytest.mark.gpu

WORDS = {"height": 32, "width": 48, "num_inference_steps": 6, "output_type": "latent", "seed": 5}
CFG = {"negative_prompt": "blurry", "guidance_scale": 4.0}
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def planned(sd35_bundle, tmp_path_factory):
    """A bundle with refittable plans for this machine."""
    engines, capability = library.installed(), nvidia_driver.compute_capability()
    if capability is None or not engines:
        pytest.skip("no NVIDIA GPU, or no TensorRT")
    if capability not in (load_engine(engines[0]).capabilities or (capability,)):
        pytest.skip(f"{engines[0]} builds no plans for compute capability {capability}")
    root = Path(shutil.copytree(sd35_bundle, tmp_path_factory.mktemp("plans") / "sd35"))
    add_plans(root, BuildOptions(engine=engines[0], flags=("refit",)))
    return root


@pytest.fixture
def pipe(planned):
    with eri.load(planned, "tensorrt", loop="step") as pipe:
        yield pipe


def trajectory(pipe, **words):
    request = pipe.request("a red heart", **WORDS | CFG | words)
    return [step.x for step in pipe.denoise(request)]


@pytest.mark.parametrize("sampler", ["flow_euler", "euler_a", "dpmpp_2m", "dpmpp_sde", "lms"])
def test_trajectories_are_numpys_and_a_graph_gives_the_same_bits(sampler, pipe, planned):
    with eri.load(planned, "cpu", loop="numpy") as oracle:
        expected = trajectory(oracle, sampler=sampler)
    first, second, third = (trajectory(pipe, sampler=sampler) for _ in range(3))
    for x, reference in zip(first, expected, strict=True):
        assert np.abs(x - reference).max() <= TOLERANCE * np.abs(reference).max()
    np.testing.assert_array_equal(second, first)  # the first step of `first` was not captured
    np.testing.assert_array_equal(third, first)
    (step,) = pipe._live.stepper().stepper.steps.values()
    assert step.captured


def test_loops_take_turns_and_kept_steps_stay(pipe):
    alone = [trajectory(pipe, seed=seed) for seed in (1, 2)]
    requests = [pipe.request("a red heart", **WORDS | CFG | {"seed": s}) for s in (1, 2)]
    kept = list(zip(*(pipe.denoise(request) for request in requests), strict=True))
    trajectory(pipe, seed=3)
    for k, pair in enumerate(kept):
        for step, expected in zip(pair, alone, strict=True):
            np.testing.assert_array_equal(step.x, expected[k])


def test_a_second_process_finds_the_kernels(planned, tmp_path, monkeypatch):
    """TensorRT for RTX alone compiles kernels here; the second process adds none to those kept."""
    if library.installed()[0] != "tensorrt-rtx":
        pytest.skip("TensorRT compiles its kernels when it builds a plan")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = []
    for _ in range(2):
        with eri.load(planned, "tensorrt", loop="step") as pipe:
            trajectory(pipe)
        files = sorted((tmp_path / "eri" / "kernels").iterdir())
        written.append([(file.name, file.stat().st_mtime_ns) for file in files])
    assert written[0]
    assert written[1] == written[0]


def test_a_picture_is_the_cpus(planned):
    words = WORDS | CFG | {"output_type": "np"}
    with eri.load(planned, "tensorrt") as mine, eri.load(planned, "cpu") as theirs:
        a, b = (pipe("a red heart", **words).images for pipe in (mine, theirs))
    np.testing.assert_allclose(a, b, atol=0.01)


def test_sizes_take_turns(pipe):
    small, wide = trajectory(pipe), trajectory(pipe, width=64)
    for _ in range(2):
        np.testing.assert_array_equal(trajectory(pipe), small)
        np.testing.assert_array_equal(trajectory(pipe, width=64), wide)


def test_refit_there_and_back_is_the_same_to_the_bit(pipe):
    before = trajectory(pipe)
    file = pipe.bundle.path(pipe.bundle.components["denoiser"].weights)
    pipe.update_weights({name: each * 1.01 for name, each in read_tensors(file).items()})
    assert np.abs(np.subtract(trajectory(pipe), before)).max() > 1e-4
    pipe.reset_weights()
    np.testing.assert_array_equal(trajectory(pipe), before)
