"""Matches the tensors of a LoRA file to a model's weights and builds the change of each."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eri_runtime.bundle import DENOISER, Family
from eri_runtime.checks import text_keys
from eri_runtime.errors import LoraError, UnmatchedKeysError, short
from eri_runtime.weights.lora.adapter import Adapter, Dora, Floats, Replacement, Sum
from eri_runtime.weights.lora.bundled_tokens import without_tokens
from eri_runtime.weights.lora.deltas import Delta, Full, rows_of, whole_rows
from eri_runtime.weights.lora.factors import ModuleFactors, build_update
from eri_runtime.weights.lora.flux_variants import guidance_keys, refuse_control_lora
from eri_runtime.weights.lora.keys import Module, Parsed, Role, parse
from eri_runtime.weights.lora.model_detection import other_model_hint
from eri_runtime.weights.lora.peft_config import Alphas, read_alphas
from eri_runtime.weights.lora.scaled import without_scales
from eri_runtime.weights.lora.targets import (
    Index,
    Shape,
    Target,
    component_of,
    kohya_name,
    module_targets,
)
from eri_runtime.weights.published_keys.parts import Form

log = logging.getLogger(__name__)

WITHOUT_THEM = "leave them out with partial=True, or with --lora-partial of a command"
SHOWN = 20  # keys that a message lists; `UnmatchedKeysError.keys` has all of them

Shapes = Mapping[str, Mapping[str, Shape]]
Adapters = Mapping[str, Mapping[str, tuple[Adapter, ...]]]
"""The changes that a LoRA makes, by component and weight."""


def adapters(
    lora_tensors: Mapping[str, Any], family: Family, shapes: Shapes, partial: bool = False
) -> Adapters:
    """Matches a LoRA to a model's weights.

    Args:
        lora_tensors: The tensors of a LoRA file by key, in any trainer's format; `metadata` on the
            mapping may hold peft's config. They are copied as float32, so the file may be closed.
        family: The model's family.
        shapes: The shapes of the model's weights, by component and by their diffusers or
            transformers names.
        partial: Whether to log keys that match no weight instead of raising, if others match.

    Returns:
        The changes of each weight, by component and weight.

    Raises:
        UsageError: If a key is not a string.
        UnmatchedKeysError: If keys match no weight.
        LoraError: If factors are missing or do not fit.
        NonFiniteError: If a factor holds NaN or Inf.
    """
    text_keys("LoRA", lora_tensors)
    lora_tensors = without_tokens(without_scales(lora_tensors))
    parsed = parse(lora_tensors)
    names = module_targets(family, shapes)
    matched = [(module, _module_targets(module, family, names)) for module in parsed.modules]
    unmatched = [key for module, targets in matched for key in _unmatched_keys(module, targets)]
    unmatched = [*parsed.unknown, *unmatched]
    if family == "flux" and DENOISER in shapes:
        refuse_control_lora(matched, lora_tensors, shapes[DENOISER])
        unmatched = _without_guidance(unmatched, parsed, shapes[DENOISER])
    some_match = any(targets for _, targets in matched)
    _report_unmatched(unmatched, lora_tensors, family, some_match, partial)
    alphas = read_alphas(getattr(lora_tensors, "metadata", {}))
    try:
        return _build_adapters(_without_duplicates(matched), lora_tensors, alphas, shapes)
    except LoraError as error:
        hint = other_model_hint(lora_tensors, family)
        if hint is None or error.fix:
            raise
        raise LoraError(error.offender, got=error.got, expected=error.expected, fix=hint) from error


BIAS_ROLES: tuple[Role, ...] = ("up_bias", "diff_b")


def _module_targets(module: Module, family: Family, names: Index) -> tuple[Target, ...]:
    """Returns the weights and biases that a module has tensors for."""
    component, name = component_of(family, module.name)
    candidates = names.get(component, {}).get(kohya_name(name), ())
    has_bias = {role in BIAS_ROLES for role in module.keys}
    return tuple(target for target in candidates if target.is_bias in has_bias)


def _unmatched_keys(module: Module, targets: Sequence[Target]) -> Iterator[str]:
    """Yields the keys that change a weight or a bias that the model does not have."""
    matched = {target.is_bias for target in targets}
    return (key for role, key in module.keys.items() if (role in BIAS_ROLES) not in matched)


def _report_unmatched(
    unmatched: Sequence[str],
    keys: Mapping[str, Any],
    family: Family,
    some_match: bool,
    partial: bool,
) -> None:
    """Logs unmatched keys if `partial` and some match; otherwise raises `UnmatchedKeysError`."""
    if not keys:
        raise LoraError("LoRA", got="no tensors", expected="the factors of some weights")
    if not unmatched:
        return
    listed = _listed(unmatched)
    if partial and some_match:
        log.warning("%d keys of the LoRA match no weight: %s", len(unmatched), listed)
        return
    error = UnmatchedKeysError(
        "LoRA",
        got=f"{len(unmatched)} of {len(keys)} keys that match no weight: {listed}",
        expected=f"keys of this {family}'s weights",
        fix=other_model_hint(keys, family) or (WITHOUT_THEM if some_match else None),
    )
    error.keys = tuple(unmatched)
    try:
        raise error
    finally:
        del error  # its traceback has this frame: a cycle would keep the tensors


def _without_guidance(
    unmatched: Sequence[str], parsed: Parsed, names: Mapping[str, Shape]
) -> list[str]:
    """Returns the keys without those for a guidance embedder that this Flux lacks, and logs them.

    A LoRA for the embedder alone keeps its keys: it is made for another model.
    """
    guidance = guidance_keys(parsed.modules, names)
    left_out = [key for key in unmatched if key in guidance]
    if not left_out or len(guidance) == sum(len(module.keys) for module in parsed.modules):
        return list(unmatched)
    log.warning(
        "%d keys of the LoRA change the guidance embedder of Flux dev, which this model does not "
        "have, and are left out: %s",
        len(left_out),
        _listed(left_out),
    )
    return [key for key in unmatched if key not in guidance]


def _listed(keys: Sequence[str]) -> str:
    """Returns the first keys, and how many more there are."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(short(key) for key in keys[:SHOWN]) + more


