"""Replaces convolutions by ONNX Runtime's own of images with channels last.

cuDNN's 16-bit kernels read channels last, and transposes a convolution in the other order in every
run. The operator is the one that the provider's `prefer_nhwc` writes; written here, shapes stay on
the CPU, so that a CUDA graph can be captured. Weights keep ONNX's order: the session packs them
once, when it is opened, so it must not be told to pack nothing. There is none in bfloat16.
"""

from __future__ import annotations

import onnx_ir as ir

from eri_export.graphs.passes.cuda.layout import FIRST, LAST
from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.values import dtype_of, name_of

NHWC = "com.ms.internal.nhwc"
VERSION = 11
KINDS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def put_channels_last(model: ir.Model) -> None:
    """Replaces every Conv of images in float32 or float16, in place; others stay."""
    for node in [node for node in model.graph if node.op_type == "Conv" and not node.domain]:
        x, weight, *bias = (value for value in node.inputs if value is not None)
        if dtype_of(weight) not in KINDS or weight.shape is None or len(weight.shape) != 4:
            continue
        emit = Emitter(model.graph, name_of(node.outputs[0]))
        attributes = {name: each.value for name, each in node.attributes.items()}
        pixels = emit("Transpose", x, perm=LAST)
        y = emit(f"{NHWC}::Conv", pixels, weight, *bias, **attributes)
        y = emit("Transpose", y, perm=FIRST)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], emit.nodes, node.outputs, [y]
        )
        model.opset_imports[NHWC] = VERSION
