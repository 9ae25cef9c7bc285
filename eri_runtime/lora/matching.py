"""From the tensors of a LoRA file to what it does to each weight of a model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eri_runtime.errors import LoraError, UnmatchedKeysError, short
from eri_runtime.lora.adapter import Adapter, Dora, Floats, Replacement, Sum
from eri_runtime.lora.alphas import Alphas, read_alphas
from eri_runtime.lora.deltas import Delta, Full, rows_of, whole_rows
from eri_runtime.lora.factors import Factors, build
from eri_runtime.lora.keys import Module, Role, parse
from eri_runtime.lora.looks import other
from eri_runtime.lora.targets import Index, Shape, Target, component_of, flat, index
from eri_runtime.published.parts import Form
from eri_runtime.spec import Family

log = logging.getLogger(__name__)

SHOWN = 20  # keys that a message lists; the error has them all

Shapes = Mapping[str, Mapping[str, Shape]]
Adapters = Mapping[str, Mapping[str, tuple[Adapter, ...]]]


def adapters(
    lora_tensors: Mapping[str, Any], family: Family, shapes: Shapes, partial: bool = False
) -> Adapters:
    """What a LoRA does to each weight: component -> weight -> its changes.

    `shapes` are those of the model's weights by component and diffusers' or transformers' name.
    Factors are copied as float32, so the file is not needed afterwards. Raises
    `UnmatchedKeysError` for keys that match no weight; with `partial` only where none matches, and
    otherwise they are logged. Raises `LoraError` for factors that are missing or do not fit, and
    `NonFiniteError` for NaN and Inf.
    """
    parsed = parse(lora_tensors)
    names = index(family, shapes)
    matched = [(module, _targets(module, family, names)) for module in parsed.modules]
    unmatched = (key for module, found in matched for key in _unmatched(module, found))
    _report((*parsed.unknown, *unmatched), lora_tensors, family, partial)
    alphas = read_alphas(getattr(lora_tensors, "metadata", {}))
    try:
        return _adapters(_once(matched), lora_tensors, alphas, shapes)
    except LoraError as error:
        why = other(lora_tensors, family)
        if why is None or error.fix:
            raise
        raise LoraError(error.offender, got=error.got, expected=error.expected, fix=why) from error


BIAS: tuple[Role, ...] = ("up_bias", "diff_b")


def _targets(module: Module, family: Family, names: Index) -> tuple[Target, ...]:
    """What a module stands for, of the weights and biases that it has factors for."""
    component, name = component_of(family, module.name)
    found = names.get(component, {}).get(flat(name), ())
    wanted = {role in BIAS for role in module.keys}
    return tuple(each for each in found if each.is_bias in wanted)


def _unmatched(module: Module, targets: Sequence[Target]) -> Iterator[str]:
    """The keys that change a weight, or a bias, that is not there."""
    there = {each.is_bias for each in targets}
    return (key for role, key in module.keys.items() if (role in BIAS) not in there)


def _report(
    unmatched: Sequence[str], keys: Mapping[str, Any], family: Family, partial: bool
) -> None:
    if not keys:
        raise LoraError("LoRA", got="no tensors", expected="the factors of some weights")
    if not unmatched:
        return
    more = f" and {len(unmatched) - SHOWN} more" if len(unmatched) > SHOWN else ""
    listed = ", ".join(short(key) for key in unmatched[:SHOWN]) + more
    if partial and len(unmatched) < len(keys):
        log.warning("%d keys of the LoRA match no weight: %s", len(unmatched), listed)
        return
    error = UnmatchedKeysError(
        "LoRA",
        got=f"{len(unmatched)} of {len(keys)} keys that match no weight: {listed}",
        expected=f"keys of this {family}'s weights",
        fix=other(keys, family) or "leave them out with partial=True",
    )
    error.keys = tuple(unmatched)
    raise error


def _once(
    matched: Sequence[tuple[Module, tuple[Target, ...]]],
) -> Iterator[tuple[Module, tuple[Target, ...]]]:
    """Each weight from one module: some files have both diffusers' and published names."""
    taken: dict[tuple[str, str], Module] = {}
    ordered = sorted(matched, key=lambda item: any(each.published for each in item[1]))
    for module, targets in ordered:
        earlier = [taken[each.component, each.name] for each in targets if _id(each) in taken]
        if not earlier:
            taken |= {_id(each): module for each in targets}
            yield module, targets
        elif any(each.published for each in targets):
            log.warning("%s: the same weight as %s, left out", module.name, earlier[0].name)
        else:
            got = f"the weights of {short(earlier[0].name)} again"
            raise LoraError(short(module.name), got=got, expected="each weight once")


