"""The recipe of a component's export, and the sample inputs to trace and compare it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eri_export.checkpoints import Component
from eri_export.choices import KEPT
from eri_runtime.bundle import LORAS, RANK, Precision, ShapeRange, TensorSpec

Shape = tuple[int, ...]
Sizes = Mapping[str, int]
Arrays = Mapping[str, NDArray[Any]]
Draw = Callable[[Shape, np.random.Generator], NDArray[np.generic]]

TORCH_PRECISION: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
MAX_BATCH = 8
CONDITIONS = 2  # guidance runs the denoiser on two conditions at once


class Wrapper(nn.Module):
    """A network with the bundle's float32 inputs and outputs around it.

    A subclass defines `forward`: it casts its inputs to `dtype`, runs `network` and returns
    float32.

    Args:
        network: The network of diffusers or transformers.
        dtype: The type it computes in.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network: Any = network
        self.dtype = dtype


@dataclass(frozen=True)
class Input:
    """An input of a graph.

    Attributes:
        spec: Its name, type and shape; dynamic dimensions are names.
        draw: Draws values like those of a real run, given a shape and a random generator.
    """

    spec: TensorSpec
    draw: Draw


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to export one component: `wrap(make(source), dtype)` computes `outputs` from `inputs`.

    Attributes:
        name: The component's name in the bundle, such as "denoiser" or "vae_decoder".
        source: The checkpoint's component with its weights and config.
        precision: "fp32", "fp16" or "bf16".
        make: Builds the network from the component's config, without loading weights.
        wrap: The `Wrapper` around the network.
        inputs: The graph's inputs, in the order of the wrapper's arguments.
        outputs: The graph's outputs, in the order of the wrapper's results.
        ranges: The sizes of each dynamic dimension. One with `min == max` is a constant.
        examples: Sizes of all dynamic dimensions: the first for tracing, the others for comparing
            with PyTorch.
        repeated: The classes of the blocks that the network repeats; each kind is traced once.
        loose: The same recipe before its sizes were fixed, for a static graph; else None.
        lora_rank: The highest rank of LoRAs that the graph takes as inputs; default: it takes none.
    """

    name: str
    source: Component
    precision: Precision
    make: Callable[[Component], nn.Module]
    wrap: type[Wrapper]
    inputs: tuple[Input, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange]
    examples: tuple[Sizes, ...]
    repeated: tuple[type[nn.Module], ...] = ()
    loose: Recipe | None = None
    lora_rank: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type the network computes in."""
        return TORCH_PRECISION[self.precision]

    @property
    def constants(self) -> Sizes:
        """The sizes of the dimensions that have only one."""
        return {name: each.opt for name, each in self.ranges.items() if each.min == each.max}

    @property
    def lora_ranges(self) -> Mapping[str, ShapeRange]:
        """The ranges of the LoRA inputs; a static graph takes the full rank for every row."""
        if self.lora_rank is None:
            return {}
        ranges = {LORAS: self.ranges["batch"].max, RANK: self.lora_rank}
        if self.loose is not None:
            return {name: ShapeRange(min=n, opt=n, max=n) for name, n in ranges.items()}
        opt = {LORAS: 1, RANK: self.lora_rank}
        return {name: ShapeRange(min=1, opt=opt[name], max=n) for name, n in ranges.items()}

    @property
    def traced_at(self) -> Sizes:
        """The sizes of the first example, with the constants; no two dynamic sizes are equal."""
        return {**self.examples[0], **self.constants}

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """The sizes of the examples, each clamped to its range."""
        return tuple(
            {
                name: min(max(size, self.ranges[name].min), self.ranges[name].max)
                for name, size in each.items()
            }
            for each in self.examples
        )

    @property
    def kept_float32(self) -> tuple[str, ...]:
        """The modules that stay float32 in this export, by the last part of their names."""
        return KEPT.get(self.precision, {}).get(self.source.class_name, ())

    def build(self) -> nn.Module:
        """Builds the network in evaluation mode, with the initial weights of its class."""
        return self.make(self.source).eval()

    def weight_dtype(self, name: str) -> torch.dtype:
        """Returns the type of the floating-point weight `name` in this export."""
        kept = not set(self.kept_float32).isdisjoint(name.split("."))
        return torch.float32 if kept else self.dtype

    def sample(self, sizes: Sizes, seed: int) -> dict[str, NDArray[np.generic]]:
        """Draws inputs of the given sizes; the same seed gives the same inputs."""
        rng = np.random.default_rng(seed)
        return {
            each.spec.name: each.draw(resolved(each.spec.shape, sizes), rng) for each in self.inputs
        }

    def first_shape(self, spec: TensorSpec) -> Shape:
        """Returns the shape of an input in the first example."""
        return resolved(spec.shape, self.sizes[0])

    def sizes_of(self, inputs: Arrays) -> Sizes:
        """Returns the size of each dynamic dimension in `inputs`."""
        return {
            name: size
            for each in self.inputs
            for name, size in zip(each.spec.shape, inputs[each.spec.name].shape, strict=True)
            if isinstance(name, str)
        }


