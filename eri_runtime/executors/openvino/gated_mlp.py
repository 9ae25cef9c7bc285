"""Keeps OpenVINO from dividing by zero: its fused gated MLP in bfloat16 on one thread.

On a processor with AMX, OpenVINO 2026.4 computes down(act(gate(x))·up(x)) in one operation if that
is in bfloat16. Pairs of threads share its last product, and it divides by the number of pairs: with
one thread the process dies of SIGFPE while it compiles. T5 has such MLPs; a linear with a bias
is not fused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from eri_runtime.executors.openvino.library import import_openvino

PRECISION, THREADS = "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS"
SPLITS = ("Split", "VariadicSplit", "Slice", "StridedSlice")

log = logging.getLogger(__name__)


def safe_options(core: Any, model: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the options to compile a model with: in float32 where bfloat16 kills the process.

    Args:
        core: OpenVINO's `Core`.
        model: The model.
        options: The options that were chosen.
    """
    if options[PRECISION] != "bf16" or not has_gated_mlp(model) or _threads(core, options) > 1:
        return options
    log.info("float32 takes the place of bfloat16: OpenVINO has one thread for a gated MLP")
    return {**options, PRECISION: "f32"}


def has_gated_mlp(model: Any) -> bool:
    """Returns whether a model has a matrix product of up·act(gate).

    `up` and `gate` are matrix products of one tensor, or parts of one matrix product.
    """
    return any(_is_gated(op) for op in model.get_ops() if op.get_type_name() == "Multiply")


def _is_gated(product: Any) -> bool:
    """Returns whether a `Multiply` is the gated activation of an MLP."""
    readers = product.output(0).get_target_inputs()
    if not any(each.get_node().get_type_name() == "MatMul" for each in readers):
        return False
    one, other = (each.get_source_output() for each in product.inputs())
    return _gates(one, other) or _gates(other, one)


def _gates(up: Any, gate: Any) -> bool:
    """Returns whether `up` is linear in a tensor, and `gate` computed from others linear in it."""
    source = _linear_in(up)
    if source is None:
        return False
    ends = dict(_linear_ends(gate))
    return set(ends.values()) == {source} and _name(up) not in ends


def _linear_ends(output: Any) -> Iterator[tuple[str, str | None]]:
    """Yields the nearest matrix products that an output is computed from, and their inputs.

    Inputs of the model count too; they are computed from nothing: None.
    """
    waiting, seen = [output], set[str]()
    while waiting:
        name, node = _name(current := waiting.pop()), current.get_node()
        if name in seen:
            continue
        seen.add(name)
        source = _linear_in(current)
        if source is not None or node.get_type_name() == "Parameter":
            yield name, source
            continue
        waiting += [each.get_source_output() for each in node.inputs()]


def _linear_in(output: Any) -> str | None:
    """Returns the input of the matrix product that an output is, or is a part of; else None."""
    node = output.get_node()
    if node.get_type_name() in SPLITS:
        node = node.input(0).get_source_output().get_node()
    return _name(node.input(0).get_source_output()) if node.get_type_name() == "MatMul" else None


def _name(output: Any) -> str:
    """Returns what tells an output from the others of a model."""
    return f"{output.get_node().get_friendly_name()}:{output.get_index()}"


def _threads(core: Any, options: Mapping[str, Any]) -> int:
    """Returns how many threads OpenVINO gives a model that it compiles with these options.

    The cores that the process may use can be fewer than the options say.
    """
    ov = import_openvino()
    parameter = ov.op.Parameter(ov.Type.f32, ov.Shape([1]))
    smallest = core.compile_model(ov.Model([parameter], [parameter]), "CPU", dict(options))
    return int(smallest.get_property(THREADS))
