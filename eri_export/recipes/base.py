"""What a component's export needs to know, and the sample inputs it is traced and compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eri_export.checkpoint import Component
from eri_export.precision import KEPT
from eri_runtime.spec import LORAS, RANK, Precision, ShapeRange, TensorSpec

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
    """The contract's float32 inputs and outputs around `network`, which computes in `dtype`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network: Any = network
        self.dtype = dtype


@dataclass(frozen=True)
class Input:
    """A graph input and how to draw values that the network is meant for."""

    spec: TensorSpec
    draw: Draw


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One component of a bundle: `wrap(make(source), dtype)` computes `outputs` from `inputs`.

    `repeated` are the classes of the blocks that the network is mostly made of.
    Each of `examples` gives every named dimension of the inputs a size: the first is for tracing,
    the others for comparing. A dimension of which `ranges` allows one size is a constant of the
    graph; `loose` is the same recipe before its sizes were fixed. `lora_rank` is the highest rank
    of the LoRAs that the graph takes as inputs, None for a graph that takes none.
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
        """What the network computes in."""
        return TORCH_PRECISION[self.precision]

    @property
    def constants(self) -> Sizes:
        """The dimensions that have one size only."""
        return {name: each.opt for name, each in self.ranges.items() if each.min == each.max}

    @property
    def lora_ranges(self) -> Mapping[str, ShapeRange]:
        """The sizes of its inputs for LoRAs; a static graph takes the full rank for every row."""
        if self.lora_rank is None:
            return {}
        ranges = {LORAS: self.ranges["batch"].max, RANK: self.lora_rank}
        if self.loose is not None:
            return {name: ShapeRange(min=n, opt=n, max=n) for name, n in ranges.items()}
        opt = {LORAS: 1, RANK: self.lora_rank}
        return {name: ShapeRange(min=1, opt=opt[name], max=n) for name, n in ranges.items()}

    @property
    def traced_at(self) -> Sizes:
        """The first example, with every constant at its size; no two open sizes are the same."""
        return {**self.examples[0], **self.constants}

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """The examples, each size moved into its range."""
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
        """The network, in evaluation mode, with whatever weights its class starts with."""
        return self.make(self.source).eval()

    def weight_dtype(self, name: str) -> torch.dtype:
        """The type of the floating-point weight `name` in this export."""
        kept = not set(self.kept_float32).isdisjoint(name.split("."))
        return torch.float32 if kept else self.dtype

    def sample(self, sizes: Sizes, seed: int) -> dict[str, NDArray[np.generic]]:
        """Inputs of the given sizes, the same for the same seed."""
        rng = np.random.default_rng(seed)
        return {
            each.spec.name: each.draw(resolved(each.spec.shape, sizes), rng) for each in self.inputs
        }

    def first_shape(self, spec: TensorSpec) -> Shape:
        """The shape of an input in the first example."""
        return resolved(spec.shape, self.sizes[0])

    def sizes_of(self, inputs: Arrays) -> Sizes:
        """What size each dynamic dimension has in `inputs`."""
        return {
            name: size
            for each in self.inputs
            for name, size in zip(each.spec.shape, inputs[each.spec.name].shape, strict=True)
            if isinstance(name, str)
        }


def fixed(recipe: Recipe) -> Recipe:
    """The recipe of a static graph: every size is its best."""
    points = {
        name: ShapeRange(min=each.opt, opt=each.opt, max=each.opt)
        for name, each in recipe.ranges.items()
    }
    return dataclasses.replace(recipe, ranges=points, loose=recipe)


def example(recipe: Recipe, sizes: Sizes) -> tuple[torch.Tensor, ...]:
    """Inputs of the given sizes on torch's current device, all zeros."""
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    specs = (each.spec for each in recipe.inputs)
    return tuple(
        torch.zeros(resolved(spec.shape, sizes), dtype=dtypes[spec.dtype]) for spec in specs
    )


def resolved(shape: tuple[int | str, ...], sizes: Sizes) -> Shape:
    """`shape` with its named dimensions replaced by their sizes."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def float_input(name: str, *shape: int | str, draw: Draw | None = None) -> Input:
    """A float32 graph input, standard normal unless it says otherwise."""
    return Input(TensorSpec(name=name, dtype="float32", shape=shape), draw or normal)


def float_output(name: str, *shape: int | str) -> TensorSpec:
    """A float32 graph output."""
    return TensorSpec(name=name, dtype="float32", shape=shape)


def normal(shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """Standard normal float32: latents and embeddings."""
    return rng.standard_normal(shape, dtype=np.float32)


def uniform(low: float, high: float) -> Draw:
    """Uniform float32 in [low, high): timesteps, guidance scales, pixels."""
    return lambda shape, rng: rng.uniform(low, high, shape).astype(np.float32)


def pixel_counts(shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
    """Whole float32 numbers as SDXL's size and crop conditions are."""
    return rng.integers(0, 1024, shape).astype(np.float32)


def patch_ids(shape: Shape, _rng: np.random.Generator) -> NDArray[np.generic]:
    """Flux position ids (tokens, 3): zero, row and column on an almost square grid, float32."""
    index = np.arange(shape[0])
    width = max(1, int(np.sqrt(shape[0])))
    return np.stack([0 * index, index // width, index % width], axis=1).astype(np.float32)


def zeros(shape: Shape, _rng: np.random.Generator) -> NDArray[np.generic]:
    """Float32 zeros: Flux gives its text no position."""
    return np.zeros(shape, np.float32)


def text_ids(vocabulary: int, end: int) -> Draw:
    """Int64 token ids in [0, vocabulary) with `end` once or more, at a different place per row."""

    def draw(shape: Shape, rng: np.random.Generator) -> NDArray[np.generic]:
        ids = rng.integers(0, vocabulary, shape)
        ids[ids == end] = 0
        for row, length in enumerate(rng.integers(0, shape[1], shape[0])):
            ids[row, length:] = end
        return ids.astype(np.int64)

    return draw