def fixed(recipe: Recipe) -> Recipe:
    """Returns the recipe of a static graph, with every size fixed at its best one."""
    points = {
        name: ShapeRange(min=each.opt, opt=each.opt, max=each.opt)
        for name, each in recipe.ranges.items()
    }
    return dataclasses.replace(recipe, ranges=points, loose=recipe)


def example(recipe: Recipe, sizes: Sizes) -> tuple[torch.Tensor, ...]:
    """Returns inputs of the given sizes, all zeros, on torch's current device."""
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    specs = (each.spec for each in recipe.inputs)
    return tuple(
        torch.zeros(resolved(spec.shape, sizes), dtype=dtypes[spec.dtype]) for spec in specs
    )


def resolved(shape: tuple[int | str, ...], sizes: Sizes) -> Shape:
    """Returns `shape` with its named dimensions replaced by their sizes."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def float_input(name: str, *shape: int | str, draw: Draw | None = None) -> Input:
    """Returns a float32 graph input; its values are standard normal without a `draw`."""
    return Input(TensorSpec(name=name, dtype="float32", shape=shape), draw or normal)


def float_output(name: str, *shape: int | str) -> TensorSpec:
    """Returns a float32 graph output."""
    return TensorSpec(name=name, dtype="float32", shape=shape)


def normal(shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """Draws standard normal float32, for latents and embeddings."""
    return rng.standard_normal(shape, dtype=np.float32)


def uniform(low: float, high: float) -> Draw:
    """Returns a draw of uniform float32 in [low, high), for timesteps, guidance scales, pixels."""
    return lambda shape, rng: rng.uniform(low, high, shape).astype(np.float32)


def pixel_counts(shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """Draws whole numbers as float32, for SDXL's size and crop conditions."""
    return rng.integers(0, 1024, shape).astype(np.float32)


def patch_ids(shape: Shape, _rng: np.random.Generator) -> NDArray[np.generic]:
    """Returns Flux's position ids (tokens, 3) float32: zero, row, column of a near-square grid."""
    index = np.arange(shape[0])
    width = max(1, int(np.sqrt(shape[0])))
    return np.stack([0 * index, index // width, index % width], axis=1).astype(np.float32)


def zeros(shape: Shape, _rng: np.random.Generator) -> NDArray[np.generic]:
    """Returns float32 zeros: Flux's text tokens have no position."""
    return np.zeros(shape, np.float32)


def text_ids(vocabulary: int, end: int) -> Draw:
    """Returns a draw of int64 token ids in [0, vocabulary) that ends each row with `end`.

    Each row has another length, and `end` fills the rest of it, once or more.
    """

    def draw(shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
        ids = rng.integers(0, vocabulary, shape)
        ids[ids == end] = 0
        for row, length in enumerate(rng.integers(0, shape[1], shape[0])):
            ids[row, length:] = end
        return ids.astype(np.int64)

    return draw
