"""What diffusers' schedulers take from SciPy and torchsde, where these are not installed."""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack, contextmanager
from math import sqrt
from types import ModuleType, SimpleNamespace
from unittest import mock

import diffusers
import numpy as np
import torch

from eri_runtime.sampling.sigmas import beta_quantile


def quad(function, start, end, **_):
    """The integral, exact for the polynomials that LMS integrates."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half = (end - start) / 2
    at = start + half * (nodes + 1)
    return half * sum(w * function(t) for w, t in zip(weights, at, strict=True)), 0.0


def beta_ppf(p, a, b):
    assert a == b
    return beta_quantile(float(p), a)


SCIPY = SimpleNamespace(
    stats=SimpleNamespace(beta=SimpleNamespace(ppf=beta_ppf)), integrate=SimpleNamespace(quad=quad)
)


class BrownianPath:
    """One path: a piece's noise, or of two adjacent pieces the noise of both."""

    generator: torch.Generator

    def __init__(self, x, *_):
        self.shape, self.early = x.shape, None

    def __call__(self, start, end):
        start, end = float(start), float(end)
        drawn = torch.randn(self.shape, generator=self.generator)
        if self.early is None:
            self.early = (start, end, drawn)
            return drawn
        begin, middle, first = self.early
        assert begin == start
        self.early = None
        late = sqrt(middle - end) * drawn
        return (sqrt(start - middle) * first + late) / sqrt(start - end)


def scheduler_class(name):
    """A scheduler's class, also where diffusers hides it."""
    hidden = {
        "LMSDiscreteScheduler": "scheduling_lms_discrete",
        "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde",
    }
    if name not in hidden:
        return getattr(diffusers, name)
    modules = {}
    for module in ("scipy", "scipy.stats", "scipy.integrate", "torchsde"):
        modules[module] = sys.modules.get(module) or ModuleType(module)
    modules["scipy"].integrate, modules["scipy"].stats = SCIPY.integrate, SCIPY.stats
    with mock.patch.dict(sys.modules, modules):
        module = importlib.import_module(f"diffusers.schedulers.{hidden[name]}")
    sys.modules[module.__name__] = module
    return getattr(module, name)


@contextmanager
def in_place(cls, generator):
    """With the stand-ins in the module of a scheduler's class."""
    module = sys.modules[cls.__module__]
    wanted = {"scipy": SCIPY, "integrate": SCIPY.integrate, "is_scipy_available": lambda: True}
    path = type("Path", (BrownianPath,), {"generator": generator})
    wanted["BrownianTreeNoiseSampler"] = path
    names = {name: value for name, value in wanted.items() if hasattr(module, name)}
    names |= {"scipy": SCIPY, "integrate": SCIPY.integrate}
    with ExitStack() as stack:
        for name, value in names.items():
            stack.enter_context(mock.patch.object(module, name, value, create=True))
        yield
