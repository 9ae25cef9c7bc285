"""A mock denoiser, and a table's whole trajectory under it."""

from __future__ import annotations

import numpy as np

from eri_runtime import denoise
from eri_runtime.loop.numpy_loop import identity


def network(x, t):
    """Non-linear in x and t, and the same in NumPy and torch."""
    return 0.7 * x / (1 + x**2) + 0.1 * x * (t / 1000) - 0.05


def clip(x):
    return np.clip(x, -1.0, 1.0)


def trajectory(table, x, noise, net=network, hook=identity):
    """Every x of the loop."""
    steps = denoise(lambda x, at: net(x, at.t), table, x, noise, hook=hook)
    return [step.x for step in steps]
