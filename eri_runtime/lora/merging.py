"""Weights with LoRAs merged in: computed in float32, rounded once to the type of the weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import LoraError, UsageError, short
from eri_runtime.lora.adapter import Adapter, Floats, Sum
from eri_runtime.lora.deltas import LowRank
from eri_runtime.lora.keys import parse
from eri_runtime.lora.matching import adapters
from eri_runtime.lora.targets import component_of
from eri_runtime.spec import Family
from eri_runtime.tensors import rounded

Scaled = tuple[Adapter, float]

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
    changes = _changes(base_weights, lora_weights)
    return {
        name: merged_weight(name, base, [(change, scale) for change in changes.get(name, ())])
        for name, base in base_weights.items()
    }


def merged_weight(name: str, base: NDArray[Any], changes: Sequence[Scaled]) -> NDArray[Any]:
    """A weight with scaled changes merged in, one after the other, in the type of `base`.

    It is `base` itself where every scale is 0. Consecutive low-rank updates are one product.
    """
    for _, scale in changes:
        if not math.isfinite(scale):
            raise UsageError("scale", got=scale, expected="a finite number")
    active = [(change, scale) for change, scale in changes if scale != 0]
    if not active:
        return base
    total = base
    for is_low_rank, group in itertools.groupby(
        active, key=lambda item: _low_rank(item[0]) is not None
    ):
        total = (_sum if is_low_rank else _in_turn)(total, tuple(group))
    return rounded(name, total, base.dtype)


def _low_rank(change: Adapter) -> LowRank | None:
    delta = change.delta if isinstance(change, Sum) else None
    return delta if isinstance(delta, LowRank) else None


def _sum(base: NDArray[Any], changes: Sequence[Scaled]) -> Floats:
    """base + Σ scale · up @ down as one product; `base` is widened while it is added."""
    pairs = [(_low_rank(change), np.float32(scale)) for change, scale in changes]
    downs = [each.down for each, _ in pairs if each]
    ups = [each.up * scale for each, scale in pairs if each]
    one = len(pairs) == 1
    product = (ups[0] if one else np.hstack(ups)) @ (downs[0] if one else np.vstack(downs))
    total = product.reshape(base.shape)
    return np.add(total, base, out=total, casting="same_kind")


def _in_turn(base: NDArray[Any], changes: Sequence[Scaled]) -> Floats:
    total = base.astype(np.float32, copy=False)
    for change, scale in changes:
        total = change.merged(total, scale)
    return total


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
