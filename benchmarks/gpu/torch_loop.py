"""PyTorch's denoiser in eri's own loop, with the latents on its device: what others are beside.

It reads the weights of the bundle, so it computes with the very numbers that the engines have.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from eri_export.names import file_names
from eri_export.plan import make_plan
from eri_export.ranges import make_ranges
from eri_export.recipes.base import Recipe
from eri_runtime.executors.base import Arrays, Executor
from eri_runtime.executors.stepper import Array, HeldLatents, Row, StepLoop, Stepper
from eri_runtime.spec import Bundle
from eri_runtime.table import COLUMNS, MAX_W

Network = Callable[..., torch.Tensor]


def exact_products() -> None:
    """Float32 products with all their bits, as in the engines' sessions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def load_network(bundle: Bundle, checkpoint: Path, device: str) -> tuple[Recipe, torch.nn.Module]:
    """The denoiser's recipe, and its network on `device` in the bundle's precision."""
    exact_products()
    spec = bundle.components["denoiser"]
    ranges = make_ranges(size=f"{bundle.defaults.width}x{bundle.defaults.height}", static=True)
    plan = make_plan(checkpoint, precision=spec.precision, ranges=ranges)
    recipe = next(each for each in plan.recipes if each.name == "denoiser")
    with torch.device("meta"):
        network = recipe.build()
    stored = load_file(bundle.path(spec.weights), device=device)
    names = file_names(network, recipe.source)
    state = {name: stored[file].to(recipe.dtype) for name, file in names.items() if file in stored}
    network.load_state_dict(state, assign=True)
    return recipe, recipe.wrap(network, recipe.dtype)


class TorchExecutor(Executor):
    """The denoiser on NumPy arrays."""

    def __init__(self, bundle: Bundle, recipe: Recipe, network: Network, device: str) -> None:
        self.spec = bundle.components["denoiser"]
        self._recipe, self._network, self._device = recipe, network, device

    def run(self, inputs: Arrays) -> dict[str, Any]:
        names = (each.spec.name for each in self._recipe.inputs)
        values = [torch.from_numpy(np.asarray(inputs[each])).to(self._device) for each in names]
        with torch.inference_mode():
            return {"output": self._network(*values).cpu().numpy()}

    def close(self) -> None:
        del self._network


class TorchLatents:
    """A state on the device."""

    def __init__(
        self, x: torch.Tensor, denoised: torch.Tensor, remembered: tuple[torch.Tensor, ...]
    ) -> None:
        self.tensors = x, denoised, remembered

    @cached_property
    def x(self) -> Array:
        return self.tensors[0].cpu().numpy()

    @cached_property
    def denoised(self) -> Array:
        return self.tensors[1].cpu().numpy()

    @cached_property
    def remembered(self) -> tuple[Array, ...]:
        return tuple(each.cpu().numpy() for each in self.tensors[2])

    @property
    def finite(self) -> bool:
        """One number is read back, as in the step graphs: both wait for the device."""
        return bool(torch.isfinite(self.tensors[0].abs().sum()))


class TorchStepper(Stepper):
    """A step of eri's table around a network of PyTorch."""

    def __init__(self, recipe: Recipe, network: Network, device: str) -> None:
        self._recipe, self._network, self._device = recipe, network, device

    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        del shape  # eager tensors are made as they are needed
        return TorchStepLoop(self._recipe, self._network, self._device, width)

    def close(self) -> None:
        del self._network


class TorchStepLoop(StepLoop):
    """One trajectory, as `denoise.denoise` runs it."""

    def __init__(self, recipe: Recipe, network: Network, device: str, width: int) -> None:
        self._names = [each.spec.name for each in recipe.inputs]
        self._network, self._device, self._width = network, device, width
        self._bound: dict[Hashable, tuple[torch.Tensor, dict[str, torch.Tensor]]] = {}

    def bind(self, key: Hashable, mix: Array, conditions: Arrays) -> None:
        on_device = {name: self._tensor(value) for name, value in conditions.items()}
        self._bound[key] = self._tensor(mix), on_device

    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        start = self._tensor(x)
        return TorchLatents(start, start, tuple(map(self._tensor, remembered)))

    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        assert isinstance(state, TorchLatents)  # noqa: S101 its own
        for row in rows:
            state = self._step(*row, state)
            yield state

    @torch.inference_mode()
    def _step(
        self, key: Hashable, columns: Array, noises: Sequence[Array], state: TorchLatents
    ) -> TorchLatents:
        x, _, history = state.tensors
        first = len(columns) - COLUMNS["B"] - COLUMNS["C"]
        single, B, C = np.split(columns, [first, -COLUMNS["C"]])
        t, c_in, c_skip, c_out, p, q, A = map(float, single)
        denoised = c_skip * x + c_out * self._predicted(key, c_in * x, t)
        remembered = (p * x + q * denoised, *history)[: min(self._width, MAX_W)]
        x = A * x
        drawn = [self._tensor(each) for each in noises]
        for column, values in ((B, remembered), (C, drawn)):
            for coefficient, value in zip(map(float, column), values, strict=False):
                x = x + coefficient * value
        return TorchLatents(x, denoised, remembered)

    def _predicted(self, key: Hashable, x: torch.Tensor, t: float) -> torch.Tensor:
        mix, conditions = self._bound[key]
        count, ones = len(mix), (1,) * (x.ndim - 1)
        sample = x.repeat(count, *ones)
        clock = torch.full((len(sample),), t, device=x.device)
        inputs = {"sample": sample, "timestep": clock, **conditions}
        predicted = self._network(*(inputs[name] for name in self._names))
        return (mix.view(*mix.shape, *ones) * predicted.view(count, *x.shape)).sum(0)

    def _tensor(self, values: Array) -> torch.Tensor:
        return torch.from_numpy(np.array(values)).to(self._device)
