"""Einsum of one operand that only reorders axes, as MMDiT's unpatchify, is a Transpose.

ONNX gives Einsum no bfloat16, and engines run it slower where they run it at all.
"""

from __future__ import annotations

import onnx_ir as ir


def transpose_einsums(model: ir.Model) -> None:
    """Replace every such Einsum; others stay."""
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Einsum" and (perm := _permutation(node)) is not None:
            transpose = ir.node("Transpose", node.inputs, {"perm": perm}, name=node.name)
            new, old = transpose.outputs[0], node.outputs[0]
            new.name, new.type, new.shape = old.name, old.type, old.shape
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [transpose], [old], [new]
            )


def _permutation(node: ir.Node) -> list[int] | None:
    """The axes of `abc->cab`, or None for an equation that does more than reorder."""
    given, arrow, made = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    same = len(node.inputs) == 1 and bool(arrow) and sorted(given) == sorted(made)
    if not same or len(set(given)) != len(given) or not given.isalpha():
        return None
    return [given.index(letter) for letter in made]
