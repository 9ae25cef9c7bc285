"""Weights with LoRAs merged in: computed in float32, rounded once to the type of the weight."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from eri_runtime.errors import LoraError, UsageError, short
from eri_runtime.lora.adapter import Adapter, Floats, Sum
from eri_runtime.lora.deltas import LowRank
from eri_runtime.lora.keys import parse
from eri_runtime.lora.matching import adapters
from eri_runtime.lora.targets import component_of
from eri_runtime.spec import Family
from eri_runtime.tensors import rounded

Scaled = tuple[Adapter, float]

LARGEST = float(np.finfo(np.float32).max)
BLOCK = 1 << 18  # elements; a mebibyte of float32
HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)

# which component of which family a weight tells; a CLIP or a T5 may be one of several
SIGNS: Mapping[str, tuple[tuple[Family, str], ...]] = {
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
WRAPPER = "text_model."


def apply_lora_for_inference(
    base_weights: Mapping[str, NDArray[Any]],
    lora_weights: Mapping[str, NDArray[Any]],
    scale: float = 1.0,
) -> dict[str, NDArray[Any]]:
    """The weights of one network with `scale` times a LoRA merged in; nothing given is changed.

    `base_weights` are a denoiser's or a text encoder's by diffusers' or transformers' names, of
    any float type, and may be lazy; a LoRA's keys for other networks are passed over. Weights that
    it does not touch are the given arrays themselves, others new ones of the same type. Raises
    `LoraError` for a LoRA that does not fit, and `NonFiniteError` for NaN, Inf or an overflow.
    """
    changes = {
        name: [(change, scale) for change in own]
        for name, own in _changes(base_weights, lora_weights).items()
    }
    merged = merged_weights(base_weights, changes)
    return {name: merged[name] if name in merged else base_weights[name] for name in base_weights}


def merged_weights(
    base: Mapping[str, NDArray[Any]], changes: Mapping[str, Sequence[Scaled]], where: str = ""
) -> dict[str, NDArray[Any]]:
    """Every weight of `changes` as `merged_weight` makes it, one a core at a time.

    `where` stands before a weight's name in an error. BLAS is held to one thread in the meantime: a
    product of low rank is too small to share, and threads that wait for each other took twice the
    time of one.
    """

    def merge(name: str) -> NDArray[Any]:
        return merged_weight(where + name, base[name], changes[name])

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        return dict(zip(changes, pool.map(merge, changes), strict=True))


def cores() -> int:
    """How many this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def merged_weight(name: str, base: NDArray[Any], changes: Sequence[Scaled]) -> NDArray[Any]:
    """A weight with scaled changes merged in, one after the other, in the type of `base`.

    It is `base` itself where every scale is 0. Consecutive low-rank updates are one product. Raises
    `UsageError` for a scale that is no float32, `NonFiniteError` for what the type cannot hold.
    """
    for _, scale in changes:
        if not abs(scale) <= LARGEST:
            raise UsageError("scale", got=scale, expected=f"a number of at most {LARGEST:g}")
    active = [(change, scale) for change, scale in changes if scale != 0]
    groups = [list(each) for _, each in itertools.groupby(active, key=_is_low_rank)]
    total = base
    for group in groups:
        dtype = base.dtype if group is groups[-1] else np.dtype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # said by `rounded`, with the name
            merge = _summed if _is_low_rank(group[0]) else _in_turn
            total = merge(name, total, group, dtype)
    return total


def _is_low_rank(scaled: Scaled) -> bool:
    change, _ = scaled
    return isinstance(change, Sum) and isinstance(change.delta, LowRank)


def _summed(
    name: str, base: NDArray[Any], changes: Sequence[Scaled], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """base + Σ scale · up @ down as one product, a few rows at a time, which stay in the cache."""
    up, down = _stacked(changes)
    merged = np.empty(base.shape, dtype)
    source, target = (each.reshape(len(up), -1) for each in (base, merged))
    step = max(1, BLOCK // down.shape[1])
    product = np.empty((step, down.shape[1]), np.float32)
    for first in range(0, len(up), step):
        rows = slice(first, first + step)
        block = np.matmul(up[rows], down, out=product[: len(up[rows])])
        np.add(block, _widened(source[rows]), out=block, casting="same_kind")
        target[rows] = rounded(name, block, dtype)
    return merged


def _stacked(changes: Sequence[Scaled]) -> tuple[Floats, Floats]:
    """Σ scale · up @ down as the factors of one product; `down` is not copied where it is one."""
    pairs = [
        (change.delta.up * np.float32(scale), change.delta.down)
        for change, scale in changes
        if isinstance(change, Sum) and isinstance(change.delta, LowRank)
    ]
    if len(pairs) == 1:
        return pairs[0]
    return np.hstack([up for up, _ in pairs]), np.vstack([down for _, down in pairs])


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    """float16 by table, thrice as fast as NumPy converts it; other types as they are."""
    return HALVES.take(values.view(np.uint16)) if values.dtype == np.float16 else values


def _in_turn(
    name: str, base: NDArray[Any], changes: Sequence[Scaled], dtype: np.dtype[Any]
) -> NDArray[Any]:
    total: Floats = base.astype(np.float32, copy=False)
    for change, scale in changes:
        total = change.merged(total, scale)
    return rounded(name, total, dtype)


def _changes(
    base: Mapping[str, NDArray[Any]], lora: Mapping[str, NDArray[Any]]
) -> Mapping[str, tuple[Adapter, ...]]:
    """The changes of the network whose weights `base` are; shapes tell one CLIP from another."""
    shapes = {name: np.shape(base[name]) for name in base}
    candidates = _candidates(base)
    found: dict[frozenset[str], tuple[str, Mapping[str, tuple[Adapter, ...]]]] = {}
    failure = LoraError(
        "LoRA",
        got=f"no key for {' or '.join(component for _, component in candidates)}",
        expected="keys of this network's weights",
    )
    for family, component in candidates:
        own = _Part(lora, family, component)
        if own and frozenset(own) not in found:  # one T5 has one key in two families
            try:
                changes = adapters(own, family, {component: shapes})[component]
                found[frozenset(own)] = component, changes
            except LoraError as error:
                failure = error
    if not found:
        raise failure
    if len(found) > 1:
        raise LoraError(
            "LoRA",
            got=f"keys for {' and '.join(name for name, _ in found.values())}, which both fit",
            expected="those of one of them",
            fix="leave the others out, or name the component with `eri_runtime.lora.adapters`",
        )
    return next(changes for _, changes in found.values())


def _candidates(base: Collection[str]) -> Sequence[tuple[Family, str]]:
    for sign, candidates in SIGNS.items():
        if sign in base or WRAPPER + sign in base:
            return candidates
    raise LoraError(
        "base_weights",
        got=f"the names {', '.join(map(short, sorted(base)[:3]))}, ... of no known network",
        expected="those of a denoiser or a text encoder in diffusers' layout",
    )


class _Part(dict[str, NDArray[Any]]):
    """The tensors of a LoRA that are for one component, with its metadata."""

    def __init__(self, lora: Mapping[str, NDArray[Any]], family: Family, component: str) -> None:
        parsed = parse(lora)
        own = [each for each in parsed.modules if component_of(family, each.name)[0] == component]
        super().__init__((key, lora[key]) for each in own for key in each.keys.values())
        self.metadata = getattr(lora, "metadata", {})
        if component == "denoiser":
            self.update((key, lora[key]) for key in parsed.unknown)
