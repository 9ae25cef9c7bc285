"""Replaces an Einsum that only reorders one operand's axes, as in MMDiT's unpatchify, by Transpose.

ONNX defines no bfloat16 Einsum, and engines that have Einsum run it slower than Transpose.
"""

from __future__ import annotations

import onnx_ir as ir


def transpose_einsums(model: ir.Model) -> None:
    """Replaces every such Einsum, in place; others stay."""
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Einsum" and (perm := _permutation(node)) is not None:
            transpose = ir.node("Transpose", node.inputs, {"perm": perm}, name=node.name)
            new, old = transpose.outputs[0], node.outputs[0]
            new.name, new.type, new.shape = old.name, old.type, old.shape
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [transpose], [old], [new]
            )


def _permutation(node: ir.Node) -> list[int] | None:
    """Returns the permutation of `abc->cab`; None for an equation that does more than reorder."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    before, arrow, after = equation.partition("->")
    same = len(node.inputs) == 1 and bool(arrow) and sorted(before) == sorted(after)
    if not same or len(set(before)) != len(before) or not before.isalpha():
        return None
    return [before.index(letter) for letter in after]
