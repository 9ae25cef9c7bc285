"""Replaces group normalisation, with the SiLU after it, by com.microsoft's GroupNorm.

    y = act((x - mean_g(x))/sqrt(var_g(x) + epsilon)·scale + bias),   act(y) = y or y·sigmoid(y)

ONNX Runtime's CUDA provider has no GroupNormalization and expands it to 18 kernels. Its GroupNorm
is two kernels, reads channels last, and takes scale and bias in float32. SkipGroupNorm also adds
the residual or the time embedding before the norm, and outputs the sum if it is read elsewhere.
Neither has bfloat16: those norms are computed in float32, as GroupNormalization itself takes its
means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx_ir as ir

from eri_export.graphs.passes.cuda.layout import FIRST, LAST
from eri_export.graphs.passes.group_norm import OPERATOR, Norm, expanded_norm
from eri_export.graphs.passes.node_builder import MICROSOFT, Emitter
from eri_export.graphs.passes.shape_inference import Inferred, inferred
from eri_export.graphs.passes.values import constant_of, made_by, name_of

SWAP = (0, 2, 1)  # (N, C, T) <-> (N, T, C)
KINDS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


class Sum(NamedTuple):
    """The sum that a norm reads, of `x` (N, C, H, W) and `skip`, of the same shape or (N, C)."""

    total: ir.Value
    x: ir.Value
    skip: ir.Value
    is_vector: bool


def fuse_group_norms(model: ir.Model) -> None:
    """Replaces the group norms of images and sequences, in place.

    Those whose groups have an odd number of channels stay, as the provider refuses them.
    """
    found = [(node, norm) for node in model.graph if (norm := norm_of(node)) is not None]
    table = dict(inferred(model)) if found else {}
    for node, norm in found:
        if table[name_of(norm.x)].rank not in (3, 4) or not _is_even(norm):
            continue
        silu = _silu_of(node.outputs[0])
        old = node if silu is None else silu
        emit = Emitter(model.graph, f"{name_of(old.outputs[0])}.fused")
        total = _sum_of(norm.x, table)
        if total is None:
            y = _fused(emit, norm, table[name_of(norm.x)], with_silu=silu is not None)
        else:
            y, summed = _fused_with_sum(emit, norm, total, with_silu=silu is not None)
            table[name_of(summed)] = table[name_of(norm.x)]
        ir.convenience.replace_nodes_and_values(
            model.graph, old, [old], emit.nodes, old.outputs, [y]
        )
        if total is not None:
            ir.convenience.replace_all_uses_with(total.total, summed)
        model.opset_imports[MICROSOFT] = 1
    model.graph.sort()  # a sum can be read before its norm


def norm_of(node: ir.Node) -> Norm | None:
    """Returns the norm that a GroupNormalization computes, or the Add that ends an expanded one."""
    if node.op_type == OPERATOR:
        x, scale, bias = node.inputs
        if x is None or scale is None or bias is None:
            return None
        groups = node.attributes["num_groups"].as_int()
        return Norm(x, scale, bias, groups, node.attributes["epsilon"].as_float())
    return expanded_norm(node) if node.op_type == "Add" else None


def _is_even(norm: Norm) -> bool:
    """Whether a group has an even number of channels: the kernels read them in pairs."""
    (channels,) = norm.scale.shape.numpy() if norm.scale.shape is not None else (0,)
    return bool(channels) and channels // norm.groups % 2 == 0


def _silu_of(y: ir.Value) -> ir.Node | None:
    """Returns the Mul of y·sigmoid(y), if nothing else reads y; else None."""
    users = {use.node for use in y.uses()}
    sigmoid = next((node for node in users if node.op_type == "Sigmoid"), None)
    product = next((node for node in users if node.op_type == "Mul"), None)
    if len(users) != 2 or sigmoid is None or product is None or y.is_graph_output():
        return None
    (gate,) = sigmoid.outputs
    sole = {use.node for use in gate.uses()} == {product}
    return product if sole and set(product.inputs) == {y, gate} else None


def _sum_of(x: ir.Value, table: Mapping[str, Inferred]) -> Sum | None:
    """Returns the sum that is normalised, if SkipGroupNorm can add it; else None."""
    node, kind = x.producer(), table[name_of(x)]
    if node is None or node.op_type != "Add" or kind.rank != 4 or kind.dtype not in KINDS:
        return None
    if x.is_graph_output():
        return None
    for image, skip in (node.inputs, node.inputs[::-1]):
        vector = made_by(skip, "Unsqueeze")
        if image is None or skip is None or table[name_of(image)].shape != kind.shape:
            continue
        if vector is not None and constant_of(vector.inputs[1]) == [2, 3]:
            if vector.inputs[0] is not None:
                return Sum(x, image, vector.inputs[0], is_vector=True)
        elif table[name_of(skip)].shape == kind.shape:
            return Sum(x, image, skip, is_vector=False)
    return None


def _fused_with_sum(
    emit: Emitter, norm: Norm, total: Sum, *, with_silu: bool
) -> tuple[ir.Value, ir.Value]:
    """Returns the norm of a sum, and the sum."""
    skip = total.skip if total.is_vector else emit("Transpose", total.skip, perm=LAST)
    node = ir.node(
        "SkipGroupNorm",
        [emit("Transpose", total.x, perm=LAST), *_weights(emit, norm), skip],
        _attributes(norm, with_silu=with_silu),
        domain=MICROSOFT,
        num_outputs=2,
    )
    node.name = f"{emit.name}.{len(emit.nodes)}"
    emit.nodes.append(node)
    for index, output in enumerate(node.outputs):
        output.name = f"{node.name}.{index}"
    y, summed = (emit("Transpose", output, perm=FIRST) for output in node.outputs)
    return y, summed


def _weights(emit: Emitter, norm: Norm) -> list[ir.Value]:
    """Returns scale and bias in float32."""
    return [
        each if each.dtype == ir.DataType.FLOAT else emit("Cast", each, to=ir.DataType.FLOAT)
        for each in (norm.scale, norm.bias)
    ]


def _attributes(norm: Norm, *, with_silu: bool) -> dict[str, Any]:
    return {
        "groups": norm.groups,
        "epsilon": norm.epsilon,
        "activation": int(with_silu),
        "channels_last": 1,
    }


def _fused(emit: Emitter, norm: Norm, x: Inferred, *, with_silu: bool) -> ir.Value:
    native = x.dtype in KINDS
    source = norm.x if native else emit("Cast", norm.x, to=ir.DataType.FLOAT)
    is_image = x.rank == 4
    source = emit("Transpose", source, perm=LAST if is_image else SWAP)
    if not is_image:  # (N, T, C) is an image of one row
        source = emit("Unsqueeze", source, emit.integers(1))
    weights, attributes = _weights(emit, norm), _attributes(norm, with_silu=with_silu)
    y = emit(f"{MICROSOFT}::GroupNorm", source, *weights, **attributes)
    if not is_image:
        y = emit("Squeeze", y, emit.integers(1))
    y = emit("Transpose", y, perm=FIRST if is_image else SWAP)
    return y if native else emit("Cast", y, to=x.dtype)
