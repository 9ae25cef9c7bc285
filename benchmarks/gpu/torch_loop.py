"""PyTorch's networks in eri's loop, with the latents on the device: the baseline for engines.

They read the bundle's weights, so they compute with the same numbers as the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.gpu.settings import Model, Settings
from eri_export.graphs.recipes.base import TORCH_PRECISION, Wrapper
from eri_export.graphs.recipes.flux import Flux
from eri_export.graphs.recipes.mmdit import MMDiT
from eri_export.graphs.recipes.unet import UNet
from eri_export.graphs.recipes.vae import Decoder
from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors import (
    Array,
    Arrays,
    Executor,
    HeldLatents,
    Layout,
    Row,
    StepLoop,
    Stepper,
)
from eri_runtime.sampling import COLUMNS, MAX_W

Run = Callable[..., torch.Tensor]
WRAPPERS: Mapping[str, type[Wrapper]] = {
    "UNet2DConditionModel": UNet,
    "SD3Transformer2DModel": MMDiT,
    "FluxTransformer2DModel": Flux,
    "AutoencoderKL": Decoder,
}


def load_network(settings: Settings, model: Model, name: str, mode: str) -> Run:
    """Returns a component's network on the device, in the bundle's precision.

    `mode` is `eager`, `channels-last`, `tf32`, or `compile`, which also has channels last and CUDA
    graphs (`max-autotune` would take the time of all other stages). TF32 is off in all others, as
    in the engines' sessions.
    """
    torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
    torch.backends.cudnn.allow_tf32 = mode == "tf32"
    described, bundle = model.networks[name], model.bundle
    spec = bundle.components[name]
    dtype = TORCH_PRECISION[spec.precision]
    with torch.device("meta"):
        network = getattr(diffusers, described.class_name).from_config(dict(described.config))
    stored = load_file(bundle.path(spec.weights), device=settings.device)
    state = {
        key: stored[key].to(dtype) if key in stored else torch.zeros_like(value, device="cpu")
        for key, value in network.state_dict().items()  # a graph omits weights that it never reads
    }
    network.load_state_dict(state, assign=True)
    network = network.eval().to(settings.device)
    if mode in ("channels-last", "compile"):
        network = network.to(memory_format=torch.channels_last)
    run: Run = WRAPPERS[described.class_name](network, dtype)
    if mode != "compile":
        return run
    if settings.rehearsal:  # a compiler for the CPU would prove nothing
        return torch.compile(run, backend="eager")
    return torch.compile(run, mode="reduce-overhead")


class TorchExecutor(Executor):
    """Runs a component on NumPy arrays."""

    def __init__(self, spec: ComponentSpec, network: Run, device: str) -> None:
        self.spec = spec
        self._network, self._device = network, device

    def run(self, inputs: Arrays) -> dict[str, Any]:
        names = (each.name for each in self.spec.inputs)
        values = [torch.from_numpy(np.asarray(inputs[each])).to(self._device) for each in names]
        with torch.inference_mode():
            return {self.spec.outputs[0].name: self._network(*values).cpu().numpy()}

    def close(self) -> None:
        del self._network


class TorchLatents:
    """The latents on the device; each array is copied when it is read."""

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
        """Whether all latents are finite; waits for the device, as the step graphs do."""
        return bool(torch.isfinite(self.tensors[0].abs().sum()))

    @property
    def finite_images(self) -> NDArray[np.bool_]:
        """Which images are finite; waits for the device."""
        finite: NDArray[np.bool_] = np.isfinite(self.x).all(axis=tuple(range(1, self.x.ndim)))
        return finite


class TorchStepper(Stepper):
    """Runs steps of eri's sampler table around a PyTorch network."""

    def __init__(self, spec: ComponentSpec, network: Run, device: str) -> None:
        self._spec, self._network, self._device = spec, network, device

    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        del shape  # eager mode allocates tensors as needed
        return TorchStepLoop(self._spec, self._network, self._device, width)

    def close(self) -> None:
        del self._network


class TorchStepLoop(StepLoop):
    """One trajectory, as `eri_runtime.loop.denoise` runs it."""

    def __init__(self, spec: ComponentSpec, network: Run, device: str, width: int) -> None:
        self._names = [each.name for each in spec.inputs]
        self._network, self._device, self._width = network, device, width
        self._bound: dict[Hashable, tuple[torch.Tensor, dict[str, torch.Tensor]]] = {}

    def bind(
        self, key: Hashable, mix: Array, conditions: Arrays, layout: Layout | None = None
    ) -> None:
        assert layout is None  # noqa: S101 every image has as many conditions
        on_device = {name: self._tensor(value) for name, value in conditions.items()}
        self._bound[key] = self._tensor(mix), on_device

    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        start = self._tensor(x)
        return TorchLatents(start, start, tuple(map(self._tensor, remembered)))

    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        assert isinstance(state, TorchLatents)  # noqa: S101 `begin` returned it
        for row in rows:
            state = self._step(*row, state)
            yield state

    @torch.inference_mode()
    def _step(
        self, key: Hashable, columns: Array, noises: Sequence[Array], state: TorchLatents
    ) -> TorchLatents:
        """Runs one row of the sampler table."""
        x, _, history = state.tensors
        first = len(columns) - COLUMNS["B"] - COLUMNS["C"]
        single, B, C = np.split(columns, [first, -COLUMNS["C"]])
        t, c_in, c_skip, c_out, p, q, A = map(float, single)
        denoised = c_skip * x + c_out * self._predict(key, c_in * x, t)
        remembered = (p * x + q * denoised, *history)[: min(self._width, MAX_W)]
        x = A * x
        noise = [self._tensor(each) for each in noises]
        for column, values in ((B, remembered), (C, noise)):
            for coefficient, value in zip(map(float, column), values, strict=False):
                x = x + coefficient * value
        return TorchLatents(x, denoised, remembered)

    def _predict(self, key: Hashable, x: torch.Tensor, t: float) -> torch.Tensor:
        """Returns the mixed prediction of all conditions."""
        mix, conditions = self._bound[key]
        count, ones = len(mix), (1,) * (x.ndim - 1)
        sample = x.repeat(count, *ones)
        timestep = torch.full((len(sample),), t, device=x.device)
        inputs = {"sample": sample, "timestep": timestep, **conditions}
        predicted = self._network(*(inputs[name] for name in self._names))
        return (mix.view(*mix.shape, *ones) * predicted.view(count, *x.shape)).sum(0)

    def _tensor(self, values: Array) -> torch.Tensor:
        """Copies an array to the device."""
        return torch.from_numpy(np.array(values)).to(self._device)