def _id(target: Target) -> tuple[str, str]:
    return target.component, target.name


def _adapters(
    matched: Iterable[tuple[Module, tuple[Target, ...]]],
    tensors: Mapping[str, Any],
    alphas: Alphas,
    shapes: Shapes,
) -> Adapters:
    found: dict[str, dict[str, tuple[Adapter, ...]]] = {}
    for module, targets in matched:
        for changes, is_bias in ((_weight_changes, False), (_bias_changes, True)):
            own = [each for each in targets if each.is_bias == is_bias]
            if own:
                rows, columns = _sides(shapes[own[0].component][own[0].name])
                rows = whole_rows(own[0].part, rows)
                factors = Factors(module, tensors, alphas, rows, columns)
                for target, change in changes(factors, own, shapes):
                    component = found.setdefault(target.component, {})
                    component[target.name] = (*component.get(target.name, ()), change)
    return found


def _sides(shape: Shape) -> tuple[int, int]:
    """A weight's sides as a matrix."""
    return (shape[0] if shape else 1), math.prod(shape[1:])


def _weight_changes(
    factors: Factors, targets: Sequence[Target], shapes: Shapes
) -> Iterator[tuple[Target, Adapter]]:
    delta = build(factors)
    for target in targets:
        shape = shapes[target.component][target.name]
        if factors.has("value"):
            value = factors.read("value")
            if value.shape != shape:
                raise factors.wrong("value", value.shape, f"shape {list(shape)}")
            yield target, Replacement(value)
        if delta is not None:
            change = Sum(_fitting(factors, delta.taken(target.part), target, shape), shape)
            magnitude = _magnitude(factors, target, shape)
            yield target, change if magnitude is None else Dora(change, magnitude)


def _fitting(factors: Factors, delta: Delta, target: Target, shape: Shape) -> Delta:
    if delta.shape == _sides(shape):
        return delta
    raise LoraError(
        short(factors.module.name),
        got=f"an update of {delta.shape[0]} by {delta.shape[1]}",
        expected=f"one for {target.name} of shape {list(shape)}",
    )


def _magnitude(factors: Factors, target: Target, shape: Shape) -> Floats | None:
    """DoRA's lengths in the shape of the weight: per output, or per input as LyCORIS can."""
    role: Role = "magnitude" if factors.has("magnitude") else "dora_scale"
    if not factors.has(role):
        return None
    values = factors.read(role)
    ones = (1,) * (len(shape) - 2)
    per_output = role == "magnitude" or len(values) == values.size
    if per_output and values.size == factors.rows:
        return rows_of(target.part, values.reshape(-1, 1)).reshape(-1, 1, *ones)
    if not per_output and target.part is Form.WHOLE and values.size == shape[1]:
        return values.reshape(1, -1, *ones)
    raise factors.wrong(role, values.shape, f"a length for each of {factors.rows} outputs")


def _bias_changes(
    factors: Factors, targets: Sequence[Target], shapes: Shapes
) -> Iterator[tuple[Target, Adapter]]:
    for role in BIAS:
        if factors.has(role):
            scale = factors.scale(factors.matrix("up").shape[1]) if role == "up_bias" else 1.0
            delta = Full(factors.vector(role) * np.float32(scale))
            for target in targets:
                shape = shapes[target.component][target.name]
                yield target, Sum(_fitting(factors, delta.taken(target.part), target, shape), shape)
