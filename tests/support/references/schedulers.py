"""diffusers' schedulers: made with an exact alpha-bar, and run with injected noise."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

SHAPE = (2, 4, 5, 3)


@dataclass(frozen=True, kw_only=True)
class Diffusers:
    """A scheduler and its config; `step` are further arguments of its step.

    `over_alpha`: its x is x/alpha. `rounds` says why its own float32 may be off by more than the
    tolerance; ours must be within it of the float64 oracle there. `sigmas` of the steps goes to
    `set_timesteps`, with `mu`. `exact`: alpha-bar accumulated in float64. `own_start`: x starts at
    its `init_noise_sigma`.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    over_alpha: bool = False
    sigmas: Callable[[int], list[float]] | None = None
    mu: float | None = None
    exact: bool = True
    own_start: bool = False
    rounds: str = ""

    def make(self, steps: int) -> Any:
        """The scheduler with its levels set."""
        scheduler = copy(constructed(self.name, tuple(self.config.items())))
        if self.exact and hasattr(scheduler, "betas"):
            scheduler.alphas_cumprod = exact_alpha_bar(scheduler)
            if not self.config.get("set_alpha_to_one", True):
                scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
        with quiet():
            if self.sigmas is None:
                scheduler.set_timesteps(steps)
            else:
                scheduler.set_timesteps(sigmas=self.sigmas(steps), mu=self.mu)
        return scheduler


@cache
def constructed(name, config):
    """A scheduler; of the 1000 steps that KDPM2's constructor sets, at 50 ms, one."""
    cls = getattr(diffusers, name)
    original = cls.set_timesteps
    with quiet(), mock.patch.object(cls, "set_timesteps", lambda self, *_: original(self, 1)):
        return cls(**dict(config))


def exact_alpha_bar(scheduler):
    """alpha-bar from betas made and multiplied in float64; diffusers' are float32."""
    config = scheduler.config
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    else:
        at = torch.arange(count + 1, dtype=torch.float64) / count
        bar = torch.cos((at + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = torch.clamp(1 - bar[1:] / bar[:-1], max=0.999)
    if not config.get("rescale_betas_zero_snr"):
        return torch.cumprod(1 - betas, 0)
    alpha_bar = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    alpha_bar[-1] = 2**-24
    return alpha_bar


def draws(dtype, draw, shape=SHAPE[1:]):
    """The same float32 numbers in either dtype."""
    values = np.random.default_rng(draw).standard_normal((SHAPE[0], *shape), dtype=np.float32)
    return values.astype(dtype)


def fresh(dtype):
    """The draws one after another, as the loop takes them."""
    count = iter(range(1, 10_000))
    return lambda *_, **__: draws(dtype, next(count))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that diffusers' KDPM2 and its older DPM-Solver give."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        warnings.filterwarnings("ignore", "`algorithm_type", FutureWarning)
        yield


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """What torch makes of a whole number divided, among others a timestep."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == np.float64 else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run_diffusers(reference, scheduler, table, dtype, net):
    """Every x of diffusers' loop, in our scale."""
    alpha = table.points.alpha if reference.over_alpha else np.ones(len(table) + 1)
    start = scheduler.init_noise_sigma if reference.own_start else table.scale / alpha[0]
    x = torch.from_numpy(draws(dtype, 0)) * start
    module = sys.modules[type(scheduler).__module__]
    noise, states = fresh(dtype), []
    with ExitStack() as stack:
        if hasattr(module, "randn_tensor"):
            injected = mock.Mock(side_effect=lambda *_, **__: torch.from_numpy(noise()))
            stack.enter_context(mock.patch.object(module, "randn_tensor", injected))
        if dtype == np.float64:  # DPM-Solver's steps cast x to float32
            wide = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
            stack.enter_context(mock.patch.object(module, "torch", wide))
        stack.enter_context(quiet())
        stack.enter_context(default_dtype(dtype))
        for t in scheduler.timesteps:
            scaled = x
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(x, t)
            x = scheduler.step(net(scaled, float(t)), t, x, **reference.step, return_dict=False)[0]
            states.append(x.numpy())
    return [a * state for a, state in zip(alpha[1:], states, strict=True)]
