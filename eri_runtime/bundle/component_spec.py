"""The part of the manifest that describes one component: its graph, inputs and sizes.

Every graph has float32 inputs and outputs (or int64 token ids). A 16-bit component casts inside the
graph, so NumPy never handles bfloat16 activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from eri_runtime.bundle.schedule_spec import ADDED

Precision = Literal["fp32", "fp16", "bf16"]

# prefixes of a graph's LoRA inputs; the name of the linear weight follows
LORA_A, LORA_B = "lora_A.", "lora_B."
LORAS, RANK = "loras", "rank"  # the dynamic dimensions of these inputs
# outputs of the parts of a denoiser for step caching: the first block's residual and output, and
# what the last part reads of the other blocks
RESIDUAL, CACHED_HIDDEN, CACHED_REST = "cache.residual", "cache.hidden", "cache.rest"
# what `activations` may count besides dimensions: attention scores, and copies of convolutions
SCORES, COPIES = "scores", "copies"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of a component's graph.

    Attributes:
        name: Its name in the graph.
        dtype: `float32`, or `int64` for token ids.
        shape: Its sizes; a string is the name of a dynamic dimension.

    Example:
        >>> pipe.bundle.components["vae_decoder"].inputs[0].shape
        ('batch', 16, 'height', 'width')
    """

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The sizes that a dynamic dimension may take; `size in shape_range` tests one.

    Attributes:
        min: The smallest size.
        opt: The size for which an engine is optimised.
        max: The largest size.

    Example:
        >>> batch = eri.ShapeRange(min=1, opt=2, max=4)
        >>> 3 in batch, 5 in batch
        (True, False)
    """

    min: int
    opt: int
    max: int

    def __contains__(self, size: int) -> bool:
        """Returns whether the dimension may have this size."""
        return self.min <= size <= self.max


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The LoRA inputs of a graph.

    Attributes:
        rank: The highest rank that a LoRA may have.
        least: The lowest rank of the inputs: smaller LoRAs are padded with zeros. In a static
            graph it equals `rank`.
        shared: Whether one LoRA may serve all rows of a batch. In a static graph every row has its
            own.
        targets: Shapes (out, in) of the linear weights that a LoRA may change, by name.
    """

    rank: int
    least: int
    shared: bool
    targets: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """A segment of a component's graph, over the same weights file.

    Running the segments in order equals running the graph, with the weights of one segment in
    memory at a time.

    Attributes:
        graph: POSIX path of the segment's ONNX file, relative to the bundle.
        inputs: Names of its inputs: inputs of the component, or outputs of earlier segments.
        outputs: Names of its outputs, which later segments or the caller use.
        weights: Names of its initialisers.
    """

    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """A component of a model: an ONNX graph, its weights file and the sizes that it supports.

    A denoiser that was exported with a LoRA rank has two more inputs per linear weight W,
    `lora_A.W` (loras, in, rank) and `lora_B.W` (loras, rank, out), and computes
    y = x·Wᵀ + (x·A)·B. `loras` is 1 (one LoRA for all rows of the batch) or the batch size.

    Attributes:
        graph: POSIX path of the ONNX file, relative to the bundle.
        weights: POSIX path of the safetensors file that the graph's initialisers point into.
        precision: The type in which the component computes.
        inputs: The graph's inputs.
        outputs: The graph's outputs.
        ranges: The sizes of each dynamic dimension that `inputs` names.
        parameters: Number of parameters.
        parity: Largest error against PyTorch over all outputs and test cases, relative to the
            largest reference value.
        kept_float32: Modules of a 16-bit component that compute in float32, by the last part of
            their names.
        step: POSIX path of the denoiser's step graph, which computes one row of a `SamplerTable`
            over the same weights. None for other components.
        step_per_image: Whether the step graph takes a row for each image of a call. If not, as in
            older bundles, all images of a call share one; `eri upgrade` changes that.
        step_cache: The denoiser's graph in three parts, for step caching: the first block, the
            others and the last layers. Empty, as in older bundles: its steps cannot be cached.
        compared: As `parity`, by backend, for the other installed backends that agreed with
            PyTorch at export.
        unneeded: Shapes of weights that are not in the file because no output depends on them,
            such as CLIP's last layer in SDXL. A LoRA may still name them.
        segments: The same graph in segments, for running with few weights in memory.
        attention_slice: How many attention heads the graph computes at a time. None: all of them.
        activations: Memory of one run, without the weights: the largest of these polynomials, in
            bytes. Each maps monomials such as `batch*height*width` to coefficients.
    """

    graph: str
    weights: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange]
    parameters: int
    parity: float
    kept_float32: tuple[str, ...] = ()
    step: str | None = None
    compared: Mapping[str, float] = field(default_factory=dict)
    unneeded: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    segments: tuple[SegmentSpec, ...] = ()
    attention_slice: int | None = None
    activations: tuple[Mapping[str, float], ...] = ()
    step_per_image: bool = field(default=False, metadata=ADDED)
    step_cache: tuple[SegmentSpec, ...] = field(default=(), metadata=ADDED)

    @cached_property
    def lora(self) -> LoraSpec | None:
        """The graph's LoRA inputs. None: it has none."""
        downs = [tensor for tensor in self.inputs if tensor.name.startswith(LORA_A)]
        ups = {tensor.name: tensor for tensor in self.inputs if tensor.name.startswith(LORA_B)}
        if not downs:
            return None
        targets = {}
        for down in downs:
            name = down.name.removeprefix(LORA_A)
            targets[name] = (int(ups[LORA_B + name].shape[2]), int(down.shape[1]))
        loras, rank = self.ranges[LORAS], self.ranges[RANK]
        return LoraSpec(rank=rank.max, least=rank.min, shared=loras.min == 1, targets=targets)

    @property
    def plain_inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs without its LoRA inputs."""
        return tuple(
            tensor for tensor in self.inputs if not tensor.name.startswith((LORA_A, LORA_B))
        )
