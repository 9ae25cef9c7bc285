"""The CUDA form of a finished graph: all passes, in order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eri_export.graphs.passes.cuda.bias import fuse_biases
from eri_export.graphs.passes.cuda.convolution import put_channels_last
from eri_export.graphs.passes.cuda.group_norm import fuse_group_norms
from eri_export.graphs.passes.cuda.parts import slice_unequal_parts
from eri_export.graphs.passes.merge_heads import merge_heads
from eri_export.graphs.passes.nearest_upsample import expand_upsampling


def _copy_bfloat16(model: ir.Model) -> None:
    """Writes out the upsampling that CUDA has no operator for."""
    expand_upsampling(model, (ir.DataType.BFLOAT16,))


# the last two write operators whose shapes ONNX does not infer
PASSES = (
    _copy_bfloat16,
    slice_unequal_parts,
    merge_heads,
    fuse_group_norms,
    put_channels_last,
    fuse_biases,
)


def cuda_form(model: ir.Model) -> ir.Model:
    """Returns the form of `model` for ONNX Runtime's CUDA provider; `model` stays as it is."""
    form = model.clone()
    for each in PASSES:
        each(form)
    RemoveUnusedNodesPass()(form)
    return form
