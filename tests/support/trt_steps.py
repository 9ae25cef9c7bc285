"""What tests of the TensorRT executor share: a stepper, its inputs, and what is counted."""

from __future__ import annotations

import numpy as np

from eri_runtime.bundle import manifest
from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.executors.base import Settings
from eri_runtime.executors.step_graph import Row
from eri_runtime.executors.tensorrt.backend import TENSORRT
from eri_runtime.sampling.table import COLUMNS, MAX_V


def assert_same(mine, expected):
    assert len(mine) == len(expected) > 0
    for one, other in zip(mine, expected, strict=True):
        assert len(one) == len(other)
        for array, reference in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, reference)


def launches(device):
    return device.calls.count("cudaGraphLaunch")


def captures(device):
    return device.calls.count("cudaGraphInstantiate")


def opened(root, **options):
    """The step graph and its component, on the stand-in."""
    bundle = manifest.read(root)
    spec = bundle.components["denoiser"]
    settings = Settings(low_memory=options.pop("low_memory", False))
    backend = type(TENSORRT)(**options).of(bundle)
    return backend.stepper(bundle.path(spec.step), spec, settings), bundle.path(spec.weights)


def weights_of(root):
    """A name of the denoiser's weights, and all of them."""
    bundle = manifest.read(root)
    tensors = read_tensors(bundle.path(bundle.components["denoiser"].weights))
    return next(iter(tensors)), tensors


class Inputs:
    """Conditions, latents and rows of a sampler table, all random."""

    def __init__(self, root, seed, size=4):
        bundle, rng = manifest.read(root), np.random.default_rng(seed)
        spec = bundle.components["denoiser"]
        sizes = {"batch": 1, "tokens": 2}
        self.mix = np.ones((1, 1), np.float32)
        self.x = rng.random((1, 16, size, size), np.float32)
        self.conditions = {
            each.name: rng.random([sizes.get(d, d) for d in each.shape], np.float32)
            for each in spec.inputs[2:]
        }
        self.table = rng.random((3, sum(COLUMNS.values())), np.float32)
        self.table[1:, -MAX_V:] = 0  # rows without noise give it no weight

    def loop(self, stepper):
        loop = stepper.loop(self.x.shape, 2)
        loop.bind("all", self.mix, self.conditions)
        return loop

    def rows(self):
        noises = ((self.x,), (), ())
        return [Row("all", row, noise) for row, noise in zip(self.table, noises, strict=True)]

    def run(self, stepper):
        """The states of a loop of its own."""
        loop = self.loop(stepper)
        return [read(state) for state in loop.run(self.rows(), loop.begin(self.x, ()))]


def read(state):
    return state.x, state.denoised, *state.remembered
