"""Merges LoRAs into weights, in float32, and rounds once to the type of each weight."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from eri_runtime.bundle import Family, round_to
from eri_runtime.checks import finite, mapping
from eri_runtime.errors import LoraError, UsageError, short
from eri_runtime.executors import cores
from eri_runtime.weights.lora.adapter import Adapter, Floats, Sum
from eri_runtime.weights.lora.bundled_tokens import without_tokens
from eri_runtime.weights.lora.deltas import LowRank
from eri_runtime.weights.lora.keys import parse
from eri_runtime.weights.lora.matching import adapters
from eri_runtime.weights.lora.scaled import without_scales
from eri_runtime.weights.lora.selected import SelectedTensors
from eri_runtime.weights.lora.targets import CLIP_PREFIX, component_of

Scaled = tuple[Adapter, float]  # a change and its scale

LARGEST = float(np.finfo(np.float32).max)
BLOCK = 1 << 18  # elements per product: 1 MiB of float32
FLOAT16_VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)

# a weight that identifies a network -> its possible families and components
NETWORKS: Mapping[str, tuple[tuple[Family, str], ...]] = {
    "single_transformer_blocks.0.attn.to_q.weight": (("flux", "denoiser"),),
    "pos_embed.proj.weight": (("sd35", "denoiser"),),
    "down_blocks.0.resnets.0.conv1.weight": (("sdxl", "denoiser"),),
    "encoder.layers.0.self_attn.q_proj.weight": (
        ("sdxl", "text_encoder"),
        ("sdxl", "text_encoder_2"),
    ),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (
        ("sd35", "text_encoder_3"),
        ("flux", "text_encoder_2"),
    ),
}


def apply_lora_for_inference(
    base_weights: Mapping[str, NDArray[Any]],
    lora_weights: Mapping[str, NDArray[Any]],
    scale: float = 1.0,
) -> dict[str, NDArray[Any]]:
    """Merges a LoRA into the weights of one network.

    Computes W + scale · alpha/rank · B·A (Hu et al. 2021, arXiv 2106.09685) in float32 and rounds
    once to the type of W. LoHa, LoKr, DoRA and full updates are merged as well. The network is
    recognised by the names of its weights; keys of the LoRA for other networks are ignored.

    Args:
        base_weights: Weights of a denoiser or a text encoder, by their diffusers or transformers
            names, of any float type. The mapping may be lazy.
        lora_weights: The tensors of a LoRA file by key, in any trainer's format.
        scale: The LoRA's scale; 0 returns the base weights.

    Returns:
        All weights by name: new arrays of the same type where the LoRA changes them, otherwise the
        arrays of `base_weights`, which are not modified.

    Raises:
        LoraError: If the network is unknown or the LoRA does not fit it.
        UsageError: If a key is not a string, or the scale not a finite float32.
        NonFiniteError: If the LoRA holds NaN or Inf, or a merged weight overflows.

    Example:
        >>> base = {"pos_embed.proj.weight": np.ones((2, 1, 1, 1)), "proj_out.weight": np.eye(2)}
        >>> lora = {
        ...     "transformer.proj_out.lora_A.weight": np.ones((1, 2)),
        ...     "transformer.proj_out.lora_B.weight": np.ones((2, 1)),
        ... }
        >>> eri.apply_lora_for_inference(base, lora, scale=0.5)["proj_out.weight"]
        array([[1.5, 0.5],
               [0.5, 1.5]])
    """
    mapping("base_weights", base_weights, "arrays by name")
    mapping("lora_weights", lora_weights, "arrays by key")
    scale = finite("scale", scale)
    changes = {
        name: [(adapter, scale) for adapter in adapters_of_weight]
        for name, adapters_of_weight in _find_adapters(base_weights, lora_weights).items()
    }
    merged = merged_weights(base_weights, changes)
    return {name: merged[name] if name in merged else base_weights[name] for name in base_weights}


def merged_weights(
    base: Mapping[str, NDArray[Any]], changes: Mapping[str, Sequence[Scaled]], where: str = ""
) -> dict[str, NDArray[Any]]:
    """Merges changes into several weights in parallel, one weight per core.

    BLAS is limited to one thread meanwhile: low-rank products are too small to split, and doing so
    took twice as long.

    Args:
        base: The weights by name; it must have those in `changes`.
        changes: The changes and scales of each weight, by name.
        where: A prefix for the weights' names in errors.

    Returns:
        The merged weights by name.

    Raises:
        UsageError: If a scale is not a finite float32.
        NonFiniteError: If a merged weight overflows its type.
    """

    def merge(name: str) -> NDArray[Any]:
        return merged_weight(where + name, base[name], changes[name])

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        return dict(zip(changes, pool.map(merge, changes), strict=True))


def merged_weight(name: str, base: NDArray[Any], changes: Sequence[Scaled]) -> NDArray[Any]:
    """Merges scaled changes into a weight, one after the other.

    Consecutive low-rank updates are computed as a single product.

    Args:
        name: The weight's name, for errors.
        base: The weight, of any float type.
        changes: The changes with their scales.

    Returns:
        A new array of the type of `base`, or `base` itself if every scale is 0.

    Raises:
        UsageError: If a scale is not a finite float32.
        NonFiniteError: If a value overflows the type of `base`.
    """
    for _, scale in changes:
        if not abs(scale) <= LARGEST:
            raise UsageError("scale", got=scale, expected=f"a number of at most {LARGEST:g}")
    active = [(change, scale) for change, scale in changes if scale != 0]
    groups = [list(group) for _, group in itertools.groupby(active, key=_is_low_rank)]
    total = base
    for group in groups:
        dtype = base.dtype if group is groups[-1] else np.dtype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # `round_to` raises, with the name
            merge = _merge_low_rank if _is_low_rank(group[0]) else _merge_sequentially
            total = merge(name, total, group, dtype)
    return total


def _is_low_rank(scaled: Scaled) -> bool:
    """Returns whether a change is a plain low-rank update."""
    change, _ = scaled
    return isinstance(change, Sum) and isinstance(change.delta, LowRank)


def _merge_low_rank(
    name: str, base: NDArray[Any], changes: Sequence[Scaled], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Computes base + Σ scale · up @ down as one product, in blocks of rows that fit the cache."""
    up, down = _stack_factors(changes)
    merged = np.empty(base.shape, dtype)
    source, target = (array.reshape(len(up), -1) for array in (base, merged))
    step = max(1, BLOCK // down.shape[1])
    product = np.empty((step, down.shape[1]), np.float32)
    for first in range(0, len(up), step):
        rows = slice(first, first + step)
        block = target[rows] if dtype == np.float32 else product[: len(up[rows])]
        np.matmul(up[rows], down, out=block)
        np.add(block, _to_float32(source[rows]), out=block, casting="same_kind")
        rounded = round_to(name, block, dtype)
        if rounded is not block:
            target[rows] = rounded
    return merged


def _stack_factors(changes: Sequence[Scaled]) -> tuple[Floats, Floats]:
    """Returns factors up and down whose product is Σ scale · up @ down."""
    pairs = [
        (change.delta.up * np.float32(scale), change.delta.down)
        for change, scale in changes
        if isinstance(change, Sum) and isinstance(change.delta, LowRank)
    ]
    if len(pairs) == 1:
        return pairs[0]
    return np.hstack([up for up, _ in pairs]), np.vstack([down for _, down in pairs])


def _to_float32(values: NDArray[Any]) -> NDArray[Any]:
    """Converts float16 by a lookup table, 3 times as fast as NumPy; keeps other types."""
    return FLOAT16_VALUES.take(values.view(np.uint16)) if values.dtype == np.float16 else values


def _merge_sequentially(
    name: str, base: NDArray[Any], changes: Sequence[Scaled], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Applies changes one after the other in float32 and rounds once to `dtype`."""
    total: Floats = base.astype(np.float32, copy=False)
    for change, scale in changes:
        total = change.merged(total, scale)
    return round_to(name, total, dtype)


def _find_adapters(
    base: Mapping[str, NDArray[Any]], lora: Mapping[str, NDArray[Any]]
) -> Mapping[str, tuple[Adapter, ...]]:
    """Returns the changes of each weight of the network in `base`.

    Several networks may have the same names, such as the two CLIPs; their shapes decide. Raises
    `LoraError` if the LoRA fits none of them, or has keys for several that fit.
    """
    lora = without_tokens(without_scales(lora))
    shapes = {name: np.shape(base[name]) for name in base}
    candidates = _network_candidates(base)
    fitting: dict[frozenset[str], tuple[str, Mapping[str, tuple[Adapter, ...]]]] = {}
    failure = LoraError(
        "LoRA",
        got=f"no key for {' or '.join(component for _, component in candidates)}",
        expected="keys of this network's weights",
    )
    for family, component in candidates:
        tensors = _component_tensors(lora, family, component)
        if tensors and frozenset(tensors) not in fitting:  # T5 has the same keys in two families
            try:
                changes = adapters(tensors, family, {component: shapes})[component]
                fitting[frozenset(tensors)] = component, changes
            except LoraError as error:
                failure = error
    if not fitting:
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a cycle would keep the tensors
    if len(fitting) > 1:
        raise LoraError(
            "LoRA",
            got=f"keys for {' and '.join(name for name, _ in fitting.values())}, which both fit",
            expected="those of one of them",
            fix="leave the others out, or name the component: `eri_runtime.weights.lora.adapters`",
        )
    return next(changes for _, changes in fitting.values())


def _network_candidates(base: Collection[str]) -> Sequence[tuple[Family, str]]:
    """Returns the families and components whose weights have these names."""
    for weight, candidates in NETWORKS.items():
        if weight in base or CLIP_PREFIX + weight in base:
            return candidates
    raise LoraError(
        "base_weights",
        got=f"the names {', '.join(map(short, sorted(base)[:3]))}, ... of no known network",
        expected="those of a denoiser or a text encoder in diffusers' layout",
    )


def _component_tensors(
    lora: Mapping[str, NDArray[Any]], family: Family, component: str
) -> SelectedTensors:
    """Returns the tensors of a LoRA for one component; the denoiser's with those of none."""
    parsed = parse(lora)
    modules = (each for each in parsed.modules if component_of(family, each.name)[0] == component)
    keys = [key for module in modules for key in module.keys.values()]
    return SelectedTensors(lora, [*keys, *(parsed.unknown if component == "denoiser" else ())])
