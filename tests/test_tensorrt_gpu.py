"""The TensorRT executor on a GPU: `pytest -m gpu tests/test_tensorrt_gpu.py`.

Not yet run anywhere: it builds plans, runs them and compares. It needs an NVIDIA GPU,
cuda-bindings, and TensorRT or TensorRT for RTX.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import eri_runtime as eri
from eri_export.trt import BuildOptions, add_plans
from eri_runtime.executors import gpu, trt_library
from eri_runtime.tensors import read_tensors

pytestmark = pytest.mark.gpu

WORDS = {"height": 32, "width": 48, "num_inference_steps": 6, "output_type": "latent", "seed": 5}
CFG = {"negative_prompt": "blurry", "guidance_scale": 4.0}
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def planned(sd35_bundle, tmp_path_factory):
    """A bundle with refittable plans for this machine."""
    engines = trt_library.installed()
    if gpu.compute_capability() is None or not engines:
        pytest.skip("no NVIDIA GPU, or no TensorRT")
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
    first, captured, replayed = (trajectory(pipe, sampler=sampler) for _ in range(3))
    for x, reference in zip(first, expected, strict=True):
        assert np.abs(x - reference).max() <= TOLERANCE * np.abs(reference).max()
    np.testing.assert_array_equal(captured, first)
    np.testing.assert_array_equal(replayed, first)
    (workspace,) = pipe._live.stepper().idle
    assert any(whole is not None for whole in workspace._wholes.values())


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