def _without_duplicates(
    matched: Sequence[tuple[Module, tuple[Target, ...]]],
) -> Iterator[tuple[Module, tuple[Target, ...]]]:
    """Yields one module per weight; some files have both diffusers' and published names.

    Modules with diffusers' names take precedence. Raises `LoraError` for any other duplicate.
    """
    modules: dict[tuple[str, str], Module] = {}  # by component and weight
    ordered = sorted(matched, key=lambda item: any(target.published for target in item[1]))
    for module, targets in ordered:
        weights = [(target.component, target.name) for target in targets]
        earlier = [modules[weight] for weight in weights if weight in modules]
        if not earlier:
            modules |= dict.fromkeys(weights, module)
            yield module, targets
        elif any(target.published for target in targets):
            log.warning("%s: the same weight as %s, left out", module.name, earlier[0].name)
        else:
            got = f"the weights of {short(earlier[0].name)} again"
            raise LoraError(short(module.name), got=got, expected="each weight once")


def _build_adapters(
    matched: Iterable[tuple[Module, tuple[Target, ...]]],
    tensors: Mapping[str, Any],
    alphas: Alphas,
    shapes: Shapes,
) -> Adapters:
    """Builds the changes of every matched module, by component and weight."""
    result: dict[str, dict[str, tuple[Adapter, ...]]] = {}
    for module, all_targets in matched:
        for build, is_bias in ((_weight_changes, False), (_bias_changes, True)):
            targets = [target for target in all_targets if target.is_bias == is_bias]
            if targets:
                first = targets[0]
                rows, columns = _matrix_shape(shapes[first.component][first.name])
                rows = whole_rows(first.part, rows)
                factors = ModuleFactors(module, tensors, alphas, rows, columns)
                for target, change in build(factors, targets, shapes):
                    component = result.setdefault(target.component, {})
                    component[target.name] = (*component.get(target.name, ()), change)
    return result


def _matrix_shape(shape: Shape) -> tuple[int, int]:
    """Returns a weight's shape as a matrix, with all axes but the first flattened."""
    return (shape[0] if shape else 1), math.prod(shape[1:])


def _weight_changes(
    factors: ModuleFactors, targets: Sequence[Target], shapes: Shapes
) -> Iterator[tuple[Target, Adapter]]:
    """Yields the change of each weight that a module stands for."""
    delta = build_update(factors)
    for target in targets:
        shape = shapes[target.component][target.name]
        if factors.has("value"):
            value = factors.read("value")
            if value.shape != shape:
                raise factors.shape_error("value", value.shape, f"shape {list(shape)}")
            yield target, Replacement(value)
        if delta is not None:
            change = Sum(_checked(factors, delta.taken(target.part), target, shape), shape)
            magnitude = _magnitude(factors, target, shape)
            yield target, change if magnitude is None else Dora(change, magnitude)


def _checked(factors: ModuleFactors, delta: Delta, target: Target, shape: Shape) -> Delta:
    """Returns `delta`; raises `LoraError` if its shape is not the weight's."""
    if delta.shape == _matrix_shape(shape):
        return delta
    raise LoraError(
        short(factors.module.name),
        got=f"an update of {delta.shape[0]} by {delta.shape[1]}",
        expected=f"one for {target.name} of shape {list(shape)}",
    )


def _magnitude(factors: ModuleFactors, target: Target, shape: Shape) -> Floats | None:
    """Returns DoRA's magnitude, shaped to broadcast over the weight, or None if there is none.

    It has one value per output, or, in some LyCORIS files, one per input.
    """
    role: Role = "magnitude" if factors.has("magnitude") else "dora_scale"
    if not factors.has(role):
        return None
    values = factors.read(role)
    ones = (1,) * (len(shape) - 2)
    per_output = role == "magnitude" or values.shape[:1] == (values.size,)
    if per_output and values.size == factors.rows:
        rows: Floats = rows_of(target.part, values.reshape(-1, 1))
        return rows.reshape(-1, 1, *ones)
    if not per_output and target.part is Form.WHOLE and values.size == shape[1]:
        return values.reshape(1, -1, *ones)
    raise factors.shape_error(role, values.shape, f"a length for each of {factors.rows} outputs")


def _bias_changes(
    factors: ModuleFactors, targets: Sequence[Target], shapes: Shapes
) -> Iterator[tuple[Target, Adapter]]:
    """Yields the change of each bias that a module stands for."""
    for role in BIAS_ROLES:
        if factors.has(role):
            scale = factors.scale(factors.matrix("up").shape[1]) if role == "up_bias" else 1.0
            delta = Full(factors.vector(role) * np.float32(scale))
            for target in targets:
                shape = shapes[target.component][target.name]
                yield target, Sum(_checked(factors, delta.taken(target.part), target, shape), shape)
